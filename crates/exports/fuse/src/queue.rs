//! One queue of the file system, on its thread: requests for data become bios, and their ends the answers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use blockyard_blkmq::{Bio, Outbox, Status};
use blockyard_buf::{Segment, copy_segments, total_len};
use blockyard_fuse::wire::{InHeader, OutHeader, Wire, WriteIn};
use blockyard_fuse::{
    Errno, Limits, MIN_READ_BUFFER, Operation, Payload, Protocol, Reply, Request, head_len,
};
use blockyard_sys::EventWatch;
use blockyard_sys::fuse::Channel;
use blockyard_sys::net::{IOV_MAX, IoVecs};
use blockyard_sys::spin::{Arrival, SpinPolicy};
use tokio::runtime::Handle;

use crate::bios::{Asked, AtOnce, Wanted, ask_status};
use crate::mount::Cache;
use crate::names::{Names, stale};
use crate::seek::{Seek, Step};
use crate::slots::{Parked, Slots};
use crate::tree::{Nodes, Tree};
use crate::watchers::{Watch, Watchers};

/// Where the data of a WRITE begin in what is read: behind its header and its arguments.
const DATA_AT: usize = InHeader::LEN + WriteIn::LEN;
/// Requests that are read before those that have ended are looked at.
const BATCH: usize = 32;
/// Rounds of work after which others on the thread get their turn.
const ROUNDS: usize = 8;

/// Requests of a queue until now. Only the queue counts.
#[derive(Debug, Default)]
pub(crate) struct Requests(AtomicU64);

impl Requests {
    fn add(&self, came: usize) {
        self.0.store(self.until_now().wrapping_add(came as u64), Ordering::Relaxed);
    }

    pub(crate) fn until_now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What all queues of a file system know.
pub(crate) struct Session {
    pub(crate) tree: Arc<Tree>,
    pub(crate) protocol: Protocol,
    pub(crate) cache: Cache,
    pub(crate) watchers: Watchers,
}

/// A queue at work, on its thread.
pub(crate) struct Worker {
    session: Arc<Session>,
    /// Here until it is to serve nobody any more.
    channel: Option<Arc<Channel>>,
    /// The number of the queue thread.
    cpu: usize,
    slots: Slots,
    /// What stands before the data of a request.
    head: Vec<u8>,
    vecs: IoVecs,
    answer: Vec<u8>,
    list: Vec<u8>,
    outbox: Arc<Outbox>,
    ended: Vec<Box<Bio>>,
    /// Bios of one disk that go there together.
    batch: Vec<Box<Bio>>,
    batch_node: u64,
    nodes: Arc<Nodes>,
    seen: u64,
    requests: Arc<Requests>,
    watch: Watch,
    spin: SpinPolicy,
    /// When there was nothing more to do, and it went to sleep.
    dry_since: Option<Instant>,
    /// There was no request when it was looked for last, and no event since.
    dry: bool,
    over: bool,
}

impl Worker {
    /// A queue that has at most `depth` requests with each disk.
    pub(crate) fn new(
        session: Arc<Session>,
        channel: Arc<Channel>,
        cpu: usize,
        depth: usize,
    ) -> io::Result<Self> {
        let Limits { max_write, max_read, head } = session.protocol.limits;
        let room = (max_write.max(max_read) as usize).max(MIN_READ_BUFFER);
        let outbox = Arc::new(Outbox::default());
        let nodes = session.tree.nodes();
        Ok(Self {
            slots: Slots::new(cpu, depth, room, Arc::clone(&outbox))?,
            head: vec![0; head as usize],
            vecs: IoVecs::new(),
            answer: Vec::with_capacity(MIN_READ_BUFFER),
            list: Vec::new(),
            outbox,
            ended: Vec::with_capacity(depth),
            batch: Vec::with_capacity(depth),
            batch_node: 0,
            nodes,
            seen: 0,
            requests: Arc::default(),
            watch: Watch::default(),
            spin: SpinPolicy::default(),
            dry_since: None,
            dry: false,
            over: false,
            session,
            channel: Some(channel),
            cpu,
        })
    }

