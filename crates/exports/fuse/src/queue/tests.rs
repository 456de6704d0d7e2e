//! The queue against a client that keeps no rules: a pair of sockets stands for the device.
#![allow(clippy::cast_possible_truncation, reason = "tests")]

use std::os::fd::OwnedFd;
use std::time::Duration;

use blockyard_blkmq::{
    Bdev, BlockDeviceOps, Busy, Disk, DiskConfig, Driver, HctxHandle, MonotonicClock, NoOps, Op,
    OpenMode, Request as BlkRequest, Sector, TagSet, TagSetConfig,
};
use blockyard_conformance::QueueThread;
use blockyard_driver_ram::Ram;
use blockyard_fuse::wire::*;
use blockyard_fuse::{Caller, Expected, Name, ROOT_ID, UNIQUE_INTERRUPT};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{recv, send, socketpair};
use tokio::task::JoinHandle;

use super::*;
use crate::outstanding::Outstanding;
use crate::tree::Owner;

const DISK_BYTES: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const OWNER: Owner = Owner { uid: 0, gid: 0, mode: 0o600 };
/// Requests with a disk.
const DEPTH: usize = 4;
const LIMITS: Limits = Limits { max_write: 16384, max_read: 16384, head: Limits::HEAD };
pub(crate) const PROTOCOL: Protocol =
    Protocol { minor: 45, flags: InitFlags::SETXATTR_EXT, limits: LIMITS };

/// The client's end, and the queue.
struct Client {
    socket: OwnedFd,
    worker: Option<JoinHandle<()>>,
    /// The second queue, if there is one.
    other: Option<JoinHandle<()>>,
    session: Arc<Session>,
    _threads: Vec<QueueThread>,
    unique: u64,
}

impl Client {
    fn new() -> Self {
        Self::of(Tree::single(ram_disk(), OWNER, 1))
    }

    fn of(tree: Tree) -> Self {
        Self::with(tree, 1)
    }

    /// With one queue, or two.
    fn with(tree: Tree, queues: usize) -> Self {
        let tree = Arc::new(tree);
        let watchers = Watchers::new(queues);
        let session =
            Arc::new(Session { tree, protocol: PROTOCOL, cache: Cache::Bypassed, watchers });
        let (socket, far) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let channel = Arc::new(Channel::of(far).unwrap());
        let (threads, handles) = QueueThread::start_many(queues);
        let start = |(queue, handle): (usize, &Handle)| {
            let event = EventWatch::new(Arc::clone(&channel), handle).unwrap();
            let worker = Worker::new(Arc::clone(&session), Arc::clone(&channel), queue, DEPTH);
            handle.spawn(worker.unwrap().run(event))
        };
        let mut workers: Vec<_> = handles.iter().enumerate().map(start).collect();
        let other = workers.drain(1..).next();
        let worker = workers.pop();
        Self { socket, worker, other, session, _threads: threads, unique: 0 }
    }

    fn send(&self, bytes: &[u8]) {
        assert_eq!(send(&self.socket, bytes, SendFlags::NOSIGNAL).unwrap(), bytes.len());
    }

    fn receive(&self) -> Vec<u8> {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).unwrap();
        assert_eq!(poll(&mut fds, Some(&patience)).unwrap(), 1, "no answer");
        let mut bytes = vec![0; 1 << 16];
        let (len, _) = recv(&self.socket, &mut bytes[..], RecvFlags::empty()).unwrap();
        bytes.truncate(len);
        bytes
    }

    fn request(&mut self, nodeid: u64, operation: &Operation<'_>) -> Vec<u8> {
        self.unique += 2;
        let caller = Caller { unique: self.unique, nodeid, ..Caller::default() };
        let mut bytes = Vec::new();
        operation.encode(&caller, &[], &PROTOCOL, &mut bytes);
        bytes
    }

    /// What is answered to `operation`, by `with`.
    fn ask<R>(&mut self, operation: &Operation<'_>, with: impl FnOnce(Reply<'_>) -> R) -> R {
        self.ask_of(ROOT_ID, operation, with)
    }

    fn ask_of<R>(
        &mut self,
        node: u64,
        operation: &Operation<'_>,
        with: impl FnOnce(Reply<'_>) -> R,
    ) -> R {
        let bytes = self.request(node, operation);
        self.send(&bytes);
        let answer = self.receive();
        assert_eq!(Reply::header(&answer, 0).unwrap().unique, self.unique);
        with(Reply::parse(Expected::of(operation).unwrap(), &answer, 0).unwrap())
    }

    /// It is served still.
    fn is_well(&mut self) {
        let getattr = Operation::Getattr(GetattrIn::default());
        let size = self.ask(&getattr, |reply| match reply {
            Reply::Attr(out) => out.attr.size,
            other => panic!("{other:?}"),
        });
        assert_eq!(size, DISK_BYTES);
    }

    /// The queue has ended by itself, and not by a panic.
    fn has_ended(&mut self) {
        let worker = self.worker.take().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let ended = async { tokio::time::timeout(PATIENCE, worker).await };
        runtime.block_on(ended).expect("it goes on").unwrap();
    }
}

