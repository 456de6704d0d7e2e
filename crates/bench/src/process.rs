//! What a process has used, from /proc.

use anyhow::{Context, Result, bail};
use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use xtask::run::shown;

/// How often a process is looked at while it runs.
const LOOK: Duration = Duration::from_millis(50);
/// Of `/proc/net/tcp`: the state of a connection that is open.
const ESTABLISHED: &str = "01";

/// CPU time of all threads of a process, those that ended too; the kernel rounds it to hundredths of a second.
pub(super) fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = read(pid, "stat")?;
    let ticks = cpu_ticks(&stat).with_context(|| format!("cannot understand /proc/{pid}/stat"))?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// CPU time of the processes that this one has started and waited for, with those that they have waited for.
pub(super) fn cpu_time_of_ended() -> Result<Duration> {
    let pid = std::process::id();
    let stat = read(pid, "stat")?;
    let ticks =
        cpu_ticks_of_ended(&stat).with_context(|| format!("cannot understand /proc/{pid}/stat"))?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// cutime + cstime, which follow on utime and stime.
fn cpu_ticks_of_ended(stat: &str) -> Option<u64> {
    two_words(stat, 13)
}

/// utime + stime: the 12th and 13th word after the name, which is in parentheses and may hold any character.
fn cpu_ticks(stat: &str) -> Option<u64> {
    two_words(stat, 11)
}

/// The sum of two words after the name and so many others.
fn two_words(stat: &str, skip: usize) -> Option<u64> {
    let mut words = stat.rsplit_once(')')?.1.split_whitespace().skip(skip);
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

/// What a process used from its start to its end.
#[derive(Clone, Debug)]
pub(super) struct Usage {
    /// CPU time for each second of the middle half of its life: how it began and ended is not in there.
    pub cpus: f64,
    /// The most resident memory, in KiB.
    pub peak_kib: u64,
    /// The most threads.
    pub threads: u64,
    /// The ports that it was connected to, each as often as there were connections: at most at the same time.
    pub peer_ports: Vec<u16>,
}

/// A look at a process.
struct Look {
    at: Instant,
    on_cpu: Duration,
    peak_kib: u64,
    threads: u64,
    peer_ports: Vec<u16>,
}

/// Runs a command to its end, and looks at it meanwhile: what it wrote to stdout, and what it used.
///
/// # Errors
/// It cannot be started, fails, or ends too soon to be seen; what it wrote to stderr is part of the error.
pub(super) fn watch(command: &mut Command) -> Result<(String, Usage)> {
    let name = shown(command);
    let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().with_context(|| format!("cannot start `{name}`"))?;
    let (said, complaint) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let (looks, status) = look_on(&mut child)?;
    let text = |collected: thread::JoinHandle<String>| collected.join().unwrap_or_default();
    let (said, complaint) = (text(said), text(complaint));
    if !status.success() {
        bail!("`{name}` failed: {status}\n{}", complaint.trim_end());
    }
    let usage = summarize(&looks).with_context(|| format!("`{name}` ended too soon"))?;
    Ok((said, usage))
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is all that there is to show.
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn look_on(child: &mut Child) -> Result<(Vec<Look>, std::process::ExitStatus)> {
    let mut looks = Vec::new();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((looks, status));
        }
        // It ends when it likes, also in the middle of a look.
        looks.extend(look(child.id()).ok());
        thread::sleep(LOOK);
    }
}

fn look(pid: u32) -> Result<Look> {
    let (at, on_cpu) = (Instant::now(), activity(pid)?.on_cpu);
    let status = read(pid, "status")?;
    let number = |name| field(&status, name).with_context(|| format!("status has no {name}"));
    let (peak_kib, threads) = (number("VmHWM")?, number("Threads")?);
    Ok(Look { at, on_cpu, peak_kib, threads, peer_ports: peer_ports(pid)? })
}

fn summarize(looks: &[Look]) -> Option<Usage> {
    let (first, last) = (looks.get(looks.len() / 4)?, looks.get(looks.len() * 3 / 4)?);
    let time = last.at.duration_since(first.at);
    let spent = last.on_cpu.saturating_sub(first.on_cpu);
    Some(Usage {
        cpus: (time > Duration::ZERO).then(|| spent.as_secs_f64() / time.as_secs_f64())?,
        peak_kib: looks.iter().map(|look| look.peak_kib).max()?,
        threads: looks.iter().map(|look| look.threads).max()?,
        peer_ports: looks.iter().map(|look| &look.peer_ports).max_by_key(|it| it.len())?.clone(),
    })
}

/// The ports at the other ends of a process's TCP connections (IPv4).
fn peer_ports(pid: u32) -> Result<Vec<u16>> {
    let files = fs::read_dir(format!("/proc/{pid}/fd"))?;
    // A file may be closed since it was listed.
    let links = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    let sockets: Vec<_> =
        links.filter_map(|link| socket_inode(link.to_str()?).map(str::to_owned)).collect();
    let table = read(pid, "net/tcp")?;
    let open = table.lines().filter_map(established);
    let own = open.filter(|(_, inode)| sockets.iter().any(|socket| socket == inode));
    Ok(own.map(|(port, _)| port).collect())
}

fn socket_inode(link: &str) -> Option<&str> {
    link.strip_prefix("socket:[")?.strip_suffix(']')
}

/// The peer's port and the inode in a line of `/proc/net/tcp`, if the connection is open (Linux:
/// `Documentation/networking/proc_net_tcp.rst`).
fn established(line: &str) -> Option<(u16, &str)> {
    let words: Vec<_> = line.split_whitespace().collect();
    let (peer, state, inode) = (words.get(2)?, words.get(3)?, words.get(9)?);
    let port = u16::from_str_radix(peer.split_once(':')?.1, 16).ok()?;
    (*state == ESTABLISHED).then_some((port, *inode))
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
        assert_eq!(cpu_ticks_of_ended(stat), Some(0));
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
        assert!(cpu_time(own).is_ok() && cpu_time_of_ended().is_ok());
        assert!(cpu_time(u32::MAX).is_err());
    }

    #[test]
    fn connections_are_told_from_sockets_that_listen() {
        let line = |state| {
            format!(
                "1: 0100007F:9C40 0100007F:1A85 {state} 00000000:00000000 00:00000000 00000000 0 0 4711 1"
            )
        };
        assert_eq!(established(&line("01")), Some((0x1a85, "4711")));
        assert_eq!(established(&line("0A")), None);
        assert_eq!(socket_inode("socket:[4711]"), Some("4711"));
        assert_eq!(socket_inode("pipe:[4711]"), None);
    }

    #[test]
    fn a_command_is_watched_to_its_end() {
        let script = "i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done; echo done";
        let (said, usage) = watch(Command::new("sh").args(["-c", script])).unwrap();
        assert_eq!(said, "done\n");
        assert!(usage.threads == 1 && usage.peak_kib > 0 && usage.peer_ports.is_empty());
        let failed = watch(Command::new("sh").args(["-c", "echo no such pool >&2; exit 3"]));
        assert!(failed.unwrap_err().to_string().contains("no such pool"));
    }
}