    /// How many there were, as long as it is served and after.
    pub(crate) fn requests(&self) -> Arc<Requests> {
        Arc::clone(&self.requests)
    }

    /// Serves until the file system is not mounted any more, and until all that it had asked the disks has ended.
    pub(crate) async fn run(mut self, event: EventWatch<Channel>) {
        let mut changed = self.session.tree.subscribe();
        let mut event = Some(event);
        while !self.over {
            self.work().await;
            if self.over {
                break;
            }
            if self.watch.is_to_rest(&self.session.watchers) {
                event = None;
            }
            if event.is_some() && self.look() {
                continue;
            }
            self.dry_since = self.slots.are_idle().then(Instant::now);
            tokio::select! {
                happened = happened(event.as_ref()) => {
                    // Without the events of the runtime there is nothing to go on by.
                    self.over |= happened.is_err();
                    self.watch.woken();
                    self.dry = false;
                }
                () = self.watch.called(&self.session.watchers), if event.is_none() => {
                    event = self.rejoin();
                }
                () = self.outbox.filled() => {}
                // The next turn takes the new picture. There is a sender as long as there is a session.
                _ = changed.changed() => self.over |= self.has_ended(),
            }
        }
        drop(event);
        self.session.watchers.end();
        self.session.tree.wake();
        self.outbox.abandon();
        while !self.slots.are_idle() {
            self.slots.forget_parked();
            if self.session.tree.is_closed() {
                // Others may be served by it still, but nobody is to be: without any, the kernel ends the session.
                self.channel = None;
            }
            tokio::select! {
                () = self.outbox.filled() => {
                    self.turn_over_ended();
                }
                _ = changed.changed() => {}
            }
        }
    }

    /// Looks for the next request for some microseconds, where that has been worth while. Says whether there is something to do.
    fn look(&mut self) -> bool {
        let budget = self.spin.budget().filter(|_| self.slots.are_idle());
        let Some(budget) = budget else { return false };
        self.dry_since = None;
        let start = Instant::now();
        loop {
            self.dry = false;
            let before = self.requests.until_now();
            let found = self.turn();
            let gap = start.elapsed();
            if found || self.over {
                let requests = self.requests.until_now().wrapping_sub(before);
                self.spin.arrived(
                    Arrival::Spinning,
                    gap,
                    usize::try_from(requests).unwrap_or(usize::MAX),
                );
                return true;
            }
            if gap > budget {
                self.spin.missed();
                return false;
            }
        }
    }

    /// Watches the device again. A request that is there already is told of, too.
    fn rejoin(&mut self) -> Option<EventWatch<Channel>> {
        let channel = Arc::clone(self.channel.as_ref()?);
        match EventWatch::new(channel, &Handle::current()) {
            Ok(event) => {
                self.watch.rejoin(&self.session.watchers);
                self.dry = false;
                Some(event)
            }
            Err(err) => {
                tracing::warn!(error = %err, "cannot watch the FUSE device on this queue; other queues serve it");
                None
            }
        }
    }

    /// Whether nobody is to be served any more, whoever has found that out.
    fn has_ended(&self) -> bool {
        self.session.tree.is_closed() || self.session.watchers.are_over()
    }

    /// Works as long as there is something to do.
    async fn work(&mut self) {
        let mut rounds = 0;
        while self.turn() && !self.over {
            rounds += 1;
            if rounds % ROUNDS == 0 {
                self.over |= self.has_ended();
                tokio::task::yield_now().await;
            }
        }
    }

