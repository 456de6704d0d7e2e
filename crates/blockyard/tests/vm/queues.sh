# A queue for each of four processors: all are used at the same time, the daemon is killed meanwhile, and nothing is lost.
[ "$(grep -c ^processor /proc/cpuinfo)" = 4 ] || die "not four processors"

# writer CPU: writes files on that processor, and counts them.
writer() {
    i=0
    while [ -e /tmp/go ]; do
        taskset "$(printf '%x' $((1 << $1)))" dd if=/dev/urandom of="/mnt/$1.$((i % 8))" bs=16k count=4 conv=fsync 2>/dev/null ||
            touch /tmp/failed
        i=$((i + 1))
        echo $i >"/tmp/written.$1"
    done
}

for VIA in "--via ublk --threads 4" "--via nbd --connections 4 --threads 4 --timeout 3"; do
    disk /tmp/disk.img 64M
    attach /tmp/disk.img
    queues=$(ls "/sys/block/$N/mq" | wc -l)
    [ "$queues" = 4 ] || die "$queues queues"
    mkfs.ext4 -q -F "$D"
    mount "$D" /mnt
    rm -f /tmp/failed /tmp/written.*
    touch /tmp/go
    for cpu in 0 1 2 3; do writer $cpu & done
    for round in 1 2; do
        progress 40
        kill -9 "$(daemon_of "$N")"
        until_true sh -c "blockyard list | grep -q 'left behind'"
        [ "$(blockyard recover)" = "$D" ] || die "not recovered"
    done
    progress 40
    rm /tmp/go
    wait
    cat /tmp/written.*
    [ ! -e /tmp/failed ] || die "a write failed"
    [ "$(ls /tmp/written.* | wc -l)" = 4 ] || die "a processor has written nothing"
    (cd /mnt && md5sum ?.*) >/tmp/sums
    verify
    umount /mnt
    detach "$D"
done
no_trouble || die "the kernel saw an error"
