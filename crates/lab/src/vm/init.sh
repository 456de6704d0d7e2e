#!/bin/busybox sh
# The first process of a guest: it prepares the system, runs the script, tells the host how that ended.
export PATH=/bin HOME=/
/bin/busybox --install -s /bin 2>/dev/null
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run

# A guest whose host is gone ends by itself.
(sleep "$LAB_LIMIT"; poweroff -f) &

# The port appears some time after its device, whose number depends on the others.
while port=$(echo /dev/vport*p1); ! [ -e "$port" ]; do sleep 0.05; done
exec 9<>"$port"

for module in /modules/*.ko; do
    if ! insmod "$module"; then
        echo "fail cannot load ${module##*/}" >&9
        poweroff -f
    fi
done
ip addr add 127.0.0.1/8 dev lo
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2

sh -c '. /lab.sh; . /script' </dev/null
echo "exit $?" >&9
poweroff -f
