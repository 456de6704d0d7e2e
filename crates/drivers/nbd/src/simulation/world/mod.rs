//! The driver on a disk of the block layer, its network and its servers, and what happens to them.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::{
    Bdev, Bio, Clock, Disk, DiskConfig, Flags, Op, OpenMode, Sector, Status, TagSet,
};
use blockyard_buf::{Segment, Segments};
use blockyard_nbd::wire::{HeaderStyle, TransmissionFlags};
use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle};
use tokio::time::{Instant, advance, sleep};

use super::dice::Dice;
use super::history::{History, Trust};
use super::net::{Exchange, Wire};
use super::server::{BLOCK, BLOCKS, Pace, REUSED, Server, Session, Storage};
use crate::backoff::Backoff;
use crate::config::NbdConfig;
use crate::driver::Nbd;

/// Steps with faults.
const STEPS: usize = 2000;
/// At most so many where only servers make trouble.
const STEPS_OF_SERVERS: usize = 200;
/// Steps in peace, after which everything must be over.
const PEACE: usize = 900;
/// Requests that are out at a time.
const MOST_OUT: usize = 32;
/// Memory that was given back is looked at for so many requests.
const MOST_KEPT: usize = 60;

#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) queues: usize,
    pub(super) fence_timeout: Duration,
    pub(super) volatile: bool,
    pub(super) trusting: bool,
    pub(super) trouble: Trouble,
    /// All writes come by one queue, so that others have nothing to lose.
    pub(super) one_writes: bool,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Everything.
    Any,
    /// Servers are killed, and the disk moves: what was flushed is to be there.
    Servers,
}

/// What has happened, to see that something did.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) done: u64,
    pub(super) failed: u64,
    pub(super) connections: u64,
    pub(super) late: u64,
    pub(super) moves: u64,
    pub(super) pauses: u64,
    /// Flushes that succeeded.
    pub(super) flushed: u64,
    /// Blocks that lost their value in a power cut.
    pub(super) lost: u64,
}

impl Outcome {
    pub(super) fn add(&mut self, other: &Self) {
        self.done += other.done;
        self.failed += other.failed;
        self.connections += other.connections;
        self.late += other.late;
        self.moves += other.moves;
        self.pauses += other.pauses;
        self.flushed += other.flushed;
        self.lost += other.lost;
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
struct Ask {
    op: Op,
    fua: bool,
    first: usize,
    count: usize,
    start: Duration,
}

/// A request that has ended, and its memory, which its owner has used for something else at once.
struct Ended {
    id: u64,
    status: Status,
    at: Duration,
    read: Vec<u8>,
    kept: Vec<(Segment, Vec<u8>)>,
}

/// The runtime's clock, which stands still while anybody works.
struct VirtualClock(Instant);

impl Clock for VirtualClock {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap()
    }
}

pub(super) struct World {
    dice: Dice,
    start: Instant,
    exchange: Arc<Exchange>,
    servers: Vec<Server>,
    sessions: Vec<Session>,
    storage: Storage,
    nbd: Arc<Nbd>,
    disk: Arc<Disk>,
    bdev: Bdev,
    queues: usize,
    trusting: bool,
    one_writes: bool,
    history: History,
    ended: Arc<Mutex<Vec<Ended>>>,
    /// Requests that are out.
    out: BTreeMap<u64, Ask>,
    /// Memory of requests that have ended, and what must be in it.
    kept: Vec<(u64, Segment, Vec<u8>)>,
    next_id: u64,
    /// Nobody listens until then.
    refusing_until: Duration,
    /// Timers of the block layer are late until then.
    late_until: Duration,
    outcome: Outcome,
    /// Requests that failed.
    failed: Vec<u64>,
    problem: Option<String>,
}

fn config(setup: Setup) -> NbdConfig {
    NbdConfig {
        connections: Some(setup.queues),
        timeout: Duration::from_millis(500),
        dead_conn_timeout: Duration::from_secs(10),
        fence_timeout: setup.fence_timeout,
        trust_server: setup.trusting,
        backoff: Backoff { first: Duration::from_millis(10), most: Duration::from_millis(200) },
        ..NbdConfig::new("nbd+unix:///x?socket=0".parse().unwrap())
    }
}

/// What a flush tells of what a server has lost.
fn trust(setup: Setup) -> Trust {
    match (setup.trusting, setup.trouble) {
        (false, _) => Trust::None,
        (true, Trouble::Servers) => Trust::Kept,
        (true, Trouble::Any) => Trust::Betrayed,
    }
}

/// Runs a world from its beginning to its end.
pub(super) fn run(setup: Setup, dice: Dice) -> Result<Outcome, String> {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(setup, dice).await?;
        let lived = match setup.trouble {
            Trouble::Any => world.live().await,
            Trouble::Servers => world.live_among_servers().await,
        };
        world.end();
        lived.map(|()| world.outcome)
    })
}

