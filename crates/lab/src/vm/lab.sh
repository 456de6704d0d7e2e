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

# The kernel has seen no disk fail. (Not "MP-BIOS bug: 8254 timer": what it says of an emulator whose host is busy.)
no_disk_errors() {
    ! dmesg | grep -E 'I/O error|EXT4-fs error|timed out|hung task|BUG:|WARNING:'
}

# The device of this name, nbd0 for one, has this attribute: /sys/block/NAME/ATTRIBUTE.
check_attribute() {
    found=$(cat "/sys/block/$1/$2")
    [ "$found" = "$3" ] || { echo "$1 $2 is $found, expected $3"; return 1; }
}