    /// Answers what has ended, and starts what has come. Says whether there may be more.
    fn turn(&mut self) -> bool {
        let answered = self.turn_over_ended();
        self.refresh();
        let mut came = 0;
        while came < BATCH && !self.dry && !self.over {
            let Some(slot) = self.slots.vacant() else {
                self.session.watchers.call();
                break;
            };
            match self.receive(slot) {
                Some(len) => {
                    // After it was read: whoever asks behind a change sees it.
                    self.refresh();
                    self.take(slot, len);
                }
                None => break,
            }
            came += 1;
        }
        self.submit();
        if came > 0 {
            self.requests.add(came);
            if let Some(since) = self.dry_since.take() {
                self.spin.arrived(Arrival::Asleep, since.elapsed(), came);
            }
        }
        self.watch.found(came, BATCH, &self.session.watchers);
        answered || came > 0
    }

    fn refresh(&mut self) {
        if self.session.tree.refresh(&mut self.nodes, &mut self.seen) {
            self.slots.retain(|node| self.nodes.files.contains_key(&node));
        }
    }

    fn turn_over_ended(&mut self) -> bool {
        let mut ended = std::mem::take(&mut self.ended);
        self.outbox.take(&mut ended);
        let any = !ended.is_empty();
        ended.drain(..).for_each(|bio| self.finish(bio));
        self.ended = ended;
        any
    }

    /// Reads a request, with its data in the memory of a slot. Says how long it is.
    fn receive(&mut self, slot: usize) -> Option<usize> {
        let channel = self.channel.as_deref()?;
        loop {
            let mut places = self.vecs.scatter();
            places.push(&mut self.head[..DATA_AT]);
            places.push_segment(&self.slots.at(slot)?.memory);
            let err = match channel.read(places) {
                Ok(len) => return Some(len),
                Err(err) => err,
            };
            let errno = err.raw_os_error().unwrap_or(0);
            if err.kind() == io::ErrorKind::WouldBlock {
                self.dry = true;
                return None;
            }
            // One that is gone, or that was too long, is over: there may be another.
            let goes_on = err.kind() == io::ErrorKind::Interrupted
                || [Errno::ENOENT, Errno::EIO].iter().any(|goes| goes.raw() == errno);
            if !goes_on {
                self.end(&err);
                return None;
            }
        }
    }

    /// The session is over: unmounted, or beyond use.
    fn end(&mut self, err: &io::Error) {
        /// `ENODEV`: it is not mounted any more. `ECONNABORTED`: somebody has ended it.
        const UNMOUNTED: [i32; 2] = [19, 103];
        if !err.raw_os_error().is_some_and(|errno| UNMOUNTED.contains(&errno)) {
            tracing::error!(error = %err, "cannot read requests of the kernel; the file system ends");
        }
        self.over = true;
    }

    /// Answers or starts a request of `len` bytes.
    fn take(&mut self, slot: usize, len: usize) {
        let mut head = std::mem::take(&mut self.head);
        self.take_from(slot, &mut head, len);
        self.head = head;
    }

    fn take_from(&mut self, slot: usize, head: &mut [u8], len: usize) {
        let Some(header) =
            head.get(..len.min(DATA_AT)).and_then(|mut bytes| InHeader::take(&mut bytes))
        else {
            let err = io::Error::other("a request without a header");
            return self.end(&err);
        };
        let here = head_len(&header).min(len).min(head.len());
        if let (Some(rest), Some(slot)) = (head.get_mut(DATA_AT..here), self.slots.at(slot)) {
            // What has no data has all its bytes here.
            slot.memory.copy_to(rest);
        }
        let bytes = head.get(..here).unwrap_or(&[]);
        let request = match Request::parse(bytes, len - here, &self.session.protocol) {
            Ok(request) => request,
            Err(rejected) => {
                tracing::debug!(%rejected, "unknown FUSE request rejected");
                if rejected.wants_reply() {
                    self.reply(header.unique, &Reply::Error(rejected.error.errno()));
                }
                return;
            }
        };
        let mut list = std::mem::take(&mut self.list);
        let names =
            Names { tree: &self.session.tree, nodes: &self.nodes, cache: self.session.cache };
        let opcode = request.operation.opcode();
        match names.answer(header.nodeid, &request.operation, &mut list) {
            Some(reply) if opcode.waits() => self.reply(header.unique, &reply),
            // That there are no interrupts is told once; the rest has no answer.
            Some(reply @ Reply::Error(_))
                if matches!(request.operation, Operation::Interrupt { .. }) =>
            {
                self.reply(header.unique, &reply);
            }
            Some(_) => {}
            None => self.start(slot, &header, &request.operation),
        }
        self.list = list;
    }

