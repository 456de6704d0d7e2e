# Whose a device is, and what may be done with it: memory, orphans, other runtime directories, other versions, users.
orphan() {
    kill -9 "$(daemon_of "$N")"
    until_true sh -c "blockyard list | grep -q '$D.*left behind'"
}

# works: the device of D can be read.
works() {
    dd if="$D" of=/dev/null bs=4k count=4 iflag=direct 2>/dev/null
}

# What was in memory goes with its daemon: the kernel waits for no other, and nobody gets an empty disk.
for VIA in "--via ublk" "--via nbd"; do
    attach ram:8M
    dd if=/dev/urandom of="$D" bs=64k count=4 oflag=direct 2>/dev/null
    orphan
    until_true sh -c "! dd if=$D of=/tmp/read bs=4k count=1 iflag=direct 2>/dev/null"
    code 1 blockyard recover "$D"
    said "were in the memory of the daemon"
    [ -z "$(blockyard recover 2>/dev/null)" ] || die "memory was recovered"
    blockyard detach --force "$D"
    detached
done

# The same command again goes on with what it left behind, whatever the disk is called.
VIA=
disk /tmp/disk.img 16M
attach /tmp/disk.img
mkfs.ext4 -q -F "$D"
mount "$D" /mnt
echo before >/mnt/file
orphan
code 1 blockyard attach /tmp/disk.img --read-only
said "does not match"
ln -s disk.img /tmp/link.img
[ "$(blockyard attach /tmp/link.img 2>/tmp/said)" = "$D" ] || die "attached once more"
said "recovering it"
echo after >>/mnt/file
sync