/// Runs a world in which nothing is wrong but that a server hangs up on one write. Gives that, and what failed.
pub(super) fn run_with_poison(setup: Setup, dice: Dice) -> Result<(u64, Vec<u64>), String> {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(setup, dice).await?;
        world.servers.iter_mut().for_each(|server| server.fails = false);
        let suffered = world.suffer_poison().await;
        world.end();
        suffered
    })
}

impl World {
    async fn new(setup: Setup, mut dice: Dice) -> Result<Self, String> {
        let styles = [HeaderStyle::Simple, HeaderStyle::Structured, HeaderStyle::Extended];
        let server = Server {
            name: "0".into(),
            style: styles[dice.below(3)],
            flags: TransmissionFlags::all()
                - TransmissionFlags::READ_ONLY
                - TransmissionFlags::ROTATIONAL,
            size: BLOCKS as u64 * BLOCK,
            hasty: dice.one_in(2),
            frozen_until: Duration::ZERO,
            fails: setup.trouble == Trouble::Any,
            poison: None,
        };
        let servers = vec![server.clone(), Server { name: "1".into(), ..server }];
        let exchange = Arc::new(Exchange::default());
        let threads = [Handle::current()];
        let dialer = Arc::clone(&exchange);
        let connecting =
            tokio::spawn(async move { Nbd::connect_by(dialer, config(setup), &threads).await });
        let (start, mut sessions, mut storage) =
            (Instant::now(), Vec::new(), Storage::new(setup.volatile));
        while !connecting.is_finished() {
            sleep(Duration::from_millis(1)).await;
            pump(
                start.elapsed(),
                PEACEFUL,
                &exchange,
                &servers,
                &mut sessions,
                &mut storage,
                &mut dice,
            );
        }
        let (nbd, export) =
            connecting.await.map_err(|err| err.to_string())?.map_err(|err| err.chain())?;
        let queues = nbd.connections();
        let set = TagSet::new(Arc::clone(&nbd), nbd.tag_set_config(queues)).unwrap();
        let of_disk = DiskConfig::new("nbd0", export.capacity, export.limits);
        let clock = Arc::new(VirtualClock(start));
        let ops = Arc::clone(&nbd);
        let disk = Disk::alloc(&set, (), of_disk, ops, clock).unwrap();
        let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
        Ok(Self {
            dice,
            start,
            exchange,
            servers,
            sessions,
            storage,
            nbd,
            disk,
            bdev,
            queues,
            trusting: setup.trusting,
            one_writes: setup.one_writes,
            history: History::new(BLOCKS, trust(setup)),
            ended: Arc::default(),
            out: BTreeMap::new(),
            kept: Vec::new(),
            next_id: 1,
            refusing_until: Duration::ZERO,
            late_until: Duration::ZERO,
            outcome: Outcome::default(),
            failed: Vec::new(),
            problem: None,
        })
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Whoever drops the disk waits for what is out, which is much where something was wrong.
    fn end(&self) {
        self.nbd.clear_queue();
    }

    async fn live(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            if self.out.len() < MOST_OUT && self.dice.one_in(2) {
                self.submit();
            }
            if self.dice.one_in(80) {
                self.fault().await;
            }
            self.step(FAULTY).await?;
        }
        self.exchange.listen(true);
        self.servers.iter_mut().for_each(|server| server.poison = None);
        for step in 0..PEACE {
            // While old connections are still waited for.
            if step < PEACE / 3 && self.out.len() < MOST_OUT && self.dice.one_in(20) {
                self.submit();
            }
            if step == PEACE / 2 {
                self.give_up_the_deaf();
            }
            self.step(PEACEFUL).await?;
        }
        self.check_end()?;
        self.outcome.late = self.storage.late;
        self.outcome.connections = self.sessions.len() as u64;
        Ok(())
    }

