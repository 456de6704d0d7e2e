# What was flushed in the guest is on the disk of the host, however the host ends: the test looks at what a power cut there
# would leave each time that it is told.

byte=0
for VIA in "--via ublk" "--via nbd"; do
    # Not what the one before has left.
    byte=$((byte + 1))
    head -c 1048576 /dev/zero | tr '\0' "\\$byte" >/tmp/filled
    # It flushes nothing by itself while it is idle.
    attach "nbd://10.0.2.2:$PORT/disk?trust_server=1"
    /bin/dd if=/tmp/filled of="$D" bs=64k conv=notrunc,fsync 2>/dev/null || die "not flushed"
    host "flushed $VIA"
    /bin/dd if=/tmp/filled of="$D" bs=64k seek=16 conv=notrunc oflag=dsync 2>/dev/null || die "not durable"
    host "durable $VIA"
    /bin/dd if=/tmp/filled of="$D" bs=64k seek=32 conv=notrunc oflag=direct 2>/dev/null || die "not written"
    host "written $VIA"
    mkfs.ext4 -q -F -E nodiscard "$D"
    mount "$D" /mnt
    /bin/dd if=/tmp/filled of=/mnt/file bs=64k conv=fsync 2>/dev/null || die "the file is not flushed"
    host "file $VIA"
    umount /mnt
    detach "$D"
    host "detached $VIA"
done
no_trouble || die "the kernel was in trouble"
