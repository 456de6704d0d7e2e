# A device is recovered whose disk has grown, while its writes are held back: that the kernel hears of the size costs it nothing.
serve() {
    blockyard serve /tmp/disk.img --nbd unix:/tmp/server 2>/tmp/serving &
    server=$!
    until_true sh -c "blockyard info 'nbd+unix:///disk?socket=/tmp/server' >/dev/null 2>&1"
}

disk /tmp/disk.img 64M
serve
# Held back for longer than the kernel waits for an answer.
attach "nbd+unix:///disk?socket=/tmp/server&fence_timeout=8s&trust_server=1"
touch /tmp/go
(
    while [ -e /tmp/go ]; do
        dd if=/dev/urandom of="$D" bs=16k count=16 oflag=direct 2>/dev/null || touch /tmp/failed
    done
) &
writer=$!
for size in 96M 128M; do
    progress 5
    kill -9 "$(daemon_of "$N")"
    until_true sh -c "blockyard list | grep -q 'left behind'"
    kill $server
    wait $server || true
    truncate -s $size /tmp/disk.img
    serve
    # Nothing is written before what the daemon before has sent can no more be carried out.
    begun=$(cut -d. -f1 /proc/uptime)
    [ "$(blockyard recover "$D" 2>/tmp/said)" = "$D" ] || die "not recovered"
    dd if=/dev/zero of="$D" bs=4k seek=4096 count=1 oflag=direct 2>/dev/null || die "not written"
    held=$(($(cut -d. -f1 /proc/uptime) - begun))
    [ $held -ge 8 ] || die "written $held s after a recovery"
    until_true grep -qx $((${size%M} * 2048)) "/sys/block/$N/size"
    [ ! -e /tmp/failed ] || die "a write failed"
done
progress 5
rm /tmp/go
wait $writer
[ ! -e /tmp/failed ] || die "a write failed"
dd if="$D" of=/dev/null bs=64k skip=2000 count=1 iflag=direct 2>/dev/null || die "its new end is not read"
detach "$D"
kill $server
wait $server || true
no_trouble || die "the kernel saw an error"