    /// Servers die and the disk moves, and at any time all that was flushed is to be there.
    async fn live_among_servers(&mut self) -> Result<(), String> {
        for _ in 0..self.dice.below(STEPS_OF_SERVERS) {
            if self.out.len() < MOST_OUT && self.dice.one_in(4) {
                self.submit();
            }
            if self.dice.one_in(12) {
                self.fault_of_servers();
            }
            self.step(FAULTY).await?;
        }
        // In the midst of it.
        self.fault_of_servers();
        for _ in 0..self.dice.below(12) {
            self.step(FAULTY).await?;
        }
        self.survive_power_cuts().await?;
        for _ in 0..PEACE {
            if self.check_end().is_ok() {
                break;
            }
            self.step(PEACEFUL).await?;
        }
        self.outcome.connections = self.sessions.len() as u64;
        self.check_end()
    }

    /// After a last flush, all servers lose what they have not made durable.
    async fn survive_power_cuts(&mut self) -> Result<(), String> {
        self.submit_one(Op::Flush);
        self.until_all_ended().await?;
        for server in 0..self.servers.len() {
            self.restart(server);
        }
        for first in 0..BLOCKS {
            self.submit_range(Op::Read, first, 1);
        }
        self.until_all_ended().await
    }

    async fn until_all_ended(&mut self) -> Result<(), String> {
        for _ in 0..PEACE {
            if self.out.is_empty() {
                return Ok(());
            }
            self.step(PEACEFUL).await?;
        }
        Err(format!("requests never ended: {:?}", self.out))
    }

    /// A server that hangs up on one request: says which requests have failed.
    async fn suffer_poison(&mut self) -> Result<(u64, Vec<u64>), String> {
        let mut poison = 0;
        for step in 0..STEPS {
            if step == 50 {
                poison = self.next_id;
                self.servers.iter_mut().for_each(|server| server.poison = Some(poison));
                self.submit_one(Op::Write);
            } else if step < STEPS / 2 && self.out.len() < MOST_OUT && self.dice.one_in(2) {
                self.submit();
            }
            self.step(PEACEFUL).await?;
        }
        self.check_end()?;
        Ok((poison, std::mem::take(&mut self.failed)))
    }

    fn check_end(&mut self) -> Result<(), String> {
        if !self.out.is_empty() {
            return Err(format!("requests never ended: {:?}", self.out));
        }
        let (mut conns, mut slots) = (0, 0);
        for handle in self.nbd.inner.handles() {
            handle.with(|hctx| {
                conns += hctx.queue.conns.len();
                slots += hctx.queue.conns.iter().map(|conn| conn.link.slots.len()).sum::<usize>();
            });
        }
        let held = self.sessions.iter().filter(|session| session.wire.is_held()).count();
        let common = &self.nbd.inner.common;
        if conns > self.queues
            || held > self.queues
            || slots > 0
            || common.waiting() > 0
            || common.is_fenced()
        {
            return Err(format!(
                "left behind: {conns} connections, {held} sockets, {slots} slots, {} that wait, fenced: {}",
                common.waiting(),
                common.is_fenced()
            ));
        }
        Ok(())
    }

