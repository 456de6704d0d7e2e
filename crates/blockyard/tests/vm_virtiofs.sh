set -e
mkdir /tree /fixed
mount -t virtiofs tree /tree
mount -t virtiofs fixed /fixed
[ "$(cat /tree/from-host)" = "the host's" ]

echo "files of many sizes, read back after another mount"
make_files /tree/files /tmp/sums
sync
umount /tree
refuses ls /tree/files 2>/dev/null
mount -t virtiofs tree /tree
echo 3 >/proc/sys/vm/drop_caches
check_files /tree/files /tmp/sums
check_files /fixed/files /tmp/sums

echo "a thousand names"
mkdir /tree/many
(cd /tree/many && seq 1000 | while read -r n; do : >"name-$n"; done)
[ "$(ls /tree/many | wc -l)" = 1000 ]
[ "$(ls /tree/many | sort -u | wc -l)" = 1000 ]

echo "renames, links, attributes"
echo content >/tree/old
ln /tree/old /tree/again
ln -s again /tree/link
mv /tree/old /tree/moved
refuses cat /tree/old 2>/dev/null
[ "$(cat /tree/link)" = content ]
[ "$(stat -c %h /tree/moved)" = 2 ]
setfattr -n user.colour -v blue /tree/moved
[ "$(getfattr --only-values -n user.colour /tree/again 2>/dev/null)" = blue ]
chmod 1777 /tree
/bin/setpriv --reuid=1000 --regid=1001 --clear-groups sh -c 'umask 027; echo his >/tree/theirs'
refuses /bin/setpriv --reuid=1002 --regid=1002 --clear-groups cat /tree/theirs 2>/dev/null

echo "mapped memory"
truncate -s 8192 /tree/mapped
xfs_io -c 'mmap -rw 0 8192' -c 'mwrite -S 0x61 4096 4' -c 'mwrite -S 0x7a 8191 1' -c 'msync -s' /tree/mapped
[ "$(dd if=/fixed/mapped bs=1 skip=4096 count=4 2>/dev/null)" = aaaa ]
cp /bin/busybox /tree/busybox
[ "$(/tree/busybox echo it runs)" = "it runs" ]

echo "locks"
flock /tree/lock -c 'refuses() { if "$@"; then exit 1; fi; }; refuses flock -n /tree/lock true; touch /tree/locked'
[ -e /tree/locked ]
flock -n /tree/lock true

echo "what is removed while it is open"
exec 8<>/tree/removed
echo still there >&8
rm /tree/removed
[ "$(cat /proc/self/fd/8)" = "still there" ]
exec 8>&-

echo "direct, and durable"
dd if=/dev/urandom of=/tmp/random bs=64k count=32 2>/dev/null
dd if=/tmp/random of=/tree/random bs=64k conv=fsync 2>/dev/null
dd if=/tree/random of=/tmp/back bs=4k iflag=direct 2>/dev/null
cmp /tmp/random /tmp/back
fallocate -l 1048576 /tree/allocated
[ "$(stat -c %s /tree/allocated)" = 1048576 ]
df /tree >/dev/null

echo "read-only"
refuses sh -c 'echo no >/fixed/new' 2>/dev/null
refuses rm /fixed/moved 2>/dev/null
[ "$(cat /fixed/moved)" = content ]

echo "by both processors at a time"
for part in 1 2 3 4; do
    (for n in $(seq 50); do
        echo "$part $n" >"/tree/p$part-$n"
        mv "/tree/p$part-$n" "/tree/q$part-$n"
        [ "$(cat "/tree/q$part-$n")" = "$part $n" ] || touch /tmp/failed
        rm "/tree/q$part-$n"
    done) &
done
wait
refuses test -e /tmp/failed

echo "the guest's" >/tree/from-guest
sync
host written
eventually grep -q again /tree/from-host
[ "$(cat /fixed/from-host)" = "the host's, again" ]
rm -r /tree/many/* /tree/files
umount /tree
umount /fixed
no_trouble
