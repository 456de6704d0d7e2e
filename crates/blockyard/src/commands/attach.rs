//! `blockyard attach`, `detach` and `recover`: disks of ours as disks of the Linux kernel.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::attach::record::{self, Record};
use crate::attach::{self, LeftBehind, Order, Via, Wish, usage};
use crate::cli::{AttachArgs, DetachArgs, RecoverArgs};
use crate::control::Question;
use crate::control::client::{ask_one, is_alive};
use crate::error::{Error, ErrorKind, Result};
use crate::term;

/// How long a daemon that has detached its disk may take to end.
const LAST_BREATH: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

pub(super) fn attach(args: AttachArgs) -> Result<u8> {
    // A mistake is told here, not by a daemon.
    super::disk_uri(&args.uri)?;
    if args.log.is_none() {
        attach::clear_stillborn()?;
    }
    if !args.foreground {
        let mut again: Vec<OsString> = std::env::args_os().skip(1).collect();
        // Options are added at the end.
        again.retain(|arg| arg != "--");
        return attach::launch(&again, None);
    }
    let wish = Wish {
        uri: args.uri,
        via: args.via,
        number: args.number,
        read_only: args.read_only,
        threads: args.threads,
        depth: args.depth,
        connections: args.connections,
        timeout_seconds: args.timeout,
        dead_timeout_seconds: args.dead_conn_timeout,
    };
    attach::run(Order::Attach(wish), args.log)
}

pub(super) fn recover(args: RecoverArgs, verbose: u8) -> Result<u8> {
    let orphans = orphans()?;
    let wanted: Vec<&Record> = if args.devices.is_empty() {
        orphans.iter().collect()
    } else {
        args.devices.iter().map(|device| find_orphan(&orphans, device)).collect::<Result<_>>()?
    };
    if args.foreground {
        let [record] = wanted[..] else {
            let what = format!("in the foreground one device is recovered, not {}", wanted.len());
            return Err(Error::usage(what).help("name one, as /dev/ublkb0"));
        };
        return attach::run(Order::Recover(Box::new(record.clone())), args.log);
    }
    if wanted.is_empty() {
        term::tell("nothing to recover: no daemon has left an attached disk behind");
    }
    let mut worst = 0;
    for record in wanted {
        let mut again: Vec<OsString> = vec!["recover".into(), record.path().into()];
        again.extend((0..verbose).map(|_| "-v".into()));
        let code = attach::launch(&again, Some(&record.directory))?;
        worst = worst.max(code);
    }
    Ok(worst)
}

/// What is on record of daemons that died.
fn orphans() -> Result<Vec<Record>> {
    let left = attach::left_behind()?;
    let mut records = record::all()?;
    records.retain(|record| left.iter().any(|left| left.recoverable && left.path == record.path()));
    Ok(records)
}

fn find_orphan<'a>(orphans: &'a [Record], device: &str) -> Result<&'a Record> {
    let name = attach::device_name(device);
    if let Some(record) = orphans.iter().find(|record| record.device == name) {
        return Ok(record);
    }
    attach::parse_device(device)?;
    let alive = record::all()?
        .into_iter()
        .find(|record| record.device == name)
        .filter(|record| is_alive(record.pid).unwrap_or(false));
    Err(match alive {
        Some(record) => {
            let what = format!("the daemon {} of {} is alive", record.pid, record.path());
            Error::new(ErrorKind::Busy, what)
        }
        None => Error::failed(format!("there is nothing on record of {device}"))
            .help("blockyard list shows what can be recovered"),
    })
}

pub(super) fn detach(args: &DetachArgs) -> Result<()> {
    let left = attach::left_behind()?;
    let records = record::all()?;
    let mut wanted: Vec<String> = Vec::new();
    if args.all {
        wanted.extend(records.iter().map(Record::path));
        wanted.extend(left.iter().map(|left| left.path.clone()));
        wanted.sort();
        wanted.dedup();
    }
    for device in &args.devices {
        wanted.push(device_of(device, &records, &left)?);
    }
    let mut first = Ok(());
    for path in &wanted {
        let detached = detach_one(path, &records, &left, args.force);
        match (&first, detached) {
            (Ok(()), Err(err)) => first = Err(err),
            (Err(_), Err(err)) => term::tell_error(&err),
            (_, Ok(())) => {}
        }
    }
    first
}