    /// Asks the disk if that has room for one more, and answers what it need not be asked.
    fn start(&mut self, slot: usize, header: &InHeader, operation: &Operation<'_>) {
        let (unique, node) = (header.unique, header.nodeid);
        let Some(wanted) = Wanted::of(operation) else {
            return self.reply(unique, &Reply::Error(Errno::ENOSYS));
        };
        let Some(found) = self.nodes.files.get(&node) else {
            return self.reply(unique, &Reply::Error(stale()));
        };
        let (epoch, has_room) = self.slots.enter(node, &found.outstanding);
        if has_room {
            return self.ask(slot, node, &Parked { unique, wanted, data: None, epoch });
        }
        let Some(room) = self.slots.at(slot) else { return };
        let len = wanted.data_len();
        let data = (len > 0).then(|| Segment::from_vec(room.memory.slice(0, len).to_vec()));
        self.slots.park(node, Parked { unique, wanted, data, epoch });
    }

    /// Asks the disk by the vacant slot.
    fn ask(&mut self, slot: usize, node: u64, request: &Parked) {
        if let Err(at_once) = self.try_ask(slot, node, request) {
            self.reply(request.unique, &at_once.reply());
            self.slots.leave(node, request.epoch);
        }
    }

    /// The answer, if the disk need not be asked, or is not there any more.
    fn try_ask(&mut self, slot: usize, node: u64, request: &Parked) -> Result<(), AtOnce> {
        let Parked { unique, wanted, data, epoch } = request;
        let found = self.nodes.files.get(&node).ok_or(AtOnce::Failed(stale()))?;
        let room = self.slots.at(slot).ok_or(AtOnce::Failed(Errno::EIO))?;
        // It came back with the answer before, or has never been out.
        let mut bio = room.bio.take().ok_or(AtOnce::Failed(Errno::EIO))?;
        match wanted.ask(&mut bio, found, data.as_ref().unwrap_or(&room.memory)) {
            Ok(asked) => {
                (room.unique, room.asked) = (*unique, asked);
                self.slots.take(node, *epoch);
                self.add(bio, node);
                Ok(())
            }
            Err(at_once) => {
                room.bio = Some(bio);
                Err(at_once)
            }
        }
    }

    /// Adds a bio to those that go to its disk together.
    fn add(&mut self, bio: Box<Bio>, node: u64) {
        if self.batch_node != node {
            self.submit();
            self.batch_node = node;
        }
        self.batch.push(bio);
    }

    fn submit(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        match self.nodes.files.get(&self.batch_node) {
            Some(node) => node.bdev.submit_all(self.cpu, &mut self.batch),
            // It was taken away since they were added.
            None => self.batch.drain(..).for_each(|bio| bio.end(Status::Offline)),
        }
    }

