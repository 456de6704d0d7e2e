# More is written than there is memory, through a daemon on the same machine, while all memory but little is taken.
free
for VIA in "--via ublk" "--via nbd"; do
    attach "nbd://10.0.2.2:$PORT/ram0"
    daemon=$(daemon_of "$N")
    grep -q 'VmLck:.*[1-9]' "/proc/$daemon/status" || die "its memory is not locked"
    mkfs.ext4 -q -F -E nodiscard "$D"
    mount "$D" /mnt
    # Half of what is free goes to files in memory, which cannot be written anywhere.
    free=$(awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
    dd if=/dev/zero of=/tmp/taken bs=1M count=$((free / 2)) 2>/dev/null
    for file in 1 2; do
        dd if=/dev/zero of="/mnt/$file" bs=1M count=$((free / 2)) 2>/dev/null &
    done
    wait
    sync
    rm /tmp/taken
    echo 3 >/proc/sys/vm/drop_caches
    for file in 1 2; do
        [ "$(tr -d '\0' <"/mnt/$file" | wc -c)" = 0 ] || die "not what was written"
        [ "$(wc -c <"/mnt/$file")" = $((free / 2 * 1048576)) ] || die "not all of it"
    done
    rm /mnt/1 /mnt/2
    umount /mnt
    detach "$D"
done
no_trouble || die "the kernel was in trouble"
