//! A file system below the directory: what it is asked for, and what becomes of what it says.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use blockyard_buf::Segment;
use blockyard_fs::{FileSystem, Options, Outcome, Passthrough, Server};
use blockyard_fuse::wire::*;
use blockyard_fuse::{Errno, Name, ROOT_ID};
use blockyard_sys::fuse::{MountOptions, Unmount, mount, unmount};
use parking_lot::Mutex;
use rustix::fs::Gid;
use rustix::thread::{CapabilitySet, capabilities};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
const EDQUOT: Errno = Errno::from_raw(122);
/// `O_WRONLY`, and how writes by it are made durable.
const WRONLY: u32 = 1;
const DSYNC: u32 = 0o10_000;
const SYNC: u32 = 0o4_010_000;

/// One file, of which only what it is asked for is kept.
#[derive(Default)]
struct Below {
    asked: Mutex<Vec<&'static str>>,
    rights: Mutex<Option<(CapabilitySet, Vec<Gid>)>>,
    /// A FLUSH is answered once that is told.
    go_on: Mutex<Option<Receiver<()>>>,
}

impl Below {
    fn note(&self, what: &'static str) {
        self.asked.lock().push(what);
    }
}

fn attr(node: u64) -> Attr {
    let mode = if node == ROOT_ID { 0o040_755 } else { 0o100_666 };
    Attr { ino: node, mode, nlink: 1, size: 9, blksize: 4096, ..Attr::default() }
}

impl FileSystem for Below {
    fn lookup(&self, _parent: u64, name: Name<'_>) -> Outcome<EntryOut> {
        let groups = rustix::process::getgroups().unwrap();
        *self.rights.lock() = Some((capabilities(None).unwrap().effective, groups));
        match name.bytes() {
            b"file" => Ok(EntryOut { nodeid: 2, attr: attr(2), ..EntryOut::default() }),
            _ => Err(Errno::ENOENT),
        }
    }

    fn forget(&self, _node: u64, _lookups: u64) {}

    fn getattr(&self, node: u64, _fh: Option<u64>) -> Outcome<AttrOut> {
        Ok(AttrOut { attr: attr(node), ..AttrOut::default() })
    }

    fn open(&self, _node: u64, _args: &OpenIn) -> Outcome<OpenOut> {
        Ok(OpenOut::default())
    }

    /// FUSE leaves it to its server to make a write durable.
    fn write(&self, args: &WriteIn, data: &[u8]) -> Outcome<u32> {
        self.note(match args.flags & SYNC {
            0 => "write",
            DSYNC => "write with its data",
            _ => "write with all",
        });
        Ok(u32::try_from(data.len()).unwrap())
    }

    fn flush(&self, _args: &FlushIn) -> Outcome {
        let told =
            self.go_on.lock().as_ref().is_none_or(|told| told.recv_timeout(PATIENCE).is_ok());
        self.note(if told { "flush" } else { "flush that nobody has waited for" });
        self.go_on.lock().take();
        Err(EDQUOT)
    }
}

/// It is mounted, and the place where it is passed through.
struct Place {
    below: Arc<Below>,
    server: Option<Server>,
    target: PathBuf,
    _dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().canonicalize().unwrap().join("below");
        std::fs::create_dir(&target).unwrap();
        let options = MountOptions {
            source: "below",
            subtype: "below",
            directory: true,
            allow_other: false,
            read_only: false,
        };
        let channel = mount(&target, &options).unwrap();
        let below = Arc::new(Below::default());
        let fs = Arc::clone(&below) as Arc<dyn FileSystem>;
        let server = Some(Server::start(channel, &fs, 2).unwrap());
        Self { below, server, target, _dir: dir }
    }

    fn passed(&self) -> Passthrough {
        Passthrough::new(&self.target, Options::default()).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let unmounted = unmount(&self.target, Unmount::Lazily);
        if unmounted.is_ok() {
            self.server.take().into_iter().for_each(Server::wait);
        }
    }
}

