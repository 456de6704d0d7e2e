//! What a process has used, from /proc.

use anyhow::{Context, Result};
use std::fs;
use std::time::Duration;

/// CPU time of all threads of a process, those that ended too; the kernel rounds it to hundredths of a second.
pub(super) fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = read(pid, "stat")?;
    let ticks = cpu_ticks(&stat).with_context(|| format!("cannot understand /proc/{pid}/stat"))?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// utime + stime: the 12th and 13th word after the name, which is in parentheses and may hold any character.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut words = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = words.next()?.parse().ok()?;
    let system: u64 = words.next()?.parse().ok()?;
    Some(user + system)
}

/// What the threads of a process that are alive have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Activity {
    /// Time on a CPU, to the nanosecond.
    pub on_cpu: Duration,
    /// How often a thread went to sleep on its own.
    pub sleeps: u64,
}

/// The activity of all threads so far.
pub(super) fn activity(pid: u32) -> Result<Activity> {
    let mut total = Activity::default();
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .with_context(|| format!("process {pid} is gone"))?;
    for task in tasks {
        let task = task?.path();
        let (schedstat, status) = match (
            fs::read_to_string(task.join("schedstat")),
            fs::read_to_string(task.join("status")),
        ) {
            (Ok(schedstat), Ok(status)) => (schedstat, status),
            // A thread that ended since it was listed.
            (Err(err), _) | (_, Err(err)) if is_gone(&err) => continue,
            (Err(err), _) | (_, Err(err)) => return Err(err.into()),
        };
        let on_cpu = schedstat.split_whitespace().next().and_then(|word| word.parse().ok());
        total.on_cpu += Duration::from_nanos(on_cpu.context("cannot understand schedstat")?);
        total.sleeps += field(&status, "voluntary_ctxt_switches")
            .context("status has no voluntary_ctxt_switches")?;
    }
    Ok(total)
}

/// Whether what was to be read of a thread in /proc is no more: ENOENT before it is opened, ESRCH after.
fn is_gone(err: &std::io::Error) -> bool {
    err.kind() == std::io::ErrorKind::NotFound || err.raw_os_error() == Some(3)
}

/// Resident memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    /// Now, in KiB.
    pub resident_kib: u64,
    /// At most so far, in KiB.
    pub peak_kib: u64,
}

/// The memory of a process.
pub(super) fn memory(pid: u32) -> Result<Memory> {
    let status = read(pid, "status")?;
    let kib =
        |name| field(&status, name).with_context(|| format!("/proc/{pid}/status has no {name}"));
    Ok(Memory { resident_kib: kib("VmRSS")?, peak_kib: kib("VmHWM")? })
}

/// The first number of a line `name: number`.
fn field(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}

fn read(pid: u32, file: &str) -> Result<String> {
    fs::read_to_string(format!("/proc/{pid}/{file}"))
        .with_context(|| format!("process {pid} is gone"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_is_no_trouble() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 100 23 0 0 20 0 1 0 5 6 7";
        assert_eq!(cpu_ticks(stat), Some(123));
        assert_eq!(cpu_ticks("7 (x) S 1"), None);
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let status = "VmHWM:\t  200 kB\nVmRSS:\t 100 kB\nnonvoluntary_ctxt_switches:\t9\nvoluntary_ctxt_switches:\t3\n";
        assert_eq!(field(status, "VmRSS"), Some(100));
        assert_eq!(field(status, "voluntary_ctxt_switches"), Some(3));
        assert_eq!(field(status, "Vm"), None);
    }

    #[test]
    fn our_own_figures_can_be_read() {
        let own = std::process::id();
        let memory = memory(own).unwrap();
        assert!(memory.peak_kib >= memory.resident_kib && memory.resident_kib > 0);
        assert!(activity(own).unwrap().on_cpu > Duration::ZERO);
        assert!(cpu_time(own).is_ok());
        assert!(cpu_time(u32::MAX).is_err());
    }
}