# Another disk in its place is not it, whatever its size, and none is made.
orphan
mv /tmp/disk.img /tmp/away.img
code 1 blockyard recover "$D"
said "is missing"
disk /tmp/disk.img 16M
code 1 blockyard recover "$D"
said "is another disk"
mv /tmp/away.img /tmp/disk.img
[ "$(cd / && blockyard recover)" = "$D" ] || die "not recovered"
umount /mnt
mount "$D" /mnt
[ "$(cat /mnt/file)" = "before
after" ] || die "not what was written"
umount /mnt
detach /tmp/link.img

attach "file:/tmp/new.img?create=8M"
orphan
mv /tmp/new.img /tmp/away.img
code 1 blockyard recover "$D"
[ ! -e /tmp/new.img ] || die "it was made"
mv /tmp/away.img /tmp/new.img
[ "$(blockyard recover "$D")" = "$D" ] || die "not recovered"
detach "$D"

# What is not on record here is somebody's.
D=$(BLOCKYARD_RUNTIME_DIR=/run/other blockyard attach /tmp/new.img --via nbd)
other=$D
N=${D#/dev/}
blockyard list | grep -q "$other is attached without a record here" || die "it is not on the list"
code 1 blockyard detach --force "$other"
said "may be in use"
blockyard detach --all --force
attach ram:1M
blockyard detach ram:1M
D=$other
works || die "what was another's has gone"
kill -9 "$(sed -n 's/.*"pid": \([0-9]*\).*/\1/p' "/run/other/attached/${other#/dev/}.json")"
attach ram:1M
blockyard detach ram:1M
D=$other
N=${D#/dev/}
BLOCKYARD_RUNTIME_DIR=/run/other blockyard list | grep -q "blockyard recover $other" || die "its orphan has gone"
BLOCKYARD_RUNTIME_DIR=/run/other blockyard detach --force "$other"
until_true is_gone

# A daemon of another PID namespace is alive, whatever its number means here.
rm -f /tmp/device /tmp/end
unshare -p -f sh -c "blockyard attach /tmp/new.img --via nbd >/tmp/device && until [ -e /tmp/end ]; do sleep 0.1; done" &
namespace=$!
until_true [ -s /tmp/device ]
D=$(cat /tmp/device)
N=${D#/dev/}
blockyard list >/tmp/said 2>&1
! grep -q "left behind\|--force" /tmp/said || die "it is not left: $(cat /tmp/said)"
code 75 blockyard recover "$D"
said "is alive"
code 75 blockyard attach /tmp/new.img
said "already attached"
attach ram:1M
blockyard detach ram:1M
D=$(cat /tmp/device)
N=${D#/dev/}
works || die "it is gone with others"
# It dies with its namespace.
touch /tmp/end
wait $namespace || true
until_true sh -c "blockyard list | grep -q '$D.*left behind'"
[ "$(blockyard recover "$D")" = "$D" ] || die "not recovered"
detach "$D"

# A record of another version is told, and its device is left alone.
echo '{"version": 99}' >/run/blockyard/attached/nbd5.json
blockyard list >/tmp/said 2>&1
said "version 99"
! grep -q -e --force /tmp/said || die "it is advised to be removed: $(cat /tmp/said)"
code 1 blockyard detach --force /dev/nbd5
said "version 99"
blockyard detach --all --force
attach ram:1M
blockyard detach --all
[ -e /run/blockyard/attached/nbd5.json ] || die "a record of another version was removed"
rm /run/blockyard/attached/nbd5.json
detached

# Who uses a partition uses the disk.
disk /tmp/disk.img 16M
for VIA in "--via ublk" "--via nbd"; do
    attach /tmp/disk.img
    printf '2048,8192\n' | sfdisk -q --force "$D" >/dev/null 2>&1 || true
    until_true sh -c "grep -q '${N}p1' /proc/partitions || { blockdev --rereadpt $D; false; }"
    sleep 1000 <"${D}p1" &
    opener=$!
    until_true [ -e "/proc/$opener/fd/0" ]
    code 75 blockyard detach "$D"
    said "has ${D}p1 open"
    kill $opener
    wait $opener || true
    detach "$D"
done

# Told to end, it stays until nobody uses it, and then leaves by itself: though its program is not there any more.
cp /bin/blockyard /tmp/program
for VIA in "--via ublk" "--via nbd" "--via nbd-ioctl"; do
    cp /tmp/program /tmp/blockyard
    D=$(/tmp/blockyard attach /tmp/disk.img $VIA)
    N=${D#/dev/}
    rm /tmp/blockyard
    mkfs.ext4 -q -F "$D"
    mount "$D" /mnt
    kill -TERM "$(daemon_of "$N")"
    kill -HUP "$(daemon_of "$N")"
    echo hello >/mnt/file
    sync
    until_true grep -q "mounted at /mnt" /run/blockyard/attached/*.log
    works || die "it has not stayed"
    umount /mnt
    until_true no_daemon
    detached
done

# So does one in the foreground, whose terminal goes.
for VIA in "--via ublk" "--via nbd"; do
    rm -f /tmp/device
    blockyard attach --foreground /tmp/disk.img $VIA >/tmp/device 2>/tmp/told &
    daemon=$!
    until_true [ -s /tmp/device ]
    D=$(cat /tmp/device)
    N=${D#/dev/}
    mkfs.ext4 -q -F "$D"
    mount "$D" /mnt
    kill -HUP $daemon
    kill -TERM $daemon
    echo hello >/mnt/file
    sync
    until_true grep -q "mounted at /mnt" /tmp/told
    kill -HUP $daemon
    works || die "it has not stayed: $(cat /tmp/told)"
    umount /mnt
    wait $daemon || die "it did not end well: $(cat /tmp/told)"
    detached
done

# Or it leaves the device to the next one, if that is the plan.
VIA="--via ublk"
attach /tmp/disk.img --hand-over
mount "$D" /mnt
# Who moves its log, has it opened anew.
log=$(echo /run/blockyard/attached/*.log)
mv "$log" /tmp/moved.log
kill -HUP "$(daemon_of "$N")"
until_true [ -e "$log" ]
kill -TERM "$(daemon_of "$N")"
until_true sh -c "blockyard list | grep -q 'left behind'"
[ "$(blockyard recover)" = "$D" ] || die "not recovered"
grep -q hello /mnt/file
umount /mnt
detach "$D"

# The kernel's disk is read-only when ours is.
for VIA in "--via ublk" "--via nbd"; do
    attach /tmp/disk.img
    blockyard set disk read-only=1
    until_true grep -qx 1 "/sys/block/$N/ro"
    orphan
    [ "$(blockyard recover)" = "$D" ] || die "not recovered"
    dd if=/dev/zero of="$D" bs=4k count=1 oflag=direct 2>/dev/null && die "it was written to after a recovery"
    blockyard set disk read-only=0
    until_true grep -qx 0 "/sys/block/$N/ro"
    dd if=/dev/zero of="$D" bs=4k count=1 oflag=direct 2>/dev/null || die "it stays read-only"
    detach "$D"
done

# One request at a time.
VIA="--via ublk --depth 1"
attach ram:1M
dd if=/dev/urandom of="$D" bs=64k count=4 oflag=direct 2>/dev/null
works || die "a queue of one request does not work"
detach "$D"

# Partitions that the kernel does not find, as they were made for other blocks.
VIA="--via nbd"
disk /tmp/disk.img 16M
attach "file:/tmp/disk.img?block=4096"
printf 'label: gpt\nsize=1024\n' | sfdisk -q --force "$D" >/dev/null 2>&1 || true
until_true sh -c "grep -q '${N}p1' /proc/partitions || { blockdev --rereadpt $D; false; }"
detach "$D"
D=$(blockyard attach /tmp/disk.img $VIA 2>/tmp/said)
N=${D#/dev/}
said "set block=4096"
detach "$D"

# Numbers are what they are, and the device of another process is not touched.
code 64 blockyard attach ram:1M --number 4294967295
VIA="--via nbd-ioctl"
attach ram:1M
code 75 blockyard attach ram:1M --via nbd-ioctl --number "${N#nbd}"
code 75 blockyard attach ram:1M --via nbd --number "${N#nbd}"
works || die "another's device was taken down"
detach "$D"

# Where io_uring is forbidden there is NBD.
VIA=
echo 2 >/proc/sys/kernel/io_uring_disabled
attach ram:1M
[ "$N" != "${N#nbd}" ] || die "it is $N"
works || die "it does not work without io_uring"
code 69 blockyard attach ram:1M --via ublk
said "kernel.io_uring_disabled = 2"
detach "$D"
echo 0 >/proc/sys/kernel/io_uring_disabled

# A mount that only another namespace sees is one, also when the daemon is dead.
VIA="--via ublk"
disk /tmp/disk.img 16M
attach /tmp/disk.img
mkfs.ext4 -q -F "$D"
unshare -m sh -c "mount $D /mnt && echo >/tmp/mounted && exec sleep 1000" &
elsewhere=$!
until_true [ -e /tmp/mounted ]
code 75 blockyard detach "$D"
said "mounted at /mnt in the namespace of process"
orphan
code 75 blockyard detach --force "$D"
said "mounted at /mnt in the namespace of process"
[ "$(blockyard recover)" = "$D" ] || die "not recovered"
kill $elsewhere
wait $elsewhere || true
detach "$D"

# Who takes a device away leaves its daemon alone: that closes its disk, says so, and ends.
disk /tmp/disk.img 16M
for VIA in "--via ublk" "--via nbd" "--via nbd --connections 3" "--via nbd-ioctl"; do
    rm -f /tmp/device
    blockyard attach --foreground /tmp/disk.img $VIA >/tmp/device 2>/tmp/told &
    daemon=$!
    until_true [ -s /tmp/device ]
    D=$(cat /tmp/device)
    N=${D#/dev/}
    works || die "it does not work"
    case $N in
    ublkb*) BLOCKYARD_TEST_TAKE_AWAY=${N#ublkb} "/bin/$STRANGER" --exact a_stranger_takes_a_device_away ;;
    *) nbd-client -d "$D" ;;
    esac
    wait $daemon || die "it did not end well: $(cat /tmp/told)"
    grep -q "was removed by another process" /tmp/told || die "it did not say so: $(cat /tmp/told)"
    detached
done
