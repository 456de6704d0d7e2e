# What a script may call. It is meant to begin with `set -e`: what fails here ends it.

# Tells the host something, waits for its answer, and prints that.
host() {
    echo "ask $*" >&9
    IFS= read -r answer <&9 || exit 125
    echo "$answer"
}

# Waits until a command succeeds; the limit of the guest is its bound.
eventually() {
    until "$@" >/dev/null 2>&1; do sleep 0.05; done
}

# Files of many sizes below a directory, and their checksums in a file.
make_files() {
    for size in 0 1 4095 4096 70000 3000000; do
        mkdir -p "$1/$size"
        head -c "$size" /dev/urandom >"$1/$size/file"
    done
    (cd "$1" && find . -type f | sort | xargs sha256sum) >"$2"
    [ "$(wc -l <"$2")" -ge 6 ]
}

# The files below a directory are those of the checksums.
check_files() {
    (cd "$1" && sha256sum -c -s "$2")
}

# A file system on a device: made, filled, read back after it was mounted again, trimmed, checked, discarded.
# Takes the programs and modules of Vm::file_systems.
check_file_system() {
    echo "a file system on $1"
    mkfs.ext4 -q "$1"
    mount "$1" /mnt
    make_files /mnt /tmp/sums
    sync
    umount /mnt
    echo 3 >/proc/sys/vm/drop_caches
    mount "$1" /mnt
    check_files /mnt /tmp/sums
    rm -r /mnt/3000000
    fstrim /mnt
    umount /mnt
    fsck.ext4 -f -n "$1"
    blkdiscard "$1"
    no_disk_errors
}

# refuses COMMAND...: it fails, as it has to. (`! COMMAND` alone ends no script: `set -e` does not look at it.)
refuses() {
    if "$@"; then
        echo "not refused: $*"
        return 1
    fi
}

# What the kernel says of a disk or a file system that fails, of a task that hangs, of too little memory and of itself.
# What a disk does not support is no failure, nor is "MP-BIOS bug: 8254 timer": that is of an emulator whose host is busy.
TROUBLE='(I/O|timeout|protection|(recoverable|critical)[a-z ]*) error|EXT4-fs.*(error|warning)|blocked for more than|Out of memory|kernel BUG|BUG:|WARNING:'

# The kernel was in no trouble.
no_trouble() {
    if dmesg | grep -E "$TROUBLE"; then return 1; fi
}

# The kernel has seen no disk fail, and none that made it wait for too long.
no_disk_errors() {
    if dmesg | grep -E "$TROUBLE|timed out"; then return 1; fi
}

# The device of this name, nbd0 for one, has this attribute: /sys/block/NAME/ATTRIBUTE.
check_attribute() {
    found=$(cat "/sys/block/$1/$2")
    [ "$found" = "$3" ] || { echo "$1 $2 is $found, expected $3"; return 1; }
}
