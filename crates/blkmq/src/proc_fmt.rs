//! Text as Linux 6 prints it in `/proc/diskstats` and `/proc/partitions`, so that the tools that read these
//! read ours.

use std::fmt;

use crate::major::DevNum;
use crate::op::StatGroup;
use crate::stats::{Counters, QueueStats};
use crate::units::Sector;

/// A line of `/proc/diskstats` (kernel: `diskstats_show` in `block/genhd.c`,
/// Documentation/admin-guide/iostats.rst).
///
/// Shown without the final newline. As in the kernel, times wrap at 2^32 milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct DiskstatsRow<'a> {
    /// The device.
    pub dev: DevNum,
    /// Its name.
    pub name: &'a str,
    /// What was counted, in the order of [`StatGroup::ALL`].
    pub groups: [Counters; StatGroup::COUNT],
    /// Requests under way.
    pub in_flight: u64,
    /// Milliseconds with a request under way.
    pub busy_ms: u64,
}

impl<'a> DiskstatsRow<'a> {
    /// The line of a device with these statistics.
    #[must_use]
    pub fn new(dev: DevNum, name: &'a str, stats: &QueueStats, busy_ms: u64) -> Self {
        let groups = StatGroup::ALL.map(|group| *stats.counters(group));
        Self { dev, name, groups, in_flight: stats.in_flight().iter().sum(), busy_ms }
    }
}

impl fmt::Display for DiskstatsRow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [read, write, discard, flush] = &self.groups;
        write!(f, "{:4} {:7} {}", self.dev.major, self.dev.minor, self.name)?;
        group(f, read)?;
        group(f, write)?;
        let all = self.groups.iter().fold(0u64, |sum, counters| sum.wrapping_add(counters.nsecs));
        write!(f, " {} {} {}", self.in_flight, wrap(self.busy_ms), msecs(all))?;
        group(f, discard)?;
        write!(f, " {} {}", flush.ios, msecs(flush.nsecs))
    }
}

fn group(f: &mut fmt::Formatter<'_>, counters: &Counters) -> fmt::Result {
    let Counters { ios, merges, sectors, nsecs } = *counters;
    write!(f, " {ios} {merges} {sectors} {}", msecs(nsecs))
}

fn msecs(nsecs: u64) -> u64 {
    wrap(nsecs / 1_000_000)
}

/// The kernel shows an `unsigned int`.
const fn wrap(msecs: u64) -> u64 {
    msecs & u32::MAX as u64
}

/// What `/proc/partitions` starts with (kernel: `show_partition_start`).
pub const PARTITIONS_HEADER: &str = "major minor  #blocks  name\n";

/// A line of `/proc/partitions` (kernel: `show_partition`). Shown without the final newline.
#[derive(Clone, Copy, Debug)]
pub struct PartitionsRow<'a> {
    /// The device.
    pub dev: DevNum,
    /// How large it is; shown in blocks of 1024 bytes, rounded down.
    pub capacity: Sector,
    /// Its name.
    pub name: &'a str,
}

impl fmt::Display for PartitionsRow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dev, capacity, name } = self;
        write!(f, "{:4}  {:7} {:10} {name}", dev.major, dev.minor, capacity.0 / 2)
    }
}

/// All of `/proc/partitions`: the header, an empty line, the rows. Without rows it is empty, as the kernel's
/// is.
#[must_use]
pub fn partitions(rows: &[PartitionsRow<'_>]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let lines = rows.iter().map(|row| format!("{row}\n"));
    format!("{PARTITIONS_HEADER}\n") + &lines.collect::<String>()
}

/// All of `/proc/diskstats`.
#[must_use]
pub fn diskstats(rows: &[DiskstatsRow<'_>]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(ios: u64, merges: u64, sectors: u64, msecs: u64) -> Counters {
        Counters { ios, merges, sectors, nsecs: msecs * 1_000_000 + 999 }
    }

    #[test]
    fn diskstats_is_what_linux_6_prints() {
        let loop0 = DiskstatsRow {
            dev: DevNum { major: 7, minor: 0 },
            name: "loop0",
            groups: [Counters::default(); StatGroup::COUNT],
            in_flight: 0,
            busy_ms: 0,
        };
        let vda = DiskstatsRow {
            dev: DevNum { major: 254, minor: 0 },
            name: "vda",
            groups: [
                counters(35913, 8826, 5_582_458, 15114),
                counters(9643, 24024, 5_828_792, 27476),
                counters(5774, 94, 343_520, 473),
                counters(1104, 0, 0, 59),
            ],
            in_flight: 2,
            busy_ms: 9240,
        };
        // Lines of a Linux 6.18; the sum of times is of the parts here, the count under way is 2 instead of 0.
        assert_eq!(
            diskstats(&[loop0, vda]),
            "   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n \
             254       0 vda 35913 8826 5582458 15114 9643 24024 5828792 27476 2 9240 43122 5774 94 343520 473 1104 59\n"
        );
    }

    #[test]
    fn a_line_has_twenty_fields_made_of_the_statistics() {
        let mut stats = QueueStats::new();
        stats.start(crate::op::Op::Read);
        let row = DiskstatsRow::new(DevNum { major: 259, minor: 1_048_575 }, "x", &stats, 1 << 32);
        let line = row.to_string();
        assert_eq!(line.split_whitespace().count(), 20);
        assert_eq!(
            line, " 259 1048575 x 0 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0",
            "times wrap as theirs do"
        );
    }

    #[test]
    fn partitions_is_what_linux_6_prints() {
        let vda = PartitionsRow {
            dev: DevNum { major: 254, minor: 0 },
            capacity: Sector(536_870_912),
            name: "vda",
        };
        let odd = PartitionsRow {
            dev: DevNum { major: 8, minor: 17 },
            capacity: Sector(5),
            name: "sdb1",
        };
        assert_eq!(
            partitions(&[vda, odd]),
            "major minor  #blocks  name\n\n 254        0  268435456 vda\n   8       17          2 sdb1\n"
        );
        assert_eq!(partitions(&[]), "");
    }

    #[test]
    fn the_widths_are_those_of_the_running_kernel() {
        // Every line of the machine's own files that can be read back is printed the same.
        let Ok(text) = std::fs::read_to_string("/proc/partitions") else { return };
        for line in text.lines().skip(2) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let &[major, minor, blocks, name] = fields.as_slice() else { continue };
            let number = |text: &str| text.parse::<u32>().unwrap();
            let dev = DevNum { major: number(major), minor: number(minor) };
            let capacity = Sector(blocks.parse::<u64>().unwrap() * 2);
            assert_eq!(PartitionsRow { dev, capacity, name }.to_string(), line);
        }
    }
}