fn payload(here: &[u8]) -> Payload<'_> {
    Payload { here, elsewhere: 0 }
}

/// Requests of each kind that is served.
fn samples() -> Vec<Operation<'static>> {
    let name = Name::new(b"name").unwrap();
    vec![
        Operation::Lookup(name),
        Operation::Getattr(GetattrIn::default()),
        Operation::Setattr(blockyard_fuse::SetAttr(SetattrIn::default())),
        Operation::Open(OpenIn::default()),
        Operation::Read(ReadIn { offset: 77, size: 9000, ..ReadIn::default() }),
        Operation::Write(WriteIn { offset: 99, ..WriteIn::default() }, payload(&[7; 3000])),
        Operation::Fsync(FsyncIn::default()),
        Operation::Fallocate(FallocateIn {
            offset: 1,
            length: 5000,
            mode: 3,
            ..Default::default()
        }),
        Operation::Lseek(LseekIn { offset: 3, whence: 3, ..LseekIn::default() }),
        Operation::Statfs,
        Operation::Ioctl(IoctlIn::default(), b"data"),
        Operation::Setxattr {
            args: SetxattrIn::default(),
            name: blockyard_fuse::CBytes::new(b"user.long-enough-to-be-behind-the-head").unwrap(),
            value: &[1; 300],
        },
        Operation::Release(ReleaseIn::default()),
    ]
}

#[test]
fn data_go_to_the_disk_and_come_back() {
    let mut client = Client::new();
    let data: Vec<u8> = (0..9000).map(|at| (at % 251) as u8).collect();
    let write = Operation::Write(WriteIn { offset: 123, ..WriteIn::default() }, payload(&data));
    client.ask(&write, |reply| assert_eq!(reply, Reply::Written(9000)));
    let read = Operation::Read(ReadIn { offset: 123, size: 9000, ..ReadIn::default() });
    client.ask(&read, |reply| assert_eq!(reply, Reply::Data(payload(&data))));
    let lseek = Operation::Lseek(LseekIn { offset: 0, whence: 3, ..LseekIn::default() });
    client.ask(&lseek, |reply| assert!(matches!(reply, Reply::Offset(at) if at <= 123)));
    // No more than a request has pages for, whatever is asked.
    let read = ReadIn { size: u32::MAX, ..ReadIn::default() };
    let bytes = client.request(ROOT_ID, &Operation::Read(read));
    client.send(&bytes);
    assert_eq!(client.receive().len(), OutHeader::LEN + LIMITS.max_read as usize);
    client.is_well();
}