    async fn step(&mut self, pace: Pace) -> Result<(), String> {
        let most = if pace.slowest_ms > 100 { 16 } else { 40 };
        sleep(Duration::from_millis(1 + self.dice.below(most) as u64)).await;
        self.pump(self.now(), pace);
        if self.now() >= self.late_until && self.dice.one_in(4) {
            self.disk.tick();
        }
        self.take_ended();
        if self.dice.one_in(8) {
            self.check_kept();
        }
        match self.problem.take().or_else(|| self.storage.problem.take()) {
            Some(problem) => Err(problem),
            None => Ok(()),
        }
    }

    fn pump(&mut self, now: Duration, pace: Pace) {
        self.exchange.listen(now >= self.refusing_until);
        let Self { exchange, servers, sessions, storage, dice, .. } = self;
        pump(now, pace, exchange, servers, sessions, storage, dice);
    }

    fn submit(&mut self) {
        let ops = [Op::Read, Op::Read, Op::Write, Op::Write, Op::Write, Op::WriteZeroes, Op::Flush];
        let op = ops[self.dice.below(ops.len())];
        self.submit_one(op);
    }

    fn submit_one(&mut self, op: Op) {
        let first = self.dice.below(BLOCKS);
        let count = 1 + self.dice.below((BLOCKS - first).min(6));
        self.submit_range(op, first, count);
    }

    fn submit_range(&mut self, op: Op, first: usize, count: usize) {
        let id = self.next_id;
        self.next_id += 1;
        let fua = op.is_write() && self.dice.one_in(4);
        let ask = Ask { op, fua, first, count, start: self.now() };
        let sector = Sector(first as u64);
        let mut bio = match op {
            Op::Flush => Bio::flush(),
            Op::Read if self.dice.one_in(2) => Bio::new(op, sector, count as u64 * BLOCK),
            Op::Read | Op::Write => Bio::with_data(op, sector, self.memory(id, count)),
            _ => Bio::new(op, sector, count as u64 * BLOCK),
        };
        if fua {
            bio = bio.with_flags(Flags::FUA);
        }
        if op.is_write() {
            for block in ask.blocks() {
                self.history.started(block, ask.leaves(id), ask.start);
            }
        }
        self.out.insert(id, ask);
        bio.private = id;
        let (ended, start) = (Arc::clone(&self.ended), self.start);
        let bio = bio.on_end(Arc::new(move |bio: Box<Bio>| {
            ended.lock().push(reuse(&bio, start.elapsed()));
        }));
        let any = self.dice.below(self.queues);
        let cpu = if self.one_writes && op.is_write() { self.queues - 1 } else { any };
        self.bdev.submit(cpu, bio);
    }

    /// Memory of a request, in pieces.
    fn memory(&mut self, id: u64, count: usize) -> Segments {
        let words = usize::try_from(BLOCK / 8).unwrap() * count;
        let whole = Segment::from_vec(id.to_le_bytes().repeat(words));
        let cut = 8 * self.dice.below(words);
        let parts = [whole.slice(0, cut), whole.slice(cut, whole.len() - cut)];
        parts.into_iter().filter(|part| !part.is_empty()).collect()
    }

    /// Requests have ended: they were out, and have what they may.
    fn take_ended(&mut self) {
        let ended = std::mem::take(&mut *self.ended.lock());
        for Ended { id, status, at, read, kept } in ended {
            let Some(ask) = self.out.remove(&id) else {
                self.problem = Some(format!("request {id} ended twice"));
                return;
            };
            if status.is_ok() {
                self.outcome.done += 1;
            } else {
                self.outcome.failed += 1;
                self.failed.push(id);
            }
            self.kept.extend(kept.into_iter().map(|(segment, bytes)| (id, segment, bytes)));
            match ask.op {
                Op::Read if status.is_ok() => self.check_read(ask, &read, at),
                Op::Flush if status.is_ok() => {
                    self.outcome.flushed += 1;
                    self.history.flushed(ask.start, at);
                }
                op if op.is_write() => {
                    for block in ask.blocks() {
                        let value = ask.leaves(id);
                        let ok = status.is_ok();
                        self.history.ended(block, value, ask.start, at, ok, ask.fua);
                    }
                }
                _ => assert!(status != Status::Invalid, "{ask:?}"),
            }
        }
    }

