//! A guest's driver mounts a served directory, and does what a kernel does.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use blockyard_buf::{Segment, total_len};
use blockyard_conformance::front_end::{PATIENCE, region};
use blockyard_conformance::pause;
use blockyard_fs::{FileSystem, Outcome};
use blockyard_fuse::dirent::parse_plus;
use blockyard_fuse::wire::*;
use blockyard_fuse::{Errno, Name, Operation, Payload, ROOT_ID};
use blockyard_sys::segments;
use blockyard_vhost_user::wire::{ConfigSpan, Message, Reply, VringState};
use common::*;
use parking_lot::Mutex;
use rustix::io::ReadWriteFlags;
use rustix::net::{RecvFlags, recv};
use rustix::thread::{CapabilitySet, capabilities};

#[test]
fn a_guest_reads_and_writes_a_directory() {
    let served = Served::new();
    let content: Vec<u8> = (0..200_000_u32).map(|index| (index % 251) as u8).collect();
    fs::write(served.dir().join("file"), &content).unwrap();
    let mut guest = Driver::mounted(&served.socket());
    let file = guest.look_up("file").unwrap();
    assert_eq!(file.attr.size, 200_000);
    let fh = guest.open(file.nodeid, 2).unwrap();
    for (queue, offset, size) in [(1, 0, 0), (2, 0, 1), (1, 4096, 65536), (2, 199_000, 4096)] {
        let found = guest.read(queue, fh, offset, size).unwrap();
        let start = offset as usize;
        let end = content.len().min(start + size as usize);
        assert!(found == content[start..end], "{size} bytes at {offset}");
    }
    assert_eq!(guest.read(REQUESTS, fh, 1 << 30, 4096).unwrap(), []);
    assert_eq!(guest.write(REQUESTS, fh, 199_999, b"the end").unwrap(), 7);
    let now = fs::read(served.dir().join("file")).unwrap();
    assert_eq!((now.len(), &now[199_990..199_999]), (200_006, &content[199_990..199_999]));
    assert_eq!(&now[199_999..], b"the end");
    let fsync = Operation::Fsync(FsyncIn { fh, ..FsyncIn::default() });
    guest.call(file.nodeid, &fsync).unwrap();
    let name = Name::new(b"directory").unwrap();
    guest.call(ROOT_ID, &Operation::Mkdir(MkdirIn { mode: 0o755, umask: 0 }, name)).unwrap();
    assert!(served.dir().join("directory").is_dir());
    assert_eq!(guest.look_up("none").unwrap_err(), Errno::ENOENT.raw());
    assert_eq!(served.server().status().queues, 3);
    assert!(served.server().status().requests > 10);
}

#[test]
fn a_thousand_names_are_listed_with_their_attributes() {
    let served = Served::new();
    let names: BTreeSet<_> = (0..1000).map(|number| format!("name-{number}")).collect();
    names.iter().for_each(|name| fs::write(served.dir().join(name), name).unwrap());
    let mut guest = Driver::mounted(&served.socket());
    let opened = guest.call(ROOT_ID, &Operation::Opendir(OpenIn::default())).unwrap();
    let Answer::Open(OpenOut { fh, .. }) = opened else { panic!("{opened:?}") };
    let (mut offset, mut found) = (0, BTreeSet::new());
    loop {
        let args = ReadIn { fh, offset, size: 4096, ..ReadIn::default() };
        let answer = guest.call(ROOT_ID, &Operation::Readdirplus(args)).unwrap();
        let Answer::Data(data) = answer else { panic!("{answer:?}") };
        if data.is_empty() {
            break;
        }
        for listed in parse_plus(&data) {
            let listed = listed.unwrap();
            offset = listed.entry.next;
            let name = String::from_utf8(listed.entry.name.bytes().to_vec()).unwrap();
            if listed.counts {
                assert_eq!(listed.found.unwrap().attr.size, name.len() as u64);
                found.insert(name);
            }
        }
    }
    assert_eq!(found, names);
}

/// Nobody waits for an answer to those, and their buffers come back all the same.
#[test]
fn what_is_forgotten_is_not_answered() {
    let served = Served::new();
    fs::write(served.dir().join("file"), "").unwrap();
    let mut guest = Driver::mounted(&served.socket());
    let node = guest.look_up("file").unwrap().nodeid;
    assert_eq!(guest.look_up("file").unwrap().nodeid, node);
    let getattr = Operation::Getattr(GetattrIn::default());
    for (lookups, known) in [(1, true), (1, false)] {
        let forget = guest.encode(node, &Operation::Forget { nlookup: lookups });
        guest.front.bytes(places(HIPRIO).0, forget.len()).copy_from(&forget);
        guest.chain(HIPRIO, &[(places(HIPRIO).0, forget.len() as u32, 0)]);
        guest.front.finish(HIPRIO, 0);
        assert_eq!(guest.front.last_used(HIPRIO), (0, 0));
        let found = guest.call(node, &getattr);
        assert_eq!(found.err(), (!known).then_some(ESTALE));
    }
    // That there are no interrupts is told.
    let interrupt = Operation::Interrupt { unique: 2 };
    let answer = guest.ask(HIPRIO, 0, &interrupt, &[], 0);
    assert_eq!(answer[4..8], (-ENOSYS).to_le_bytes());
}