#[test]
fn what_is_wrong_with_a_request_ends_that_request() {
    let mut client = Client::new();
    let errno = |client: &mut Client, bytes: &[u8]| {
        client.send(bytes);
        -Reply::header(&client.receive(), 0).unwrap().error
    };
    // A node that was never given, an operation that is not known.
    let stale = client.request(99, &Operation::Read(ReadIn { size: 1, ..ReadIn::default() }));
    assert_eq!(errno(&mut client, &stale), 116);
    let stale = client.request(99, &Operation::Getattr(GetattrIn::default()));
    assert_eq!(errno(&mut client, &stale), 116);
    let mut unknown = client.request(ROOT_ID, &Operation::Statfs);
    unknown[4..8].copy_from_slice(&4097u32.to_le_bytes());
    assert_eq!(errno(&mut client, &unknown), 38);
    // Lengths that lie, one way and the other; an offset that no file has; a write that is too long.
    let write = Operation::Write(WriteIn::default(), payload(&[0; 100]));
    let mut lies = client.request(ROOT_ID, &write);
    lies[0] += 1;
    assert_eq!(errno(&mut client, &lies), 22);
    let mut lies = client.request(ROOT_ID, &write);
    lies[56..60].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(errno(&mut client, &lies), 22);
    let mut far = client.request(ROOT_ID, &write);
    far[48..56].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_eq!(errno(&mut client, &far), 22);
    let long = Operation::Write(WriteIn::default(), payload(&[0; 16385]));
    let long = client.request(ROOT_ID, &long);
    assert_eq!(errno(&mut client, &long), 22);
    // Interrupts are not supported, which is said once; there is no answer to what has none.
    let mut interrupt = client.request(ROOT_ID, &Operation::Interrupt { unique: 2 });
    interrupt[8] |= UNIQUE_INTERRUPT as u8;
    assert_eq!(errno(&mut client, &interrupt), 38);
    let forget = client.request(ROOT_ID, &Operation::Forget { nlookup: u64::MAX });
    client.send(&forget);
    client.is_well();
}

#[test]
fn a_message_that_is_none_ends_the_session_and_nothing_else() {
    for len in [1, 39] {
        let mut client = Client::new();
        let whole = client.request(ROOT_ID, &Operation::Statfs);
        client.send(&whole[..len]);
        client.has_ended();
    }
    let mut client = Client::new();
    client.is_well();
    // Closes the client's end.
    client.socket = Client::new().socket;
    client.has_ended();
}

/// A disk that keeps all requests to itself until it is told to end them, in whatever order they came.
#[derive(Default)]
pub(crate) struct Stuck {
    held: parking_lot::Mutex<Vec<BlkRequest<Self>>>,
    bytes: parking_lot::Mutex<Vec<u8>>,
    goes_on: std::sync::atomic::AtomicBool,
}

impl Stuck {
    /// One that takes so many requests at a time.
    pub(crate) fn disk(depth: u32) -> (Arc<Self>, Arc<Bdev>) {
        let driver = Arc::new(Self::default());
        driver.bytes.lock().resize(DISK_BYTES as usize, 0);
        let tags = TagSetConfig { depth, ..TagSetConfig::default() };
        let set = TagSet::new(Arc::clone(&driver), tags).unwrap();
        let limits = blockyard_blkmq::Limits::default().validate().unwrap();
        let config = DiskConfig::new("stuck", Sector::from_bytes_floor(DISK_BYTES), limits);
        let clock = Arc::new(MonotonicClock::new());
        let disk = Disk::alloc(&set, (), config, Arc::new(NoOps), clock).unwrap();
        (driver, Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap()))
    }

    fn carry_out(&self, mut rq: BlkRequest<Self>) {
        let mut at = rq.offset() as usize;
        let mut bytes = self.bytes.lock();
        match rq.op() {
            Op::Write => {
                for segment in rq.segments() {
                    segment.copy_to(&mut bytes[at..at + segment.len()]);
                    at += segment.len();
                }
            }
            _ => rq.deliver(Segment::from_vec(bytes[at..at + rq.len() as usize].to_vec())),
        }
        drop(bytes);
        rq.end(Status::Ok);
    }

    /// How many it has.
    pub(crate) fn held(&self) -> usize {
        self.held.lock().len()
    }

    /// Ends the one that came first.
    pub(crate) fn release_first(&self) {
        let first = self.held.lock().remove(0);
        self.carry_out(first);
    }

    pub(crate) fn go_on(&self) {
        self.goes_on.store(true, Ordering::Release);
        let held = std::mem::take(&mut *self.held.lock());
        held.into_iter().rev().for_each(|rq| self.carry_out(rq));
    }
}

impl Driver for Stuck {
    type Disk = ();
    type Hctx = ();
    type Cmd = ();

