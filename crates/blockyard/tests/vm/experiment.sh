set -e
# The sizes of a device and its partitions in KiB, as /proc/partitions lists them.
sizes() {
    awk '/nbd0/ { print $4 "=" $3 }' /proc/partitions | sort | tr '\n' ' '
}

nbd-client -N ram0 -C 2 10.0.2.2 $PORT /dev/nbd0
eventually check_attribute nbd0 size 4096
test "$(sizes)" = "nbd0=2048 "
printf 'label: dos\nstart=64, size=3000\nstart=3064\n' | sfdisk -q /dev/nbd0
cat /proc/partitions
test "$(sizes)" = "nbd0=2048 nbd0p1=1500 nbd0p2=516 "

mke2fs -q /dev/nbd0p1
mount /dev/nbd0p1 /mnt
for index in 1 2 3 4 5; do head -c 100000 /dev/urandom >/mnt/file$index; done
(cd /mnt && sha256sum file*) >/tmp/sums
umount /mnt
nbd-client -d /dev/nbd0
eventually check_attribute nbd0 size 0

# Attached again, the kernel finds the partitions by itself.
nbd-client -N ram0 10.0.2.2 $PORT /dev/nbd0
eventually test -b /dev/nbd0p2
test "$(sizes)" = "nbd0=2048 nbd0p1=1500 nbd0p2=516 "
mount /dev/nbd0p1 /mnt
check_files /mnt /tmp/sums
umount /mnt
fsck.ext4 -f -n /dev/nbd0p1
nbd-client -d /dev/nbd0
no_disk_errors
