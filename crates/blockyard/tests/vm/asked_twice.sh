# A disk that stands still for longer than the kernel waits: it asks on other connections what is still with the disk, and what
# waits for its turn. Whatever comes late undoes nothing that was written after it.
[ "$(grep -c ^processor /proc/cpuinfo)" = 4 ] || die "not four processors"

# writer CPU: numbers in a block of its own, each of which has to be there once it is written.
writer() {
    mask=$(printf '%x' $((1 << $1)))
    i=0
    while [ -e /tmp/go ]; do
        i=$((i + 1))
        printf '%-4095d\n' $i >"/tmp/number.$1"
        taskset "$mask" dd if="/tmp/number.$1" of="$D" bs=4k seek="$1" conv=notrunc oflag=direct 2>/dev/null || touch /tmp/failed
        taskset "$mask" dd if="$D" of="/tmp/found.$1" bs=4k skip="$1" count=1 iflag=direct 2>/dev/null || touch /tmp/failed
        cmp -s "/tmp/number.$1" "/tmp/found.$1" || echo "$1: not $i" >>/tmp/undone
        echo $i >"/tmp/written.$1"
    done
}

all_go_on() {
    for cpu in 0 1 2 3; do
        before=$(cat /tmp/written.$cpu)
        until_true sh -c "[ \$(cat /tmp/written.$cpu) -gt $((before + 3)) ]"
    done
}

disk /tmp/disk.img 16M
blockyard serve /tmp/disk.img --nbd unix:/tmp/server 2>/tmp/serving &
server=$!
until_true [ -S /tmp/server ]
attach "nbd+unix:///disk?socket=/tmp/server&fence_timeout=1s&timeout=60s"
for cpu in 0 1 2 3; do echo 0 >/tmp/written.$cpu; done
touch /tmp/go
for cpu in 0 1 2 3; do writer $cpu & done
for round in 1 2 3; do
    all_go_on
    dmesg -c >/dev/null
    kill -STOP $server
    until_true sh -c "dmesg | grep -q 'timed out'"
    # Twice as long as it waits, once it has begun to ask again.
    sleep 4
    kill -CONT $server
done
all_go_on
rm /tmp/go
kill -CONT $server
until_true sh -c "! pgrep -f taskset >/dev/null"
cat /tmp/written.*
[ ! -e /tmp/failed ] || die "a request failed"
[ ! -e /tmp/undone ] || die "an older write came last: $(cat /tmp/undone)"
detach "$D"
kill $server
wait
