//! The driver on a disk of the block layer, its network and its servers, and what happens to them.

mod faults;
mod requests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::{Bdev, Clock, Disk, DiskConfig, Op, OpenMode, Status, TagSet};
use blockyard_buf::Segment;
use blockyard_nbd::wire::{HeaderStyle, TransmissionFlags};
use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle};
use tokio::time::{Instant, sleep};

use super::dice::Dice;
use super::history::{History, Trust};
use super::net::{Exchange, Wire};
use super::server::{BLOCK, BLOCKS, End, Pace, Server, Session, Storage};
use crate::backoff::Backoff;
use crate::config::NbdConfig;
use crate::driver::Nbd;
use requests::{Ask, Ended};

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
    /// What was written is flushed when nothing has come for so long.
    pub(super) flush_after: Option<Duration>,
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
    /// Servers end in order and are started anew, and the disk moves. Each has a cache of its own, which hides what the other
    /// one has written. Nothing fails, and nothing is lost, but of a client that was slow to leave.
    Order,
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
    /// Servers that ended in order.
    pub(super) ends: u64,
    /// Connections whose server has cut them off, with no flush of theirs out, before they had flushed all.
    pub(super) cut_short: u64,
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
        self.ends += other.ends;
        self.cut_short += other.cut_short;
        self.flushed += other.flushed;
        self.lost += other.lost;
    }
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
    trouble: Trouble,
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
    /// Requests that failed, and the last one of them.
    failed: Vec<u64>,
    last_failure: Option<(Ask, Status)>,
    problem: Option<String>,
}

fn config(setup: Setup) -> NbdConfig {
    NbdConfig {
        connections: Some(setup.queues),
        // Nobody is taken for dead where nobody is.
        timeout: Duration::from_millis(if setup.trouble == Trouble::Order { 6000 } else { 500 }),
        // Who ends in order, again and again, is waited for.
        dead_conn_timeout: Duration::from_secs(if setup.trouble == Trouble::Order {
            300
        } else {
            10
        }),
        fence_timeout: setup.fence_timeout,
        trust_server: setup.trusting,
        flush_after: setup.flush_after,
        backoff: Backoff { first: Duration::from_millis(10), most: Duration::from_millis(200) },
        ..NbdConfig::new("nbd+unix:///x?socket=0".parse().unwrap())
    }
}

/// What a flush tells of what a server has lost.
fn trust(setup: Setup) -> Trust {
    match (setup.trusting, setup.trouble) {
        (false, _) => Trust::None,
        (true, Trouble::Servers | Trouble::Order) => Trust::Kept,
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
            Trouble::Servers | Trouble::Order => world.live_among_servers().await,
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
            end: End::None,
            fails: setup.trouble == Trouble::Any,
            slow_to_flush: setup.trouble == Trouble::Order && dice.one_in(4),
            poison: None,
        };
        let mut servers = vec![server.clone(), Server { name: "1".into(), ..server }];
        let exchange = Arc::new(Exchange::default());
        let threads = [Handle::current()];
        let dialer = Arc::clone(&exchange);
        let connecting =
            tokio::spawn(async move { Nbd::connect_by(dialer, config(setup), &threads).await });
        let (start, mut sessions, mut storage) = (
            Instant::now(),
            Vec::new(),
            Storage::new(setup.volatile, setup.trouble == Trouble::Order),
        );
        while !connecting.is_finished() {
            sleep(Duration::from_millis(1)).await;
            pump(
                start.elapsed(),
                PEACEFUL,
                &exchange,
                &mut servers,
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
            trouble: setup.trouble,
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
            last_failure: None,
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
        // A connection that is found dead at the end of that is fenced for as long as any other.
        self.until_nothing_is_left().await?;
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
            // Long enough to be idle.
            if self.trouble == Trouble::Order && self.dice.one_in(100) {
                self.rest().await?;
            }
            self.step(FAULTY).await?;
        }
        // In the midst of it.
        self.fault_of_servers();
        for _ in 0..self.dice.below(12) {
            self.step(FAULTY).await?;
        }
        self.survive_power_cuts().await?;
        self.outcome.connections = self.sessions.len() as u64;
        self.until_nothing_is_left().await
    }

    /// After a last flush, all servers lose what they have not made durable.
    async fn survive_power_cuts(&mut self) -> Result<(), String> {
        self.submit_one(Op::Flush);
        self.until_all_ended().await?;
        self.outcome.cut_short =
            self.sessions.iter().filter(|session| session.cut_short).count() as u64;
        let is_excused = self.outcome.cut_short > 0;
        if self.trouble == Trouble::Order && self.outcome.failed > 0 && !is_excused {
            return Err(format!("it failed, and nothing was wrong: {:?}", self.last_failure));
        }
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

    async fn until_nothing_is_left(&mut self) -> Result<(), String> {
        for _ in 0..PEACE {
            if self.check_end().is_ok() {
                return Ok(());
            }
            self.step(PEACEFUL).await?;
        }
        self.check_end()
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
        self.until_nothing_is_left().await?;
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
        storage.write_back(dice);
        pump(now, pace, exchange, servers, sessions, storage, dice);
    }
}

const FAULTY: Pace = Pace { usual_ms: 30, slowest_ms: 3000, packet_ms: 40 };
const PEACEFUL: Pace = Pace { usual_ms: 30, slowest_ms: 30, packet_ms: 40 };

fn pump(
    now: Duration,
    pace: Pace,
    exchange: &Exchange,
    servers: &mut [Server],
    sessions: &mut Vec<Session>,
    storage: &mut Storage,
    dice: &mut Dice,
) {
    for (name, far) in exchange.accept() {
        let server = servers.iter().position(|server| server.name == name).unwrap();
        if servers[server].end != End::None {
            // Nobody listens any more, or yet.
            continue;
        }
        sessions.push(Session::new(Wire::new(far), server, servers[server].style));
    }
    for session in sessions.iter_mut() {
        session.turn(&servers[session.server], storage, now, pace, dice);
    }
    for (server, at) in servers.iter_mut().zip(0..) {
        let is_left = !sessions.iter().any(|session| session.server == at && session.open);
        server.end = match server.end {
            End::Draining if is_left => {
                storage.flush(at);
                End::DownUntil(now + Duration::from_millis(dice.below(500) as u64))
            }
            End::DownUntil(until) if now >= until => End::None,
            end => end,
        };
    }
}
