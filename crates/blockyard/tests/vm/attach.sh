# What the tests of attach share. Runs in the guest, in busybox's shell; VIA holds the options of attach.
set -eu

die() {
    echo "FAILED: $*"
    blockyard list || true
    cat /run/blockyard/attached/* || true
    dmesg | grep -E "$TROUBLE" | head -n 5
    dmesg | tail -n 12
    # Who waits for what: programs, and threads of the kernel that end what a dead program had asked.
    for task in /proc/[0-9]*; do
        grep -qE '^State:.(D|Z)|^Name:.(iou-|kworker.*iou)' "$task/status" && head -n 3 "$task/status" && cat "$task/stack"
    done || true
    echo "FAILED: $*"
    exit 1
}

# code N COMMAND...: it ends with that exit code; what it said is in /tmp/said.
code() {
    want=$1
    shift
    got=0
    "$@" >/tmp/said 2>&1 || got=$?
    [ "$got" = "$want" ] || { cat /tmp/said; die "exit code $got, not $want: $*"; }
}

# said TEXT: the last command of `code` said that.
said() {
    grep -qF "$1" /tmp/said || { cat /tmp/said; die "it did not say: $1"; }
}

# until_true COMMAND...: waits for it, some minutes at most on a host that is busy.
until_true() {
    tries=1200
    until "$@"; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || die "never: $*"
        sleep 0.1
    done
}

# disk FILE SIZE: a new file.
disk() {
    rm -f "$1"
    truncate -s "$2" "$1"
}

# attach URI [OPTIONS]: prints the device and nothing else, which D and N are then.
attach() {
    D=$(blockyard attach "$@" $VIA) || die "cannot attach $*"
    N=${D#/dev/}
    [ -b "$D" ] || die "attach printed \"$D\""
}

# can_grow: the kernel takes a new size of a device that runs: ublk since Linux 6.16, nbd always.
can_grow() {
    case $N in
    ublkb*) [ "$(uname -r | awk -F. '{ print $1 * 1000 + $2 }')" -ge 6016 ] ;;
    esac
}

daemon_of() {
    sed -n 's/.*"pid": \([0-9]*\).*/\1/p' "/run/blockyard/attached/$1.json"
}

is_gone() {
    case $N in
    ublkb*) ! [ -e "$D" ] && ! [ -e "/dev/ublkc${N#ublkb}" ] ;;
    *) ! [ -e "/sys/block/$N/pid" ] && [ "$(cat "/sys/block/$N/size")" = 0 ] ;;
    esac
}

no_users() {
    ! lsmod | grep -E '^(ublk_drv|nbd) ' | awk '$3 != 0' | grep -q .
}

no_daemon() {
    ! ps | grep -v grep | grep -q 'blockyard attach\|blockyard recover'
}

# detached: nothing of the last device is left, nor of its daemon.
detached() {
    until_true is_gone
    until_true no_users
    no_daemon || die "a daemon is left: $(ps)"
    [ -z "$(ls /run/blockyard/attached)" ] || die "left on record: $(ls /run/blockyard/attached)"
}

detach() {
    blockyard detach "$@" || die "cannot detach $*"
    detached
}

# load: writes files with checksums until /tmp/go is gone, then says how many failed.
load() {
    i=0
    failed=0
    while [ -e /tmp/go ]; do
        dd if=/dev/urandom of="/mnt/f$((i % 40))" bs=16k count=4 conv=fsync 2>/dev/null || failed=$((failed + 1))
        i=$((i + 1))
    done
    (cd /mnt && md5sum f*) >/tmp/sums
    echo "$i files written, $failed failed"
    [ $failed = 0 ] && [ $i -gt 3 ]
}

# verify: what load has written is there after a remount, and the file system is whole.
verify() {
    umount /mnt
    e2fsck -fn "$D" >/tmp/said 2>&1 || { cat /tmp/said; die "the file system is damaged"; }
    mount "$D" /mnt
    (cd /mnt && md5sum -c /tmp/sums) >/tmp/said 2>&1 || { cat /tmp/said; die "not what was written"; }
}

# written N: so many files have been written since the load started.
progress() {
    before=$(cat "/sys/block/$N/stat" | awk '{ print $5 }')
    until_true sh -c "[ \$(awk '{ print \$5 }' /sys/block/$N/stat) -gt $((before + $1)) ]"
}

# same_partitions: the partitions that the kernel has found on the device, and their sizes, are those that we find on it.
same_partitions() {
    blockdev --rereadpt "$D" 2>/dev/null || true
    awk -v disk="$N" '$4 ~ "^" disk "p" { print substr($4, length(disk) + 2) "=" $3 }' /proc/partitions | sort >/tmp/theirs
    blockyard info --json "$D" | tr -d ' \n' | sed 's/{"number":/\n/g' |
        sed -n 's/^\([0-9]*\),"start":[0-9]*,"size":\([0-9]*\),.*/\1 \2/p' | awk '{ print $1 "=" int($2 / 1024) }' | sort >/tmp/ours
    [ -s /tmp/ours ] && cmp -s /tmp/theirs /tmp/ours
}
