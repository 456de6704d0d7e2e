//! `blockyard attach`, `detach` and `recover`: disks of ours as disks of the Linux kernel.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blockyard_sys::block_device;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, getppid, pidfd_open, set_parent_process_death_signal,
};

use crate::api::client::{Ask, ask_one, escaped};
use crate::attach::record::Record;
use crate::attach::store::{Store, Stored, Unreadable};
use crate::attach::{self, Fate, Launched, LeftBehind, Order, Standing, Survey, Via, Wish, usage};
use crate::cli::{AttachArgs, DetachArgs, RecoverArgs};
use crate::disks::DiskPlan;
use crate::disks::identity::DiskIdentity;
use crate::error::{Error, ErrorKind, Result};
use crate::text::term;
use crate::yard::report::DeviceReport;

/// So long an nbd device waits for the next daemon, unless told otherwise.
const DEAD_CONN_TIMEOUT_SECONDS: u64 = 300;
/// How long a daemon that has detached its disk may take to end.
const LAST_BREATH: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

pub(super) fn attach(args: AttachArgs, verbose: u8) -> Result<u8> {
    // A mistake is told here, not by a daemon.
    let plan = super::disk_uri(&args.uri)?;
    if args.log.is_none() {
        attach::clear_unused()?;
    }
    if let Some(orphan) = attached_before(&args, &plan, attach::on_record()?)? {
        agree(&args, &orphan)?;
        let (path, uri) = (orphan.path(), &orphan.wish.uri);
        term::tell(format_args!(
            "{uri} was attached as {path} by a daemon that has died; recovering it"
        ));
        return recover_one(orphan, args.foreground, args.log, verbose);
    }
    let wish = Wish {
        uri: args.uri,
        via: args.via,
        number: args.number,
        read_only: args.read_only,
        threads: args.threads,
        depth: args.depth.unwrap_or(attach::DEFAULT_DEPTH),
        connections: args.connections.unwrap_or(1),
        timeout_seconds: args.timeout,
        dead_timeout_seconds: args.dead_conn_timeout.unwrap_or(DEAD_CONN_TIMEOUT_SECONDS),
        hand_over: args.hand_over,
    };
    if wish.via == Some(Via::Nbd) {
        attach::check_times(&wish, plan.fence())?;
    }
    if !args.foreground {
        let mut again: Vec<OsString> = std::env::args_os().skip(1).collect();
        // Options are added at the end.
        again.retain(|arg| arg != "--");
        return attach::launch(&again, None)?.wait();
    }
    attach::run(Order::Attach(wish), args.log)
}

/// What was left behind of a disk that is to be attached.
///
/// # Errors
/// It is attached already. What was left behind cannot be recovered: there is another disk in its place now, or none, as where
/// a file system is not mounted yet; nothing is made there.
fn attached_before(
    args: &AttachArgs,
    plan: &DiskPlan,
    on_record: Vec<(Record, Standing)>,
) -> Result<Option<Record>> {
    // One that cannot be looked at is none that was attached, unless it is in the place of one; opening it says why.
    let identity = DiskIdentity::of(plan);
    for (record, standing) in on_record {
        let before = record.wish.uri.parse::<DiskPlan>().ok();
        let is_it = identity.as_ref().is_ok_and(|found| record.identity.same_disk(found));
        let is_there =
            || before.as_ref().is_some_and(|before| is_in_place_of(plan, before, &record));
        let (path, uri) = (record.path(), &args.uri);
        match standing {
            Standing::Served if is_it => {
                let read_only = before.as_ref().is_some_and(|before| before.options.read_only);
                // Those who only read are in nobody's way.
                if (args.read_only || plan.options.read_only)
                    && (record.wish.read_only || read_only)
                {
                    continue;
                }
                let what = format!("{uri} is already attached as {path} by {}", record.pid);
                return Err(Error::new(ErrorKind::Busy, what));
            }
            Standing::Left(Fate::Recoverable) if is_it => return Ok(Some(record)),
            Standing::Left(Fate::Recoverable) if is_there() => {
                let failed = |err| Error::failed(format!("cannot recover {path}")).caused_by(err);
                attach::check_identity(&record, &DiskIdentity::of(plan).map_err(failed)?)?;
                return Ok(Some(record));
            }
            Standing::Left(Fate::Unknown) if is_it || is_there() => {
                let what = format!(
                    "{uri} was attached as {path} by a daemon that has died, and its state is unknown"
                );
                return Err(Error::failed(what).help("see why: blockyard list"));
            }
            _ => {}
        }
    }
    Ok(None)
}

