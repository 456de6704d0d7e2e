//! A guest's driver mounts a served directory, and does what a kernel does.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use blockyard_conformance::front_end::PATIENCE;
use blockyard_fs::{FileSystem, Outcome};
use blockyard_fuse::dirent::parse_plus;
use blockyard_fuse::wire::*;
use blockyard_fuse::{Errno, Name, Operation, ROOT_ID};
use blockyard_vhost_user::wire::{ConfigSpan, Message, Reply, VringState};
use common::*;
use parking_lot::Mutex;

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

/// A file system in which an FSYNC takes until it is told to go on.
struct Slow {
    begun: SyncSender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl FileSystem for Slow {
    fn lookup(&self, _parent: u64, _name: Name<'_>) -> Outcome<EntryOut> {
        Err(Errno::ENOENT)
    }

    fn forget(&self, _node: u64, _lookups: u64) {}

    fn getattr(&self, _node: u64, _fh: Option<u64>) -> Outcome<AttrOut> {
        Err(Errno::EIO)
    }

    fn fsync(&self, _fh: u64, _data_only: bool) -> Outcome {
        self.begun.send(()).unwrap();
        self.go_on.lock().recv_timeout(PATIENCE).map_err(|_| Errno::EIO)
    }
}

#[test]
fn one_that_takes_long_keeps_nobody_waiting_and_is_waited_for_at_the_end() {
    let (begun, has_begun) = sync_channel(1);
    let (tell, go_on) = sync_channel(1);
    let served = Served::of(Arc::new(Slow { begun, go_on: Mutex::new(go_on) }));
    let mut guest = Driver::mounted(&served.socket());
    let fsync = guest.encode(2, &Operation::Fsync(FsyncIn::default()));
    guest.put(2, &fsync, &[], 0);
    guest.front.offer(2, 0);
    guest.front.kick(2);
    has_begun.recv_timeout(PATIENCE).unwrap();
    // On another queue, and on the same one: chain 8 of it.
    assert_eq!(guest.look_up("none").unwrap_err(), Errno::ENOENT.raw());
    let lookup = guest.encode(ROOT_ID, &Operation::Lookup(Name::new(b"none").unwrap()));
    let (at, to) = (places(2).0 + 0x1_0000, places(2).1 + 0x1_0000);
    guest.front.bytes(at, lookup.len()).copy_from(&lookup);
    use blockyard_conformance::front_end::{NEXT, WRITE};
    guest.front.descriptor(2, 8, at, lookup.len() as u32, NEXT, 9);
    guest.front.descriptor(2, 9, to, 200, WRITE, 0);
    guest.front.finish(2, 8);
    assert_eq!(guest.front.last_used(2).0, 8);
    // A queue that is to stop waits for it.
    let stop = Message::GetVringBase(VringState { index: 2, num: 0 });
    guest.front.tell(&stop, &[]);
    guest.front.socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    use std::io::Read;
    assert!((&guest.front.socket).read(&mut [0]).is_err(), "it is not answered yet");
    guest.front.socket.set_read_timeout(Some(PATIENCE)).unwrap();
    tell.send(()).unwrap();
    assert_eq!(guest.front.reply(&stop), Reply::Base(VringState { index: 2, num: 2 }));
    assert_eq!((guest.front.used_index(2), guest.front.last_used(2)), (2, (0, OUT as u32)));
}
