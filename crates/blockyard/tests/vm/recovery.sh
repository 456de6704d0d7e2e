# The daemon is killed under load, and recovered: nothing is lost, and the file system never sees an error.
# survive URI: that disk does.
survive() {
    attach "$1"
    mkfs.ext4 -q "$D"
    mount "$D" /mnt
    touch /tmp/go
    load &
    loader=$!
    for round in 1 2 3; do
        progress 5
        code 75 blockyard recover "$D"
        said "is alive"
        kill -9 "$(daemon_of "$N")"
        until_true sh -c "blockyard list | grep -q 'left behind'"
        code 1 blockyard detach "$D"
        said "blockyard recover"
        recovered=$(blockyard recover)
        [ "$recovered" = "$D" ] || die "recover printed \"$recovered\""
    done
    progress 5

    # One that stops for longer than the kernel waits goes on afterwards.
    kill -STOP "$(daemon_of "$N")"
    sleep 5
    kill -CONT "$(daemon_of "$N")"
    progress 5

    # Told to end while the disk is in use, it serves on; when its terminal is gone, too.
    kill -TERM "$(daemon_of "$N")"
    kill -HUP "$(daemon_of "$N")"
    progress 5
    code 75 blockyard recover "$D"
    said "is alive"
    # The next one was not told.
    kill -9 "$(daemon_of "$N")"
    until_true sh -c "blockyard list | grep -q 'left behind'"
    [ "$(blockyard recover "$D")" = "$D" ] || die "not recovered"
    progress 5

    rm /tmp/go
    wait $loader || die "the load saw an error"
    verify
    umount /mnt
    no_trouble || die "the kernel saw an error"
}

disk /tmp/disk.img 64M
survive /tmp/disk.img

# What the disk has become while nobody served it, the kernel learns when somebody does again.
kill -9 "$(daemon_of "$N")"
until_true sh -c "blockyard list | grep -q 'left behind'"
truncate -s 96M /tmp/disk.img
[ "$(blockyard recover "$D")" = "$D" ] || die "not recovered after it has grown"
if can_grow; then
    until_true grep -qx 196608 "/sys/block/$N/size"
    dd if="$D" of=/dev/null bs=64k skip=1400 count=1 iflag=direct 2>/dev/null || die "its new end is not read"
fi
detach "$D"

# Data that a daemon of ublk has in memory of its own is copied by itself: so it is behind an NBD server.
case "$VIA" in
*ublk*)
    disk /tmp/disk.img 64M
    blockyard serve /tmp/disk.img --nbd unix:/tmp/server 2>/tmp/serving &
    server=$!
    until_true [ -S /tmp/server ]
    # What a daemon sent before it was killed is waited for, for so long. This server loses nothing with a connection.
    survive "nbd+unix:///disk?socket=/tmp/server&fence_timeout=1s&trust_server=1"
    detach "$D"

    # One that is not trusted may have lost what its daemon had not flushed: no flush says otherwise, and the next daemon knows.
    # It flushes only when it is asked to.
    attach "nbd+unix:///disk?socket=/tmp/server&fence_timeout=1s&flush_after=0"
    dd if=/dev/zero of="$D" bs=4k count=1 oflag=direct conv=fsync 2>/dev/null || die "not flushed"
    kill -9 "$(daemon_of "$N")"
    until_true sh -c "blockyard list | grep -q 'left behind'"
    [ "$(blockyard recover "$D" 2>/tmp/said)" = "$D" ] || die "not recovered"
    dd if=/dev/zero of="$D" bs=4k count=1 oflag=direct conv=fsync 2>/dev/null || die "nothing was lost"
    dd if=/dev/zero of="$D" bs=4k count=1 oflag=direct 2>/dev/null || die "not written"
    for killed in 1 2; do
        kill -9 "$(daemon_of "$N")"
        until_true sh -c "blockyard list | grep -q 'left behind'"
        [ "$(blockyard recover "$D" 2>/tmp/said)" = "$D" ] || die "not recovered"
        said "$D"
        dd if=/dev/zero of="$D" bs=4k count=1 oflag=direct conv=fsync 2>/dev/null && die "a flush says that nothing was lost"
    done
    code 1 blockyard detach "$D"
    detach --force "$D"

    # A daemon that leaves its device to the next one flushes first, though it does not by itself.
    attach "nbd+unix:///disk?socket=/tmp/server&fence_timeout=1s&flush_after=0" --hand-over
    sleep 1000 <"$D" &
    opener=$!
    until_true [ -e "/proc/$opener/fd/0" ]
    dd if=/dev/zero of="$D" bs=4k count=1 oflag=direct 2>/dev/null || die "not written"
    kill -TERM "$(daemon_of "$N")"
    until_true sh -c "blockyard list | grep -q 'left behind'"
    [ "$(blockyard recover "$D" 2>/tmp/said)" = "$D" ] || die "not recovered"
    dd if=/dev/zero of="$D" bs=4k count=1 oflag=direct conv=fsync 2>/dev/null || die "what was handed over was not flushed"
    kill $opener
    wait $opener || true
    detach "$D"
    kill $server
    wait $server
    ;;
esac