/// Whether a plan leads to where the disk on record was, whatever is there now.
fn is_in_place_of(plan: &DiskPlan, before: &DiskPlan, record: &Record) -> bool {
    match (plan.source.file(), before.source.file()) {
        (Some(path), Some(before)) => {
            let before = record.directory.join(before);
            std::path::absolute(path).is_ok_and(|path| path == before)
        }
        _ => false,
    }
}

/// What was left behind is what is wanted: nothing that is asked for is silently left out.
fn agree(args: &AttachArgs, orphan: &Record) -> Result<()> {
    let wish = &orphan.wish;
    let differs =
        |asked: Option<u64>, has: Option<u64>| asked.is_some_and(|asked| has != Some(asked));
    let options = [
        ("--number", args.number.is_some_and(|number| number != orphan.number)),
        ("--via", args.via.is_some_and(|via| via != orphan.via)),
        ("--read-only", args.read_only != wish.read_only),
        ("--threads", differs(args.threads.map(u64::from), wish.threads.map(u64::from))),
        ("--depth", differs(args.depth.map(u64::from), Some(wish.depth.into()))),
        ("--connections", differs(args.connections.map(u64::from), Some(wish.connections.into()))),
        ("--kernel-timeout", differs(args.timeout, wish.timeout_seconds)),
        (
            "--kernel-dead-conn-timeout",
            differs(args.dead_conn_timeout, Some(wish.dead_timeout_seconds)),
        ),
        ("--hand-over", args.hand_over && !wish.hand_over),
    ];
    let option = options.iter().find(|(_, differs)| *differs).map(|(name, _)| (*name).to_owned());
    let Some(option) = option.or_else(|| new_option(&args.uri, &wish.uri)) else { return Ok(()) };
    let path = orphan.path();
    let what = format!(
        "{} is still attached as {path} by a daemon that has died, and {option} does not match",
        args.uri
    );
    Err(Error::failed(what).help(format!(
        "run: blockyard recover {path}; to change its settings, then detach and attach it"
    )))
}

/// An option in a URI that is not in the one before it. Where the disk is, and that it may be made, has been seen to.
fn new_option(uri: &str, before: &str) -> Option<String> {
    let options = |uri: &str| -> Vec<String> {
        // A path has no options.
        let query = uri.split_once(':').and_then(|(_, rest)| rest.split_once('?'));
        let options = query.map_or("", |(_, query)| query).split('&');
        options.filter(|option| !option.is_empty()).map(str::to_owned).collect()
    };
    let before = options(before);
    let matters = |option: &String| {
        let key = option.split('=').next().unwrap_or_default();
        !matches!(key, "socket" | "create") && !before.contains(option)
    };
    options(uri).into_iter().find(matters)
}

pub(super) fn recover(args: &RecoverArgs, verbose: u8) -> Result<u8> {
    let mut orphans = attach::orphans()?;
    if !args.devices.is_empty() {
        let found = args.devices.iter().map(|device| find_orphan(&orphans, device).cloned());
        orphans = found.collect::<Result<_>>()?;
    }
    if args.foreground {
        let count = orphans.len();
        let Ok([orphan]) = <[Record; 1]>::try_from(orphans) else {
            let what = format!("--foreground recovers one device, not {count}");
            return Err(Error::usage(what).help("name one, e.g. /dev/ublkb0"));
        };
        return recover_one(orphan, true, args.log.clone(), verbose);
    }
    if orphans.is_empty() {
        term::tell("nothing to recover");
    }
    recover_all(&orphans, |orphan| launch_for(orphan, verbose), Launched::wait)
}

/// The kernel's patience with each of them is running: none waits for another, and none is left because another fails.
fn recover_all<T>(
    orphans: &[Record],
    launch: impl FnMut(&Record) -> Result<T>,
    mut wait: impl FnMut(T) -> Result<u8>,
) -> Result<u8> {
    let launched: Vec<_> = orphans.iter().map(launch).collect();
    worst_of(launched.into_iter().map(|launched| launched.and_then(&mut wait)))
}