    /// Answers the request whose bio has ended.
    fn finish(&mut self, mut bio: Box<Bio>) {
        let Ok(slot) = usize::try_from(bio.private) else { return };
        let Some(room) = self.slots.at(slot) else { return };
        let unique = room.unique;
        let asked = std::mem::replace(&mut room.asked, Asked::Nothing);
        let status = bio.status();
        match (status, asked) {
            (Status::Ok, Asked::Read) => self.reply_data(slot, unique, &mut bio),
            (Status::Ok, Asked::Write(len)) => self.reply(unique, &Reply::Written(len)),
            (Status::Ok, Asked::Seek(seek)) => return self.go_on(slot, seek, bio),
            (Status::Ok, _) => self.reply(unique, &Reply::Empty),
            // The disk has become smaller meanwhile.
            (Status::OutOfRange, Asked::Read) => {
                self.reply(unique, &Reply::Data(Payload::default()));
            }
            (status, _) => self.reply(unique, &Reply::Error(Errno::from_raw(status.errno()))),
        }
        self.give_back(slot, bio);
    }

    fn give_back(&mut self, slot: usize, mut bio: Box<Bio>) {
        drop(bio.take_data());
        let Some(node) = self.slots.give_back(slot, bio) else { return };
        while let Some(parked) = self.slots.unpark(node) {
            self.ask(slot, node, &parked);
        }
    }

    /// Goes on looking for data or a hole.
    fn go_on(&mut self, slot: usize, mut seek: Seek, mut bio: Box<Bio>) {
        let Some(room) = self.slots.at(slot) else { return };
        let unique = room.unique;
        let reply = match seek.step(&bio.extents) {
            Step::Found(offset) => Reply::Offset(offset),
            Step::Nothing(errno) => Reply::Error(errno),
            Step::Further if self.over => Reply::Error(Errno::EIO),
            Step::Further => match self.nodes.files.get(&seek.node) {
                Some(_) => {
                    ask_status(&mut bio, &seek);
                    room.asked = Asked::Seek(seek);
                    return self.add(bio, seek.node);
                }
                None => Reply::Error(stale()),
            },
        };
        self.reply(unique, &reply);
        self.give_back(slot, bio);
    }

    fn reply(&mut self, unique: u64, reply: &Reply<'_>) {
        let Some(channel) = &self.channel else { return };
        self.answer.clear();
        reply.encode(unique, &mut self.answer);
        let mut message = self.vecs.gather();
        message.push(&self.answer);
        let written = channel.write(message);
        self.replied(written);
    }

    /// Answers with the data that a read has brought, from where they are.
    fn reply_data(&mut self, slot: usize, unique: u64, bio: &mut Bio) {
        let mut data = bio.take_data();
        let len = total_len(&data);
        if data.len() >= IOV_MAX {
            // More pieces than the kernel takes.
            let Some(slot) = self.slots.at(slot) else { return };
            let memory = slot.memory.slice(0, len);
            copy_segments(std::slice::from_ref(&memory), &data);
            data.clear();
            data.push(memory);
        }
        let Some(channel) = &self.channel else { return };
        let reply = Reply::Data(Payload { here: &[], elsewhere: len });
        self.answer.clear();
        reply.out_header(unique, 0).write(&mut self.answer);
        debug_assert_eq!(self.answer.len(), OutHeader::LEN, "a header is all that is here");
        let mut message = self.vecs.gather();
        message.push(&self.answer);
        data.iter().for_each(|segment| message.push_segment(segment, 0));
        let written = channel.write(message);
        self.replied(written);
    }

    fn replied(&mut self, written: io::Result<()>) {
        let Err(err) = written else { return };
        match err.raw_os_error() {
            // Nobody waits for it any more.
            Some(errno) if errno == Errno::ENOENT.raw() => {}
            Some(errno) if errno == Errno::EINVAL.raw() => {
                tracing::error!(error = %err, "kernel rejected a reply");
            }
            _ => self.end(&err),
        }
    }
}

/// Waits for the device, if it is watched.
async fn happened(event: Option<&EventWatch<Channel>>) -> io::Result<()> {
    match event {
        Some(event) => event.happened().await,
        None => std::future::pending().await,
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Also of one that has panicked.
        self.watch.gone(&self.session.watchers);
    }
}

#[cfg(test)]
pub(crate) mod tests;
