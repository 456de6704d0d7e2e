set -e
nbd-client -N disk -C 2 10.0.2.2 $PORT /dev/nbd0
mkfs.ext4 -q /dev/nbd0
mount /dev/nbd0 /mnt
make_files /mnt /tmp/sums
sync
(while head -c 1000000 /dev/urandom >/mnt/0/busy && sync /mnt/0/busy; do :; done) 2>/dev/null &
eventually test -s /mnt/0/busy
test "$(host 'kill the server')" = killed
# The kernel gives the device up: what is written now fails.
wait $!
umount /mnt
nbd-client -d /dev/nbd0
eventually check_attribute nbd0 size 0
dmesg -c >/tmp/expected-errors

test "$(host 'start a larger one')" = started
nbd-client -N disk 10.0.2.2 $PORT /dev/nbd0
eventually check_attribute nbd0 size 196608
mount /dev/nbd0 /mnt
check_files /mnt /tmp/sums
umount /mnt
fsck.ext4 -f -p /dev/nbd0
resize2fs /dev/nbd0
mount /dev/nbd0 /mnt
test "$(df -m /mnt | awk 'END { print $2 }')" -gt 75
check_files /mnt /tmp/sums
umount /mnt
fsck.ext4 -f -n /dev/nbd0
nbd-client -d /dev/nbd0
no_disk_errors
