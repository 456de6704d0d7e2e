# Daemons that are killed while they start leave nothing that a new one could not clear away. STEPS: how many, each
# 15 ms later than the one before.
disk /tmp/disk.img 8M
step=0
while [ $step -lt $STEPS ]; do
    blockyard attach /tmp/disk.img $VIA --foreground >/tmp/path 2>&1 &
    daemon=$!
    usleep $((step * 15000))
    kill -9 $daemon
    step=$((step + 1))
done
# The first that is told of a device clears away what those before left; so does this.
blockyard list
blockyard detach --all --force
until_true no_users
attach /tmp/disk.img
dd if="$D" of=/dev/null bs=1M iflag=direct 2>/dev/null || die "it does not work"

# Killed as soon as it is ready.
for round in 1 2 3; do
    kill -9 "$(daemon_of "$N")"
    until_true sh -c "blockyard list | grep -q 'left behind'"
    [ "$(blockyard recover "$D")" = "$D" ] || die "not recovered"
    dd if="$D" of=/dev/null bs=1M iflag=direct 2>/dev/null || die "it does not work"
done

# One whose daemon died for good is let go, and what waits for it fails.
kill -9 "$(daemon_of "$N")"
dd if="$D" of=/dev/null bs=4k count=1 iflag=direct 2>/tmp/waiting &
waiting=$!
until_true sh -c "blockyard list | grep -q 'left behind'"
until_true sh -c "ls -l /proc/$waiting/fd | grep -q $D"
code 1 blockyard detach "$D"
code 75 blockyard detach "$D" --force
said "has $D open"
[ "$(blockyard recover "$D")" = "$D" ] || die "not recovered"
wait $waiting || die "what waited for the next daemon failed"
kill -9 "$(daemon_of "$N")"
until_true sh -c "blockyard list | grep -q 'left behind'"
blockyard detach "$D" --force
detached