    fn init_hctx(&self, _: &(), _: HctxHandle<Self>) -> blockyard_blkmq::Result<()> {
        Ok(())
    }

    fn queue_rq(&self, _: &mut (), rq: BlkRequest<Self>, _: bool) -> Result<(), Busy<Self>> {
        if self.goes_on.load(Ordering::Acquire) {
            self.carry_out(rq);
        } else {
            self.held.lock().push(rq);
        }
        Ok(())
    }
}

impl BlockDeviceOps for Stuck {}

fn ram_disk() -> Arc<Bdev> {
    let set = TagSet::new(Ram::new(), TagSetConfig::default()).unwrap();
    let config = DiskConfig::new("ram0", Sector::from_bytes_floor(DISK_BYTES), Ram::limits());
    let clock = Arc::new(MonotonicClock::new());
    let disk = Disk::alloc(&set, (), config, Arc::new(NoOps), clock).unwrap();
    Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap())
}

/// Many times the requests that it may have, and another disk is served as if there were none; when it goes on, all of them are
/// done, each with its own data.
#[test]
fn a_disk_that_is_stuck_keeps_no_other_from_being_served() {
    const MANY: u64 = 100;
    let (driver, bdev) = Stuck::disk(64);
    let tree = Tree::directory(OWNER, 1);
    let stuck = tree.add("stuck", bdev).unwrap().id;
    let sound = tree.add("sound", ram_disk()).unwrap().id;
    let mut client = Client::of(tree);
    let write = |number: u64| WriteIn { offset: number * 4096, ..WriteIn::default() };
    let read = |number: u64| ReadIn { offset: number * 4096, size: 4096, ..ReadIn::default() };
    let mut waiting = std::collections::BTreeMap::new();
    for number in 0..MANY {
        let data = [number as u8 + 1; 4096];
        let operation = Operation::Write(write(number), payload(&data));
        let bytes = client.request(stuck, &operation);
        client.send(&bytes);
        waiting.insert(client.unique, number);
        let operation = Operation::Write(write(number), payload(&data[..512]));
        client.ask_of(sound, &operation, |reply| assert_eq!(reply, Reply::Written(512)));
        let back = Operation::Read(ReadIn { size: 512, ..read(number) });
        client.ask_of(sound, &back, |reply| assert_eq!(reply, Reply::Data(payload(&data[..512]))));
    }
    assert_eq!(driver.held(), DEPTH);
    driver.go_on();
    while !waiting.is_empty() {
        let answer = client.receive();
        let header = Reply::header(&answer, 0).unwrap();
        assert_eq!(header.error, 0);
        waiting.remove(&header.unique).expect("an answer to nothing that was asked");
    }
    for number in 0..MANY {
        let data = [number as u8 + 1; 4096];
        client.ask_of(stuck, &Operation::Read(read(number)), |reply| {
            assert_eq!(reply, Reply::Data(payload(&data)));
        });
    }
}

/// With requests one after the other, only one of two queues is woken for them after a while; when that one is gone, the other
/// serves them.
#[test]
fn a_queue_that_is_woken_for_nothing_rests_until_it_is_called() {
    let mut client = Client::with(Tree::single(ram_disk(), OWNER, 2), 2);
    let until = |client: &mut Client, watching: usize| {
        let end = std::time::Instant::now() + PATIENCE;
        while client.session.watchers.watching() != watching {
            assert!(std::time::Instant::now() < end, "{watching} never watch");
            client.is_well();
        }
    };
    until(&mut client, 1);
    client.session.watchers.call();
    until(&mut client, 2);
    until(&mut client, 1);
    // Whichever it is that watches: one task is ended in the middle, without a word.
    client.worker.take().unwrap().abort();
    for _ in 0..100 {
        client.is_well();
    }
    assert_eq!(client.session.watchers.watching(), 1);
    client.worker = client.other.take();
    // Closes the client's end.
    client.socket = Client::new().socket;
    client.has_ended();
}