#[test]
fn a_guest_that_begins_anew_is_another() {
    let served = Served::new();
    fs::write(served.dir().join("file"), "content").unwrap();
    let mut guest = Driver::mounted(&served.socket());
    let node = guest.look_up("file").unwrap().nodeid;
    let fh = guest.open(node, 0).unwrap();
    // A reset between, as of a reboot, or none, as of a kernel that was started by another.
    for reboots in [false, true] {
        if reboots {
            guest.front.done(&Message::ResetDevice, &[]);
            guest.front.done(&Message::SetFeatures(guest.features()), &[]);
            guest.restart(true);
        }
        guest.init();
        assert_eq!(
            guest.call(node, &Operation::Getattr(GetattrIn::default())).unwrap_err(),
            ESTALE
        );
        assert_eq!(guest.read(REQUESTS, fh, 0, 10).unwrap_err(), EBADF);
        let node = guest.look_up("file").unwrap().nodeid;
        let fh = guest.open(node, 0).unwrap();
        assert_eq!(guest.read(2, fh, 0, 10).unwrap(), b"content");
    }
    // It is unmounted, and mounted again.
    guest.call(0, &Operation::Destroy).unwrap();
    assert_eq!(guest.look_up("file").unwrap_err(), EIO);
    guest.call(0, &Operation::Destroy).unwrap();
    guest.init();
    guest.look_up("file").unwrap();
    // So is one whose front-end leaves.
    drop(guest);
    let mut guest = Driver::connect(&served.socket());
    assert_eq!(guest.look_up("file").unwrap_err(), EIO);
    guest.init();
    guest.look_up("file").unwrap();
}

#[test]
fn a_guest_that_is_paused_goes_on() {
    let served = Served::new();
    fs::write(served.dir().join("file"), "content").unwrap();
    let mut guest = Driver::mounted(&served.socket());
    let node = guest.look_up("file").unwrap().nodeid;
    let fh = guest.open(node, 0).unwrap();
    for queue in 0..3 {
        let stop = Message::GetVringBase(VringState { index: queue, num: 0 });
        let Reply::Base(state) = guest.front.ask(&stop) else { panic!("no base") };
        let used = u32::from(guest.front.used_index(queue));
        assert_eq!(state, VringState { index: queue, num: used });
    }
    guest.restart(false);
    assert_eq!(guest.read(REQUESTS, fh, 0, 10).unwrap(), b"content");
}

#[test]
fn the_configuration_space_has_the_tag() {
    let served = Served::new();
    let guest = Driver::connect(&served.socket());
    let span = ConfigSpan { offset: 0, flags: 0, bytes: vec![0; 40] };
    let Reply::Config(span) = guest.front.ask(&Message::GetConfig(span)) else { panic!() };
    assert_eq!(&span.bytes[..5], b"tree\0");
    assert_eq!(&span.bytes[36..], [2, 0, 0, 0]);
    let write = ConfigSpan { offset: 0, flags: 0, bytes: vec![1] };
    assert_eq!(
        guest.front.result(&Message::SetConfig(write), &[]),
        1,
        "it is not a guest's to write"
    );
    assert_eq!(guest.front.ask(&Message::GetQueueNum), Reply::Number(3));
}

/// A file system in which some take until they are told to go on: what is asked of the file, and the name `slow`.
struct Slow {
    begun: SyncSender<()>,
    go_on: Mutex<Receiver<()>>,
    /// Where nothing is to be read before the last of them is answered.
    silent: Mutex<Option<UnixStream>>,
    broke_silence: AtomicBool,
    rights: Mutex<Option<CapabilitySet>>,
    /// Where what is written goes.
    file: File,
}

impl Slow {
    /// With what tells that one has begun, and what lets it go on.
    fn new() -> (Arc<Self>, Receiver<()>, SyncSender<()>) {
        let (begun, has_begun) = sync_channel(1);
        let (tell, go_on) = sync_channel(1);
        let (go_on, silent, rights) = (Mutex::new(go_on), Mutex::default(), Mutex::default());
        let (broke_silence, file) = (false.into(), tempfile::tempfile().unwrap());
        (Arc::new(Self { begun, go_on, silent, broke_silence, rights, file }), has_begun, tell)
    }