    fn check_read(&mut self, ask: Ask, bytes: &[u8], at: Duration) {
        if bytes.len() as u64 != ask.count as u64 * BLOCK {
            self.problem =
                Some(format!("a read of {} blocks has {} bytes", ask.count, bytes.len()));
            return;
        }
        for (block, bytes) in ask.blocks().zip(bytes.chunks(512)) {
            let value = u64::from_le_bytes(bytes[..8].try_into().unwrap_or_default());
            if bytes.chunks(8).any(|word| word != value.to_le_bytes()) {
                self.problem.get_or_insert(format!("block {block} was read in parts"));
            }
            if let Err(problem) = self.history.check(block, value, ask.start, at) {
                self.problem.get_or_insert(problem);
            }
        }
    }

    /// Whoever has memory back has it alone.
    fn check_kept(&mut self) {
        let changed = self.kept.iter().find(|(_, segment, bytes)| segment.to_vec() != *bytes);
        if let Some((id, ..)) = changed {
            self.problem
                .get_or_insert(format!("memory of request {id} was written to after its end"));
        }
        let over = self.kept.len().saturating_sub(MOST_KEPT);
        self.kept.drain(..over);
    }

    /// A server dies, which is heard of late, or the disk moves.
    fn fault_of_servers(&mut self) {
        let now = self.now();
        let server = self.dice.below(self.servers.len());
        let open = self.sessions.iter_mut().filter(|session| session.open);
        // Whose restarts are trusted have none: all that was flushed is there, however often the disk moved.
        match self.dice.below(12) {
            0 if !self.trusting => self.restart(server),
            1..4 => self.move_to(server),
            4 => self.servers[server].frozen_until = now + Duration::from_millis(300),
            5 => open
                .for_each(|session| session.wire.parted_until = now + Duration::from_millis(400)),
            _ => {
                let open: Vec<_> = open.collect();
                let at = self.dice.below(open.len());
                if let Some(session) = open.into_iter().nth(at) {
                    match self.dice.below(4) {
                        0 if !self.trusting => session.close(now),
                        _ => {
                            session.wire.parted_until =
                                now + Duration::from_millis(self.dice.below(1500) as u64);
                        }
                    }
                }
            }
        }
    }

    async fn fault(&mut self) {
        let now = self.now();
        let at = now + Duration::from_millis(self.dice.below(40) as u64);
        let later = |dice: &mut Dice, most_ms: usize| {
            now + Duration::from_millis(dice.below(most_ms) as u64)
        };
        let server = self.dice.below(self.servers.len());
        let open: Vec<usize> =
            (0..self.sessions.len()).filter(|at| self.sessions[*at].open).collect();
        let Some(&one) = open.get(self.dice.below(open.len())) else { return };
        let until = later(&mut self.dice, 3000);
        match self.dice.below(20) {
            // Replies are lost, and the client hears nothing any more; what it sent still gets there.
            0 | 1 | 15..18 => self.sessions[one].wire.deafen(),
            // Nothing gets through, either way, for a while.
            2 | 3 => self.sessions[one].wire.parted_until = later(&mut self.dice, 9000),
            4 => self.sessions[one].wire.stalled_until = until,
            5 => self.sessions[one].close(at),
            6 => self.sessions[one].babble(now, &mut self.dice),
            7 => self.restart(server),
            8 => self.servers[server].frozen_until = until,
            9 => self.refusing_until = until,
            10 => self.late_until = until,
            11 | 12 => self.move_to(server),
            13 | 18 | 19 => self.break_one(),
            _ => self.pause().await,
        }
    }

