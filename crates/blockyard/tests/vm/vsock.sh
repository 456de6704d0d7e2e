set -e
uri=nbd+vsock://1:10809/ram0
blockyard serve ram:64M --nbd vsock:any:10809 --nbd tcp:127.0.0.1:10809 2>/tmp/server &
server=$!
eventually grep -q 'at tcp:127.0.0.1:10809' /tmp/server
cat /tmp/server
grep -q 'vsock' /tmp/server

blockyard list nbd+vsock://1:10809/ | tee /tmp/list
grep -q ram0 /tmp/list
blockyard info $uri | tee /tmp/info
grep -q 67108864 /tmp/info
blockyard bench $uri --rw randrw --count 2000 --queues 2 --json | tee /tmp/bench
blockyard list | tee /tmp/list
grep -q ram0 /tmp/list

# The kernel takes only TCP and unix sockets: a second server hands the disk on. What it writes goes over vsock.
blockyard serve $uri --nbd tcp:127.0.0.1:10810 2>/tmp/proxy &
proxy=$!
eventually grep -q 'at tcp:127.0.0.1:10810' /tmp/proxy
cat /tmp/proxy
nbd-client 127.0.0.1 10810 /dev/nbd0
eventually check_attribute nbd0 size 131072
check_file_system /dev/nbd0
mkfs.ext4 -q /dev/nbd0
mount /dev/nbd0 /mnt
make_files /mnt /tmp/sums
umount /mnt
nbd-client -d /dev/nbd0
eventually check_attribute nbd0 size 0
kill $proxy
wait $proxy

# What was written over vsock is what the server has, seen past vsock.
nbd-client -N ram0 127.0.0.1 10809 /dev/nbd0
eventually check_attribute nbd0 size 131072
mount -o ro /dev/nbd0 /mnt
check_files /mnt /tmp/sums
umount /mnt
nbd-client -d /dev/nbd0
kill $server
wait $server
no_disk_errors

if blockyard info nbd+vsock://1:10811/ 2>/tmp/refused; then exit 1; fi
cat /tmp/refused
grep -q 'no server is listening' /tmp/refused