/// Each is done, whatever becomes of the others: the first error, after the others are told, or the largest exit code.
fn worst_of(all: impl Iterator<Item = Result<u8>>) -> Result<u8> {
    let (mut worst, mut first) = (0, None);
    for one in all {
        match (one, &first) {
            (Ok(code), _) => worst = worst.max(code),
            (Err(err), None) => first = Some(err),
            (Err(err), Some(_)) => term::tell_error(&err),
        }
    }
    first.map_or(Ok(worst), Err)
}

fn recover_one(orphan: Record, foreground: bool, log: Option<PathBuf>, verbose: u8) -> Result<u8> {
    if foreground {
        return attach::run(Order::Recover(Box::new(orphan)), log);
    }
    launch_for(&orphan, verbose)?.wait()
}

/// Starts the daemon that goes on with a device.
fn launch_for(orphan: &Record, verbose: u8) -> Result<Launched> {
    let mut again: Vec<OsString> = vec!["recover".into(), orphan.path().into()];
    again.extend((0..verbose).map(|_| "-v".into()));
    attach::launch(
        &again,
        Some(&orphan.directory).filter(|directory| directory.is_dir()).map(PathBuf::as_path),
    )
}

fn find_orphan<'a>(orphans: &'a [Record], device: &str) -> Result<&'a Record> {
    let name = attach::device_name(device);
    if let Some(record) = orphans.iter().find(|record| record.device == name) {
        return Ok(record);
    }
    attach::parse_device(device)?;
    let left = attach::survey()?.left;
    if let Some(unknown) = left
        .iter()
        .find(|left| left.fate == Fate::Unknown && attach::device_name(&left.path) == name)
    {
        return Err(cannot_tell(unknown));
    }
    let contents = Store::open()?.read()?;
    if let Some(Stored { record, is_served }) =
        contents.records.into_iter().find(|stored| stored.record.device == name)
    {
        let path = record.path();
        return Err(if is_served {
            Error::new(ErrorKind::Busy, format!("the daemon {} of {path} is alive", record.pid))
        } else {
            let what = format!(
                "the contents of {} are lost: they were in the memory of the daemon of {path}, which has died",
                record.wish.uri
            );
            Error::failed(what).help(format!("run: blockyard detach --force {path}"))
        });
    }
    check_readable(name, &contents.unreadable)?;
    Err(Error::failed(format!("no attach record for {device}"))
        .help("list attached devices: blockyard list"))
}

/// Nothing is done to what the kernel does not tell of.
fn cannot_tell(left: &LeftBehind) -> Error {
    let what = format!("the state of {} is unknown", left.path);
    Error::failed(what).caused_by(Error::failed(left.why.clone().unwrap_or_default()))
}

/// A device whose record is not understood is somebody's.
fn check_readable(name: &str, unreadable: &[Unreadable]) -> Result<()> {
    let Some(found) = unreadable.iter().find(|unreadable| unreadable.device == name) else {
        return Ok(());
    };
    let what = format!("the record {} is unreadable: {}", found.path.display(), found.why);
    Err(Error::failed(what).help("use the version of Blockyard that attached the device"))
}

pub(super) fn detach(args: &DetachArgs) -> Result<()> {
    if let Some(daemon) = args.for_daemon {
        end_with(daemon)?;
    }
    let left = attach::survey()?;
    let contents = Store::open()?.read()?;
    let records: Vec<Record> = contents.records.into_iter().map(|stored| stored.record).collect();
    let mut wanted: Vec<String> = Vec::new();
    if args.all {
        wanted.extend(records.iter().map(Record::path));
        wanted.extend(left.left.iter().map(|left| left.path.clone()));
        wanted.sort();
        wanted.dedup();
    }
    for device in &args.devices {
        check_readable(attach::device_name(device), &contents.unreadable)?;
        wanted.push(device_of(device, &records, &left)?);
    }
    let detach = |path: &String| detach_one(path, &records, &left.left, args.force).map(|()| 0);
    worst_of(wanted.iter().map(detach)).map(drop)
}

