set -e
for export in ram0 disk; do
    for options in "" "-nonetlink" "-C 4"; do
        nbd-client -N $export $options 10.0.2.2 $PORT /dev/nbd0
        eventually check_attribute nbd0 size 131072
        # What the server offers, as the kernel understands it.
        check_attribute nbd0 ro 0
        check_attribute nbd0 queue/write_cache "write back"
        check_attribute nbd0 queue/fua 1
        check_attribute nbd0 queue/rotational 0
        test "$(cat /sys/block/nbd0/queue/discard_max_bytes)" -gt 0
        test "$(cat /sys/block/nbd0/queue/write_zeroes_max_bytes)" -gt 0
        test "$options" != "-C 4" || test "$(host 'how many clients?')" = 4
        check_file_system /dev/nbd0
        # Discards and flushes have gone to the server (Documentation/admin-guide/iostats.rst, fields 12 and 16).
        awk '$3 == "nbd0" { exit !($15 > 0 && $19 > 0) }' /proc/diskstats
        test "$options" != "-C 4" || test "$(host 'how much data is left?')" = none
        nbd-client -d /dev/nbd0
        eventually check_attribute nbd0 size 0
    done
done
no_disk_errors