    /// A server is killed and started again. That its connections have ended is heard of at any time later.
    fn restart(&mut self, server: usize) {
        let (now, longest) = (self.now(), [40, 2000][self.dice.below(2)]);
        for session in self.sessions.iter_mut().filter(|session| session.server == server) {
            session.close(now + Duration::from_millis(self.dice.below(longest) as u64));
        }
        let lost = self.storage.restart(server);
        self.outcome.lost += lost.len() as u64;
        self.history.power_cut(now, &lost);
    }

    fn move_to(&mut self, server: usize) {
        self.outcome.moves += 1;
        let uri = format!("nbd+unix:///x?socket={}", self.servers[server].name);
        let nbd = Arc::clone(&self.nbd);
        tokio::spawn(async move {
            // Where that does not work, all stays as it was.
            let _ = nbd.reconfigure(uri.parse().unwrap()).await;
        });
    }

    /// The network gives a connection up.
    fn break_one(&mut self) {
        let at = self.dice.below(self.queues);
        if let Some(handle) = self.nbd.inner.handles().nth(at) {
            handle.with(|hctx| {
                if let Some(id) = hctx.queue.live().map(|conn| conn.id) {
                    hctx.lost(id, Some(io::ErrorKind::TimedOut.into()));
                }
            });
        }
    }

    /// The network gives up what it has heard nothing on: all that are waited for, as others have answered by now.
    fn give_up_the_deaf(&self) {
        for handle in self.nbd.inner.handles() {
            handle.with(|hctx| {
                let live = hctx.queue.live().map(|conn| conn.id);
                let ids: Vec<_> = hctx.queue.conns.iter().map(|conn| conn.id).collect();
                for id in ids.into_iter().filter(|id| Some(*id) != live) {
                    hctx.lost(id, Some(io::ErrorKind::TimedOut.into()));
                }
            });
        }
    }

    /// The process is stopped, or its machine is; the rest of the world goes on.
    async fn pause(&mut self) {
        self.outcome.pauses += 1;
        let longest = [1_000, 10_000, 300_000][self.dice.below(3)];
        let pause = Duration::from_millis(self.dice.below(longest) as u64);
        let (before, mut gone) = (self.now(), Duration::ZERO);
        while gone < pause {
            gone += if gone < Duration::from_secs(12) {
                Duration::from_millis(50)
            } else {
                Duration::from_secs(5)
            };
            self.pump(before + gone.min(pause), FAULTY);
        }
        advance(pause).await;
    }
}

const FAULTY: Pace = Pace { usual_ms: 30, slowest_ms: 3000, packet_ms: 40 };
const PEACEFUL: Pace = Pace { usual_ms: 30, slowest_ms: 30, packet_ms: 40 };

fn pump(
    now: Duration,
    pace: Pace,
    exchange: &Exchange,
    servers: &[Server],
    sessions: &mut Vec<Session>,
    storage: &mut Storage,
    dice: &mut Dice,
) {
    for (name, far) in exchange.accept() {
        let server = servers.iter().position(|server| server.name == name).unwrap();
        sessions.push(Session::new(Wire::new(far), server, servers[server].style));
    }
    for session in sessions {
        session.turn(&servers[session.server], storage, now, pace, dice);
    }
}

impl Ask {
    fn blocks(self) -> std::ops::Range<usize> {
        self.first..self.first + self.count
    }

    /// The value that a write leaves in its blocks.
    fn leaves(self, id: u64) -> u64 {
        if self.op == Op::Write { id } else { 0 }
    }
}

/// What the owner of memory does as soon as it has it back.
fn reuse(bio: &Bio, at: Duration) -> Ended {
    let read: Vec<u8> = bio.data().iter().flat_map(Segment::to_vec).collect();
    let mut kept = Vec::new();
    for segment in bio.data() {
        if !bio.wants_supply() {
            let word = (REUSED | bio.private).to_le_bytes();
            segment.copy_from(&word.repeat(segment.len() / 8));
        }
        kept.push((segment.clone(), segment.to_vec()));
    }
    Ended { id: bio.private, status: bio.status(), at, read, kept }
}
