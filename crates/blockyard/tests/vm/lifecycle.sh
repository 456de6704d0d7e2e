# From attach to detach: a file system lives on the disk, and what is asked of the disk reaches it.
disk /tmp/disk.img 64M
attach /tmp/disk.img
code 75 blockyard attach /tmp/disk.img $VIA
said "is already attached as"
blockyard list | grep -qF "$D" || die "it is not on the list"

mkfs.ext4 -q "$D"
mount "$D" /mnt
dd if=/dev/urandom of=/mnt/data bs=1M count=8 2>/dev/null
sum=$(md5sum </mnt/data)
code 75 blockyard detach "$D"
said "mounted at /mnt"
umount /mnt
mount "$D" /mnt
[ "$(md5sum </mnt/data)" = "$sum" ] || die "other data after a remount"
rm /mnt/data
sync
before=$(du -k /tmp/disk.img | cut -f1)
fstrim /mnt
after=$(du -k /tmp/disk.img | cut -f1)
[ "$after" -lt $((before - 4096)) ] || die "trimmed, but the file still has $after of $before KiB"
umount /mnt

dd if=/dev/urandom of="$D" bs=1M count=4 oflag=direct 2>/dev/null
blkdiscard -o 1M -l 1M "$D"
dd if="$D" bs=1M skip=1 count=1 iflag=direct 2>/dev/null | tr -d '\0' | grep -q . && die "discarded data is back"

# A process that has it open.
sleep 1000 <"$D" &
opener=$!
until_true [ -e "/proc/$opener/fd/0" ]
code 75 blockyard detach "$D"
said "has $D open"
kill $opener
wait $opener || true

# What is cached when it is detached is written.
echo "the last word" | dd of="$D" bs=512 seek=4096 conv=sync 2>/dev/null
detach "$D"
dd if=/tmp/disk.img bs=512 skip=4096 count=1 2>/dev/null | grep -q "the last word" || die "what was cached is lost"
code 1 blockyard detach "$D"
said "is not attached"

# Nobody may change one that is read-only.
attach /tmp/disk.img --read-only
[ "$(cat "/sys/block/$N/ro")" = 1 ] || die "it is not read-only"
dd if=/dev/zero of="$D" bs=4k count=1 oflag=direct 2>/dev/null && die "a read-only disk was written to"
dd if="$D" of=/dev/null bs=64k count=4 2>/dev/null || die "a read-only disk is not read"
detach /tmp/disk.img

# Errors of the disk reach the kernel, and the device works on.
attach /tmp/disk.img
truncate -s 1M /tmp/disk.img
dd if="$D" of=/dev/null bs=64k skip=100 count=1 iflag=direct 2>/dev/null && die "what is not there was read"
dd if="$D" of=/dev/null bs=64k count=4 iflag=direct 2>/dev/null || die "an error stopped the device"
# What a file has lost is lost, whatever somebody puts in its place, until it is opened anew.
truncate -s 64M /tmp/disk.img
dd if="$D" of=/dev/null bs=64k skip=100 count=1 iflag=direct 2>/dev/null && die "what was lost was read"
code 1 blockyard detach --all
detach --all --force
attach /tmp/disk.img
dd if="$D" of=/dev/null bs=64k skip=100 count=1 iflag=direct 2>/dev/null || die "the disk is whole again, but not read"
detach --all

# It grows while it is used, where the kernel's driver can be told.
attach /tmp/disk.img
mkfs.ext4 -q "$D"
mount "$D" /mnt
truncate -s 96M /tmp/disk.img
blockyard set disk size=96M
if can_grow; then
    until_true grep -qx 196608 "/sys/block/$N/size"
    dd if="$D" of=/dev/null bs=64k skip=1400 count=1 iflag=direct 2>/dev/null || die "its new end is not read"
else
    until_true grep -q 'cannot resize a running device' /run/blockyard/attached/*.log
fi
echo still here >/mnt/file
sync
grep -q still /mnt/file
umount /mnt
detach "$D"
truncate -s 64M /tmp/disk.img

# The experiment: a small disk in memory with partitions, which the kernel finds.
attach ram:2M
printf '2048,1024\n3072,512\n' | sfdisk -q --force "$D" >/dev/null 2>&1 || true
until_true sh -c "grep -q '${N}p1' /proc/partitions || { blockdev --rereadpt $D; false; }"
grep -q "${N}p2" /proc/partitions || die "one partition only"
mke2fs -q "${D}p1"
mount "${D}p1" /mnt
echo hello >/mnt/greeting
code 75 blockyard detach "$D"
umount /mnt
mount "${D}p1" /mnt
grep -q hello /mnt/greeting
umount /mnt
# What the kernel makes of a table is what we make of it: with logical partitions, and by GPT.
for table in 'label: dos\n64,1000\n1064,3000,E\n1128,500\n1800,700\n' 'label: gpt\n64,512\n600,700\n'; do
    printf "$table" | sfdisk -q --force "$D" >/dev/null 2>&1 || true
    until_true same_partitions
done
detach "$D"

# The end of a file within a sector is padded, and the file stays as long as it is.
disk /tmp/odd.img 1050353
attach /tmp/odd.img
[ "$(cat "/sys/block/$N/size")" = 2052 ] || die "it has $(cat "/sys/block/$N/size") sectors"
case $N in
ublkb*) [ "$(cat "/sys/block/$N/queue/physical_block_size")" = 4096 ] || die "it does not say what it prefers" ;;
esac
echo "the last word" | dd of="$D" bs=512 seek=2051 conv=sync 2>/dev/null
detach "$D"
[ "$(wc -c </tmp/odd.img)" = 1050353 ] || die "it has $(wc -c </tmp/odd.img) bytes"
dd if=/tmp/odd.img bs=512 skip=2051 2>/dev/null | grep -q "the last word" || die "its end is lost"

# Who may not do that is told, and by whom it can be done.
code 77 /bin/setpriv --reuid 65534 --regid 65534 --clear-groups blockyard attach ram:1M $VIA
said "run as root"

# What cannot be is told, and leaves nothing.
code 64 blockyard attach ram:1GB $VIA
code 1 blockyard attach /tmp/no-such-file $VIA
said "does not exist"
[ -z "$(ls /run/blockyard/attached)" ] || die "left on record: $(ls /run/blockyard/attached)"
no_users || die "a failed attach left something behind"