/// What a daemon has begun ends with it: another may serve the device then.
fn end_with(daemon: u32) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|err| Error::failed("cannot exit with the daemon").caused_by(err))?;
    let parent = getppid().map(|parent| parent.as_raw_nonzero().get().unsigned_abs());
    if parent == Some(daemon) { Ok(()) } else { Err(Error::failed("the daemon has exited")) }
}

/// The path of a device that is named so, or has that disk in it.
fn device_of(device: &str, records: &[Record], survey: &Survey) -> Result<String> {
    let name = attach::device_name(device);
    let by_name = records.iter().find(|record| record.device == name).map(Record::path);
    let by_left = || {
        let named = |left: &&LeftBehind| attach::device_name(&left.path) == name;
        survey.left.iter().find(named).map(|left| left.path.clone())
    };
    if let Some(path) = by_name.or_else(by_left) {
        return Ok(path);
    }
    if survey.elsewhere.iter().any(|path| attach::device_name(path) == name) {
        let what = format!("{device} has no attach record here, but may be in use");
        return Err(Error::failed(what)
            .help("use the runtime directory (BLOCKYARD_RUNTIME_DIR), or the container, that the device was attached in"));
    }
    let with_disk = having(device, records);
    match with_disk[..] {
        [record] => Ok(record.path()),
        [] => {
            attach::parse_device(device)?;
            Err(Error::failed(format!("{device} is not attached"))
                .help("list attached devices: blockyard list"))
        }
        _ => {
            let paths: Vec<_> = with_disk.iter().map(|record| record.path()).collect();
            let what = format!("{device} is attached more than once: {}", paths.join(", "));
            Err(Error::usage(what).help("name a device instead of the disk"))
        }
    }
}

/// The records of that disk, however it is called; those of memory are told apart by their URI alone.
fn having<'a>(uri: &str, records: &'a [Record]) -> Vec<&'a Record> {
    let identity = super::disk_uri(uri).and_then(|plan| DiskIdentity::of(&plan)).ok();
    let is_it = |record: &&Record| match &identity {
        Some(identity) if !identity.is_volatile() => record.identity.same_disk(identity),
        _ => record.wish.uri == uri,
    };
    records.iter().filter(is_it).collect()
}

