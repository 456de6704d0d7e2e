# More is written than there is memory, through a daemon on the same machine, while all memory but little is taken.
# is_flusher PID: all of its queue threads are in the write-back path: PF_MEMALLOC_NOIO, PF_LOCAL_THROTTLE (`linux/sched.h`).
is_flusher() {
    queues=0
    for task in /proc/"$1"/task/*; do
        grep -q '^bq-[0-9]*$' "$task/comm" || continue
        queues=$((queues + 1))
        flags=$(sed 's/.*) //' "$task/stat" | cut -d' ' -f7)
        [ $((flags & 0x180000)) = $((0x180000)) ] || return 1
    done
    [ $queues -gt 0 ]
}

# A daemon that runs gets there with its first mount.
blockyard serve ram:1M --nbd unix:/tmp/mounting 2>/tmp/told &
server=$!
until_true [ -S /tmp/mounting ]
until_true grep -q '^serving ' /tmp/told
! is_flusher $server || die "it is in the write-back path of nothing"
mkdir /tmp/disks
blockyard mount $server /tmp/disks || die "not mounted: $(cat /tmp/told)"
is_flusher $server || die "its threads may wait for themselves"
grep -q 'VmLck:.*[1-9]' "/proc/$server/status" || die "its memory is not locked"
umount /tmp/disks
kill -TERM $server
wait $server || die "it did not end well: $(cat /tmp/told)"
rmdir /tmp/disks
rm /tmp/told

free
for VIA in "--via ublk" "--via nbd"; do
    attach "nbd://10.0.2.2:$PORT/ram0"
    daemon=$(daemon_of "$N")
    grep -q 'VmLck:.*[1-9]' "/proc/$daemon/status" || die "its memory is not locked"
    is_flusher "$daemon" || die "its threads may wait for themselves"
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