fn open(passed: &Passthrough, flags: u32) -> u64 {
    let file = passed.lookup(ROOT_ID, Name::new(b"file").unwrap()).unwrap();
    passed.open(file.nodeid, &OpenIn { flags, ..OpenIn::default() }).unwrap().fh
}

/// As it is asked to be by that write: of one descriptor some may be (`RWF_DSYNC`), and all of a mount (`sync`) are.
#[test]
fn a_write_is_as_durable_as_it_is_to_be() {
    blockyard_conformance::in_own_mounts!();
    let place = Place::new();
    let passed = place.passed();
    let fh = open(&passed, WRONLY);
    let (data, segments) = (&b"data"[..], [Segment::from_vec(b"data".to_vec())]);
    for (flags, expected) in [
        (WRONLY, "write"),
        (WRONLY | DSYNC, "write with its data"),
        (WRONLY | SYNC, "write with all"),
    ] {
        let args = WriteIn { fh, flags, ..WriteIn::default() };
        assert_eq!(passed.write(&args, data), Ok(4));
        assert_eq!(std::mem::take(&mut *place.below.asked.lock()), [expected], "{flags:o}");
        assert_eq!(passed.write_segments(&args, &segments), Ok(4));
        assert_eq!(std::mem::take(&mut *place.below.asked.lock()), [expected], "{flags:o}");
    }
    passed.release(fh);
}

/// Some file systems find out then that there is no room for what was written (NFS).
#[test]
fn who_closes_a_file_is_told_what_comes_of_it() {
    blockyard_conformance::in_own_mounts!();
    let place = Place::new();
    let passed = place.passed();
    let fh = open(&passed, WRONLY);
    for _ in 0..2 {
        assert_eq!(passed.flush(&FlushIn { fh, ..FlushIn::default() }), Err(EDQUOT));
        assert_eq!(std::mem::take(&mut *place.below.asked.lock()), ["flush"]);
    }
    assert_eq!(passed.write(&WriteIn { fh, ..WriteIn::default() }, b"more"), Ok(4), "it is open");
    passed.release(fh);
    assert_eq!(passed.flush(&FlushIn { fh, ..FlushIn::default() }), Err(Errno::EBADF));
}

/// What was written may be on its way to a file server that does not answer.
#[test]
fn a_client_that_begins_does_not_wait_for_the_files_of_the_one_before() {
    blockyard_conformance::in_own_mounts!();
    let place = Place::new();
    let passed = place.passed();
    let fh = open(&passed, WRONLY);
    let (tell, told) = sync_channel(1);
    *place.below.go_on.lock() = Some(told);
    passed.reset();
    assert_eq!(passed.flush(&FlushIn { fh, ..FlushIn::default() }), Err(Errno::EBADF));
    tell.send(()).unwrap();
    // It is closed, too.
    let below = Arc::clone(&place.below);
    drop((passed, place));
    let asked = std::mem::take(&mut *below.asked.lock());
    // A process that was started meanwhile has closed it, too.
    assert!(!asked.is_empty() && asked.iter().all(|what| *what == "flush"), "{asked:?}");
}

/// Whoever has `CAP_SYS_RESOURCE` is bound by no quota (quotactl(2)), and may take the last blocks of a disk.
#[test]
fn who_serves_has_the_rights_that_it_takes_and_no_others() {
    blockyard_conformance::in_own_mounts!();
    let place = Place::new();
    assert!(std::fs::metadata(place.target.join("file")).unwrap().is_file());
    let (rights, groups) = place.below.rights.lock().take().unwrap();
    assert_eq!(groups, [], "they would be those of whoever it makes files for");
    assert!(!rights.contains(CapabilitySet::SYS_RESOURCE), "{rights:?}");
    let own = capabilities(None).unwrap().effective;
    let needed = CapabilitySet::DAC_OVERRIDE | CapabilitySet::SETUID | CapabilitySet::SETGID;
    assert_eq!(rights & needed, own & needed, "{rights:?}");
}