fn detach_one(path: &str, records: &[Record], left: &[LeftBehind], force: bool) -> Result<()> {
    if let Some(left) = left.iter().find(|left| left.path == path) {
        if left.fate == Fate::Unknown {
            return Err(cannot_tell(left));
        }
        if force || left.fate == Fate::Unused {
            return attach::remove(left);
        }
        let what = format!("the daemon of {path} has died");
        return Err(Error::failed(what).help(match left.fate {
            Fate::Recoverable => format!(
                "run: blockyard recover {path}; or detach it with --force, which loses unwritten data"
            ),
            _ => "add --force; the contents of the disk are lost".into(),
        }));
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
    let mark = DeviceReport::told_mark(record.mark);
    // It may end before its answer is through.
    let question = Ask::delete(format!("/v1/devices/{}?mark={mark}", escaped(&record.device)));
    if let Ok(Some(answer)) = ask_one(record.pid, &question) {
        let failed = |err: Error| Error::failed(format!("cannot detach {path}")).caused_by(err);
        answer.accepted().map_err(failed)?;
    }
    drop(claim);
    if let Some(daemon) = daemon {
        let limit = Timespec::try_from(LAST_BREATH).ok();
        let ended = poll(&mut [PollFd::new(&daemon, PollFlags::IN)], limit.as_ref());
        if ended.is_ok_and(|count| count == 0) {
            let what = format!("the daemon {} of {path} does not exit", record.pid);
            return Err(Error::failed(what));
        }
    }
    wait_until_gone(record)?;
    // A daemon that ended well has taken it off record.
    let contents = Store::open()?.read()?;
    if contents.records.iter().any(|stored| stored.record.mark == record.mark) {
        return Err(Error::failed(format!("{path} is still attached, but its daemon has died"))
            .help(format!("run: blockyard recover {path}")));
    }
    Ok(())
}

/// The driver removes a device some time after it was told to, when all who had it open have closed it.
fn wait_until_gone(record: &Record) -> Result<()> {
    let (path, number) = (&*record.path(), record.number);
    if record.via != Via::Ublk {
        return Ok(());
    }
    let end = Instant::now() + LAST_BREATH;
    let failed =
        |err| Error::failed(format!("cannot check whether {path} still exists")).caused_by(err);
    while usage::has_disk(path)
        .and_then(|has_disk| Ok(has_disk || attach::has_ublk_device(number)?))
        .map_err(failed)?
    {
        if Instant::now() > end {
            return Err(Error::failed(format!("{path} is still open in another process")));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Opens a device and closes it again: the kernel looks for partitions then. It may be told meanwhile to refuse writes.
pub(super) fn look_at(device: &Path, read_only: Option<bool>) -> Result<()> {
    let look = || {
        let file = std::fs::File::open(device)?;
        read_only.map_or(Ok(()), |read_only| block_device::set_read_only(file.as_fd(), read_only))
    };
    look().map_err(|err| Error::failed(format!("cannot open {}", device.display())).caused_by(err))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn record(via: Via, number: u32, uri: &str) -> Record {
        let wish = Wish { uri: uri.into(), ..Wish::default() };
        let identity = DiskIdentity::of(&uri.parse().unwrap()).unwrap();
        Record::new(via, number, u64::from(number), wish, identity)
    }

    fn args(options: &[&str]) -> AttachArgs {
        let words = ["blockyard", "attach", "./disk.img"].iter().chain(options);
        let Command::Attach(args) = Cli::try_parse_from(words).unwrap().command else { panic!() };
        *args
    }

    #[test]
    fn the_same_command_again_agrees_with_what_it_left_behind() {
        let orphan = record(Via::Ublk, 3, "/dev/zero");
        for options in [&[][..], &["--number", "3"], &["--via", "ublk"]] {
            agree(&args(options), &orphan).unwrap();
        }
        let others = [
            &["--number", "0"][..],
            &["--via", "nbd"],
            &["--read-only"],
            &["--threads", "2"],
            &["--depth", "64"],
            &["--connections", "2"],
            &["--kernel-timeout", "3"],
            &["--kernel-dead-conn-timeout", "1m"],
            &["--hand-over"],
        ];
        for options in others {
            let error = agree(&args(options), &orphan).unwrap_err();
            assert!(error.to_string().contains(options[0]), "{error}");
            assert!(error.remedy().unwrap().contains("recover /dev/ublkb3"));
        }
        let mut orphan = orphan;
        let wish = &mut orphan.wish;
        (wish.threads, wish.depth, wish.connections) = (Some(2), 64, 2);
        (wish.timeout_seconds, wish.dead_timeout_seconds, wish.hand_over) = (Some(3), 60, true);
        let same = others[3..].concat();
        agree(&args(&same), &orphan).unwrap();
    }

    #[test]
    fn what_keeps_one_device_from_being_recovered_keeps_no_other() {
        let orphans = [0, 1, 2, 3].map(|number| record(Via::Nbd, number, "/dev/zero"));
        let (launched, waited) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        let launch = |orphan: &Record| {
            launched.borrow_mut().push(orphan.number);
            if orphan.number == 1 { Err(Error::failed("no process")) } else { Ok(orphan.number) }
        };
        let wait = |number| {
            assert_eq!(*launched.borrow(), [0, 1, 2, 3], "it waits before all are launched");
            waited.borrow_mut().push(number);
            if number == 2 { Err(Error::failed("it died")) } else { Ok(75) }
        };
        let err = recover_all(&orphans, launch, wait).unwrap_err();
        assert!(err.to_string().contains("no process"), "{err}");
        assert_eq!(*waited.borrow(), [0, 2, 3]);
        assert_eq!(recover_all(&orphans[3..], |_| Ok(1), |_| Ok(75)).unwrap(), 75);
        assert_eq!(recover_all(&[], |_| Ok(1), |_| Ok(75)).unwrap(), 0);
    }

    #[test]
    fn an_option_in_the_uri_is_not_left_out_either() {
        let new = |uri, before| new_option(uri, before);
        assert_eq!(new("file:/d?direct=1", "/d").unwrap(), "direct=1");
        assert_eq!(new("file:/d?direct=1&lock=0", "file:/d?lock=0&direct=1"), None);
        assert_eq!(new("/d", "file:/d?direct=1"), None, "nothing is asked for");
        let fenced = "nbd+unix:///x?socket=/s&fence_timeout=2s";
        assert_eq!(new(fenced, "nbd+unix:///x?socket=./s").unwrap(), "fence_timeout=2s");
        assert_eq!(new(fenced, "nbd+unix:///x?fence_timeout=2s&socket=./s"), None);
        assert_eq!(new("file:/d?create=1G", "/d"), None);
        assert_eq!(new("/a?b=c", "/a?b=c"), None);
    }

    #[test]
    fn what_is_on_record_of_a_disk_is_looked_at_before_it_is_attached() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mnt/disk.img");
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        std::fs::write(&path, [0; 512]).unwrap();
        let uri = path.to_str().unwrap();
        let before = |args: &AttachArgs, orphan: &Record, standing| {
            let plan = args.uri.parse().unwrap();
            attached_before(args, &plan, vec![(orphan.clone(), standing)])
        };
        let wanted = |uri: &str, options: &[&str]| AttachArgs { uri: uri.into(), ..args(options) };
        let mut orphan = record(Via::Nbd, 0, uri);
        let recoverable = Standing::Left(Fate::Recoverable);
        let found = before(&wanted(uri, &[]), &orphan, recoverable).unwrap();
        assert_eq!(found.as_ref(), Some(&orphan));

        let err = before(&wanted(uri, &[]), &orphan, Standing::Served).unwrap_err();
        assert_eq!(err.kind().exit_code(), 75);
        assert!(err.to_string().contains("already attached as /dev/nbd0"), "{err}");
        let readers = wanted(uri, &["--read-only"]);
        assert!(before(&readers, &orphan, Standing::Served).is_err(), "one of both may write");
        orphan.wish.read_only = true;
        assert_eq!(before(&readers, &orphan, Standing::Served).unwrap(), None);

        for create in [uri.to_owned(), format!("file:{uri}?create=1M")] {
            let unknown = Standing::Left(Fate::Unknown);
            before(&wanted(&create, &[]), &orphan, unknown).unwrap_err();
        }
        // As under a mount point whose file system is not mounted.
        std::fs::rename(&path, dir.path().join("away.img")).unwrap();
        let create = wanted(&format!("file:{uri}?create=1M"), &[]);
        let err = before(&create, &orphan, recoverable).unwrap_err();
        assert!(err.to_string().contains("cannot recover /dev/nbd0"), "{err}");
        assert!(!path.exists());
        std::fs::write(&path, [0; 512]).unwrap();
        assert!(before(&create, &orphan, recoverable).is_err(), "it is another file");
        // Who is served has its own file still; nobody is in the way of a new one.
        assert_eq!(before(&create, &orphan, Standing::Served).unwrap(), None);
        std::fs::remove_dir_all(dir.path().join("mnt")).unwrap();
        before(&create, &orphan, recoverable).unwrap_err();
    }

    #[test]
    fn a_disk_is_found_by_what_it_is_and_not_by_what_it_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two, link) =
            (dir.path().join("one"), dir.path().join("two"), dir.path().join("link"));
        std::fs::write(&one, [0; 512]).unwrap();
        std::fs::write(&two, [0; 512]).unwrap();
        std::os::unix::fs::symlink(&one, &link).unwrap();
        let (one, two, link) =
            (one.to_str().unwrap(), two.to_str().unwrap(), link.to_str().unwrap());
        let records =
            [record(Via::Nbd, 0, one), record(Via::Nbd, 1, two), record(Via::Nbd, 2, "ram:1M")];
        let found = |uri: &str| {
            having(uri, &records).iter().map(|record| record.number).collect::<Vec<_>>()
        };
        assert_eq!(found(&format!("file:{link}?direct=1")), [0]);
        assert_eq!(found(two), [1]);
        // Another file in the place of the one that was attached is not that.
        std::fs::rename(two, one).unwrap();
        assert_eq!(found(one), [1]);
        assert_eq!(found("ram:1M"), [2]);
        assert_eq!(found("ram:2M"), [0_u32; 0]);
    }
}