/// The path of a device that is named so, or has that disk in it.
fn device_of(device: &str, records: &[Record], left: &[LeftBehind]) -> Result<String> {
    let name = attach::device_name(device);
    let by_name = records.iter().find(|record| record.device == name).map(Record::path);
    let by_left = || {
        let named = |left: &&LeftBehind| attach::device_name(&left.path) == name;
        left.iter().find(named).map(|left| left.path.clone())
    };
    if let Some(path) = by_name.or_else(by_left) {
        return Ok(path);
    }
    let with_uri: Vec<_> = records.iter().filter(|record| record.wish.uri == device).collect();
    match with_uri[..] {
        [record] => Ok(record.path()),
        [] => {
            attach::parse_device(device)?;
            Err(Error::failed(format!("{device} is not attached"))
                .help("blockyard list shows what is"))
        }
        _ => {
            let paths: Vec<_> = with_uri.iter().map(|record| record.path()).collect();
            let what = format!("{device} is attached more than once: {}", paths.join(", "));
            Err(Error::usage(what).help("name the device"))
        }
    }
}

fn detach_one(path: &str, records: &[Record], left: &[LeftBehind], force: bool) -> Result<()> {
    if let Some(left) = left.iter().find(|left| left.path == path) {
        if !force {
            let what = format!("the daemon of {path} has died");
            return Err(Error::failed(what).help(format!(
                "run: blockyard recover {path}, then detach it; or add --force, and lose what was not written yet"
            )));
        }
        return attach::remove(left);
    }
    let Some(record) = records.iter().find(|record| record.path() == path) else {
        return Err(Error::failed(format!("{path} is not attached")));
    };
    // From here on nobody can mount it.
    let claim = usage::claim(path, record.pid)?;
    match usage::settle(path, &claim) {
        Err(err) if force => term::tell_error(&err),
        settled => settled?,
    }
    // Before it is asked: it may be gone before its answer is read.
    let daemon = i32::try_from(record.pid).ok().and_then(Pid::from_raw);
    let daemon = daemon.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    // It may end before its answer is through.
    if let Ok(Some(answer)) = ask_one(record.pid, &Question::Detach) {
        let failed = |err: Error| Error::failed(format!("cannot detach {path}")).caused_by(err);
        answer.accepted().map_err(failed)?;
    }
    drop(claim);
    if let Some(daemon) = daemon {
        let limit = Timespec::try_from(LAST_BREATH).ok();
        let ended = poll(&mut [PollFd::new(&daemon, PollFlags::IN)], limit.as_ref());
        if ended.is_ok_and(|count| count == 0) {
            let what = format!("the daemon {} of {path} does not end", record.pid);
            return Err(Error::failed(what));
        }
    }
    wait_until_gone(path, record.via)?;
    // A daemon that ended well has taken it off record.
    if record::all()?.iter().any(|left| left.path() == path && left.mark == record.mark) {
        return Err(Error::failed(format!("{path} is still attached: its daemon died"))
            .help(format!("blockyard recover {path}")));
    }
    Ok(())
}

/// The driver removes a device some time after it was told to, when all who had it open have closed it.
fn wait_until_gone(path: &str, via: Via) -> Result<()> {
    if via != Via::Ublk {
        return Ok(());
    }
    let end = Instant::now() + LAST_BREATH;
    while usage::exists(path) || usage::exists(&path.replace("ublkb", "ublkc")) {
        if Instant::now() > end {
            return Err(Error::failed(format!("{path} does not go away: somebody has it open")));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Opens a device and closes it again: the kernel looks for partitions then.
pub(super) fn look_at(device: &Path) -> Result<()> {
    let opened = std::fs::File::open(device);
    opened.map(drop).map_err(|err| {
        Error::failed(format!("{} cannot be opened", device.display())).caused_by(err)
    })
}