/// One finds out that it is over, and the one that rests hears of it.
#[test]
fn the_end_is_everybody_s() {
    let mut client = Client::with(Tree::single(ram_disk(), OWNER, 2), 2);
    let end = std::time::Instant::now() + PATIENCE;
    while client.session.watchers.watching() > 1 {
        assert!(std::time::Instant::now() < end, "both watch");
        client.is_well();
    }
    client.socket = Client::new().socket;
    client.has_ended();
    client.worker = client.other.take();
    client.has_ended();
}

/// What a disk that is stuck is asked has a bound, and nothing is lost by that.
#[test]
fn what_is_put_by_has_a_bound() {
    let node = 7;
    let outbox = Arc::new(Outbox::default());
    let mut slots = Slots::new(0, 1, 4096, outbox).unwrap();
    let outstanding = Arc::new(Outstanding::new(1));
    let other = Arc::new(Outstanding::new(1));
    let (epoch, has_room) = slots.enter(node, &outstanding);
    assert!(slots.vacant().is_some() && has_room);
    slots.take(node, epoch);
    assert!(slots.enter(8, &other).1);
    slots.leave(8, epoch);
    assert!(other.is_idle() && !outstanding.is_idle());
    let enter = |slots: &mut Slots| {
        let (epoch, has_room) = slots.enter(node, &outstanding);
        assert!(!has_room);
        epoch
    };
    let write = |epoch, len: usize| Parked {
        unique: 2,
        wanted: Wanted::Write(WriteIn::default(), len),
        data: Some(Segment::from_vec(vec![0; len])),
        epoch,
    };
    let epoch = enter(&mut slots);
    slots.park(node, write(epoch, crate::slots::MAX_PARKED_BYTES - 1));
    assert!(slots.vacant().is_some());
    let epoch = enter(&mut slots);
    slots.park(node, write(epoch, 1));
    assert!(slots.vacant().is_none(), "no more is read");
    let bio = slots.at(0).unwrap().bio.take().unwrap();
    assert_eq!(slots.give_back(0, bio), Some(node));
    let unparked = slots.unpark(node).unwrap();
    slots.take(node, unparked.epoch);
    assert!(slots.vacant().is_some());
    for _ in 0..crate::slots::MAX_PARKED {
        let epoch = enter(&mut slots);
        slots.park(node, Parked { unique: 2, wanted: Wanted::Flush, data: None, epoch });
    }
    assert!(slots.vacant().is_none());
    slots.forget_parked();
    assert!(slots.vacant().is_some() && !slots.are_idle() && !outstanding.is_idle());
    let bio = slots.at(0).unwrap().bio.take().unwrap();
    assert_eq!(slots.give_back(0, bio), Some(node));
    assert!(slots.are_idle() && outstanding.is_idle());
}

/// Requests cut, lengthened and with bytes changed: each is answered at most once, and the next one well.
#[test]
fn requests_that_are_damaged_do_no_harm() {
    let seed = std::env::var("BLOCKYARD_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
    println!("BLOCKYARD_SEED={seed}");
    let mut state = seed | 1;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut client = Client::new();
    let samples = samples();
    let mut answered = std::collections::HashSet::new();
    for _ in 0..2000 {
        let mut bytes = client.request(ROOT_ID, &samples[random(samples.len())]);
        for _ in 0..random(4) {
            // But for who asks: the answer is to be told from others.
            let at = random(bytes.len());
            if !(8..16).contains(&at) {
                bytes[at] = random(256) as u8;
            }
        }
        match random(3) {
            0 => bytes.truncate(InHeader::LEN + random(bytes.len() - InHeader::LEN + 1)),
            1 => bytes.extend_from_slice(&vec![0xa5; random(100)]),
            _ => {}
        }
        let honest = random(2) == 0;
        if honest {
            let len = bytes.len() as u32;
            bytes[..4].copy_from_slice(&len.to_le_bytes());
        }
        client.send(&bytes);
        let last = client.request(ROOT_ID, &Operation::Getattr(GetattrIn::default()));
        client.send(&last);
        // The answer of a disk may come after that to what a disk is not asked.
        loop {
            let answer = client.receive();
            let header = Reply::header(&answer, 0).unwrap();
            assert!(header.unique <= client.unique && answered.insert(header.unique), "{header:?}");
            if header.unique == client.unique {
                assert_eq!(header.error, 0);
                break;
            }
        }
    }
}