    fn hang(&self) -> Outcome {
        self.begun.send(()).unwrap();
        let told = self.go_on.lock().recv_timeout(PATIENCE).map_err(|_| Errno::EIO);
        if let Some(socket) = &*self.silent.lock() {
            let found = recv(socket, &mut [0_u8][..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
            self.broke_silence.store(found.is_ok(), Ordering::SeqCst);
        }
        told
    }
}

impl FileSystem for Slow {
    fn lookup(&self, _parent: u64, name: Name<'_>) -> Outcome<EntryOut> {
        *self.rights.lock() = Some(capabilities(None).unwrap().effective);
        if name.bytes() == b"slow" {
            self.hang()?;
        }
        Err(Errno::ENOENT)
    }

    fn forget(&self, _node: u64, _lookups: u64) {}

    fn getattr(&self, _node: u64, _fh: Option<u64>) -> Outcome<AttrOut> {
        self.hang()?;
        Err(Errno::EIO)
    }

    fn release(&self, _fh: u64) {
        self.hang().unwrap();
    }

    /// To the guest's own memory, in the end.
    fn read_segments(&self, _args: &ReadIn, into: &[Segment]) -> Outcome<usize> {
        self.hang()?;
        into.iter().for_each(|part| part.copy_from(&vec![b'!'; part.len()]));
        self.begun.send(()).unwrap();
        Ok(total_len(into))
    }

    /// From the guest's own memory, in the end, and once more for what was not.
    fn write_segments(&self, args: &WriteIn, data: &[Segment]) -> Outcome<u32> {
        self.hang()?;
        let write =
            || segments::write_at(self.file.as_fd(), args.offset, data, ReadWriteFlags::empty());
        let written = write().or_else(|_| write());
        self.begun.send(()).unwrap();
        written.map(|len| len as u32).map_err(|_| Errno::EIO)
    }

    fn fsync(&self, _fh: u64, _data_only: bool) -> Outcome {
        self.hang()
    }
}

#[test]
fn who_serves_has_the_rights_to_files_only() {
    let (fs, ..) = Slow::new();
    let served = Served::of(Arc::clone(&fs) as Arc<dyn FileSystem>);
    let mut guest = Driver::mounted(&served.socket());
    assert_eq!(guest.look_up("none").unwrap_err(), Errno::ENOENT.raw());
    let rights = fs.rights.lock().unwrap();
    let others = CapabilitySet::SYS_RESOURCE | CapabilitySet::KILL;
    assert!(!rights.intersects(others), "{rights:?}");
}

/// A request on a queue beside what it has at chain 0: chain 8.
fn look_up_beside(guest: &mut Driver, queue: u32) {
    use blockyard_conformance::front_end::{NEXT, WRITE};
    let lookup = guest.encode(ROOT_ID, &Operation::Lookup(Name::new(b"none").unwrap()));
    let (at, to) = (places(queue).0 + 0x1_0000, places(queue).1 + 0x1_0000);
    guest.front.bytes(at, lookup.len()).copy_from(&lookup);
    guest.front.descriptor(queue, 8, at, lookup.len() as u32, NEXT, 9);
    guest.front.descriptor(queue, 9, to, 200, WRITE, 0);
    guest.front.finish(queue, 8);
    assert_eq!(guest.front.last_used(queue).0, 8);
}

/// Also of those that should take no time: what is looked up may be on a file server that has gone.
#[test]
fn one_that_hangs_keeps_nobody_waiting() {
    let (fs, has_begun, tell) = Slow::new();
    let served = Served::of(fs);
    let mut guest = Driver::mounted(&served.socket());
    for operation in [
        Operation::Lookup(Name::new(b"slow").unwrap()),
        Operation::Getattr(GetattrIn::default()),
        Operation::Release(ReleaseIn::default()),
        Operation::Fsync(FsyncIn::default()),
    ] {
        let used = guest.front.used_index(2);
        let bytes = guest.encode(2, &operation);
        guest.put(2, &bytes, &[], 200);
        guest.front.offer(2, 0);
        guest.front.kick(2);
        has_begun.recv_timeout(PATIENCE).unwrap();
        // On another queue, and on the same one.
        assert_eq!(guest.look_up("none").unwrap_err(), Errno::ENOENT.raw());
        for _ in 0..3 {
            look_up_beside(&mut guest, 2);
        }
        tell.send(()).unwrap();
        guest.front.wait_used(2, used.wrapping_add(4));
        assert_eq!(guest.front.last_used(2).0, 0, "{operation:?}");
    }
}

#[test]
fn one_that_takes_long_is_waited_for_at_the_end() {
    let (fs, has_begun, tell) = Slow::new();
    let served = Served::of(Arc::clone(&fs) as Arc<dyn FileSystem>);
    let mut guest = Driver::mounted(&served.socket());
    let fsync = guest.encode(2, &Operation::Fsync(FsyncIn::default()));
    guest.put(2, &fsync, &[], 0);
    guest.front.offer(2, 0);
    guest.front.kick(2);
    has_begun.recv_timeout(PATIENCE).unwrap();
    look_up_beside(&mut guest, 2);
    *fs.silent.lock() = Some(guest.front.socket.try_clone().unwrap());
    let stop = Message::GetVringBase(VringState { index: 2, num: 0 });
    guest.front.tell(&stop, &[]);
    // An answer that comes too early has all that time to come.
    for _ in 0..100 {
        assert_eq!(guest.look_up("none").unwrap_err(), Errno::ENOENT.raw());
    }
    tell.send(()).unwrap();
    assert_eq!(guest.front.reply(&stop), Reply::Base(VringState { index: 2, num: 2 }));
    assert!(!fs.broke_silence.load(Ordering::SeqCst), "it stops before all is done");
    assert_eq!((guest.front.used_index(2), guest.front.last_used(2)), (2, (0, OUT as u32)));
}

/// Who stops its queues can do nothing else meanwhile, and a machine monitor is to be ended without force.
#[test]
fn one_that_does_not_end_keeps_no_front_end_and_reaches_no_guest_any_more() {
    let (fs, has_begun, tell) = Slow::new();
    let served = Served::impatient(Arc::clone(&fs) as Arc<dyn FileSystem>);
    let stop = Message::GetVringBase(VringState { index: 2, num: 0 });
    let mut gone = Vec::new();
    for (asks, has_other_memory) in [Some(stop), Some(Message::ResetDevice), None]
        .iter()
        .flat_map(|asks| [(asks, false), (asks, true)])
    {
        let mut guest = Driver::mounted(&served.socket());
        let read = Operation::Read(ReadIn { size: 100, ..ReadIn::default() });
        let (bytes, used) = (guest.encode(2, &read), guest.front.used_index(2));
        guest.put(2, &bytes, &[], 100);
        let room = guest.front.bytes(places(2).1, OUT + 100);
        room.copy_from(&[0xaa; OUT + 100]);
        guest.front.offer(2, 0);
        guest.front.kick(2);
        has_begun.recv_timeout(PATIENCE).unwrap();
        if has_other_memory {
            // The same, by another mapping: what is in flight is in the one before.
            let table = Message::SetMemTable(vec![region()]);
            guest.front.done(&table, &[guest.front.file.as_fd()]);
        }
        match asks {
            Some(message) => {
                guest.front.tell(message, &[]);
                assert!(guest.front.is_hung_up_on(), "{message:?}");
            }
            None => guest.front.socket.shutdown(std::net::Shutdown::Both).unwrap(),
        }
        // Another is served, also on that queue, while that one is still out.
        let mut next = Driver::mounted(&served.socket());
        look_up_beside(&mut next, 2);
        tell.send(()).unwrap();
        has_begun.recv_timeout(PATIENCE).unwrap();
        look_up_beside(&mut next, 2);
        gone.push((guest, room, used, format!("{asks:?} {has_other_memory}")));
    }
    drop(served);
    // Each thread has it until it has ended: what hung has given back what it gives back.
    let end = Instant::now() + PATIENCE;
    while Arc::strong_count(&fs) > 1 {
        assert!(Instant::now() < end, "a thread has not ended");
        pause();
    }
    for (guest, room, used, how) in gone {
        assert!(room.to_vec() == [0xaa; OUT + 100], "{how}: it reached the guest");
        assert_eq!(guest.front.used_index(2), used, "{how}: nothing is given back");
    }
}

/// What was on its way when its guest left is written as it is, or not at all.
#[test]
fn a_write_that_does_not_end_leaves_no_zeroes() {
    let (fs, has_begun, tell) = Slow::new();
    fs.file.write_all_at(&[0xaa; 8192], 0).unwrap();
    let served = Served::impatient(Arc::clone(&fs) as Arc<dyn FileSystem>);
    let mut guest = Driver::mounted(&served.socket());
    let args = WriteIn { size: 8192, ..WriteIn::default() };
    let write = Operation::Write(args, Payload { here: &[], elsewhere: 8192 });
    let bytes = guest.encode(2, &write);
    guest.put(2, &bytes, &[0x55; 8192], WriteOut::LEN as u32);
    guest.front.offer(2, 0);
    guest.front.kick(2);
    has_begun.recv_timeout(PATIENCE).unwrap();
    guest.front.tell(&Message::GetVringBase(VringState { index: 2, num: 0 }), &[]);
    assert!(guest.front.is_hung_up_on());
    tell.send(()).unwrap();
    has_begun.recv_timeout(PATIENCE).unwrap();
    let mut found = [0; 8192];
    fs.file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == [0xaa; 8192], "{:x?}", &found[..16]);
}
