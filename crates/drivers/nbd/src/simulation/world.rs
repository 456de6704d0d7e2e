//! Clients, wires and the server, and what happens to them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::{Extent, Flags, Op, Status};
use blockyard_buf::{Pool, Segment, Segments};
use blockyard_nbd::wire::{HeaderStyle, TransmissionFlags};

use super::dice::Dice;
use super::history::History;
use super::server::{Arrival, BLOCK, BLOCKS, Server, Wire};
use crate::commands::Dialect;
use crate::fence::LinkId;
use crate::job::{Ask, Job};
use crate::link::Link;
use crate::queue::{Ended, Loss, Policy, Queue, Todo};
use crate::recovery::Common;

/// Steps with faults.
const STEPS: usize = 600;
/// Steps in peace, after which everything must be over.
const PEACE: usize = 6000;
/// Requests that are out at a time.
const MOST_OUT: usize = 12;

#[derive(Clone, Copy)]
pub(super) struct Setup {
    pub(super) queues: usize,
    pub(super) fence_timeout: Duration,
    pub(super) volatile: bool,
}

/// What has happened, to see that something did.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) done: u64,
    pub(super) failed: u64,
    pub(super) lost: u64,
    pub(super) replayed: u64,
    pub(super) late: u64,
}

impl Outcome {
    pub(super) fn add(&mut self, other: &Self) {
        self.done += other.done;
        self.failed += other.failed;
        self.lost += other.lost;
        self.replayed += other.replayed;
        self.late += other.late;
    }
}

/// A request.
struct SimJob {
    id: u64,
    ask: Ask,
    memory: Segments,
    delivered: Vec<u8>,
}

impl Job for SimJob {
    fn ask(&self) -> Ask {
        self.ask
    }
    fn memory(&self) -> Segments {
        self.memory.clone()
    }
    fn deliver(&mut self, segment: Segment) {
        self.delivered.extend(segment.to_vec());
    }
    fn extent(&mut self, _extent: Extent) {}
}

pub(super) struct World {
    dice: Dice,
    now: Duration,
    common: Arc<Common<SimJob>>,
    queues: Vec<Queue<SimJob, usize>>,
    wires: Vec<Wire>,
    server: Server,
    history: History,
    /// Requests that are out: when they were submitted.
    out: HashMap<u64, (Duration, Ask)>,
    next_id: u64,
    outcome: Outcome,
    problem: Option<String>,
}

fn policy(fence_timeout: Duration) -> Policy {
    Policy {
        timeout: Duration::from_millis(500),
        patience: 6,
        dead_conn_timeout: Duration::from_secs(4),
        fence_timeout,
    }
}

impl World {
    pub(super) fn new(setup: Setup, mut dice: Dice) -> Self {
        let style =
            [HeaderStyle::Simple, HeaderStyle::Structured, HeaderStyle::Extended][dice.below(3)];
        let common = Arc::default();
        let policy = policy(setup.fence_timeout);
        let queue = |_| Queue::new(Arc::clone(&common), policy, 16);
        Self {
            now: Duration::from_secs(1),
            queues: (0..setup.queues).map(queue).collect(),
            common,
            wires: Vec::new(),
            server: Server::new(style, setup.volatile),
            history: History::new(BLOCKS),
            out: HashMap::new(),
            next_id: 1,
            outcome: Outcome::default(),
            problem: None,
            dice,
        }
    }

    pub(super) fn run(mut self) -> Result<Outcome, String> {
        for _ in 0..STEPS {
            if self.out.len() < MOST_OUT && self.dice.one_in(2) {
                self.submit();
            }
            if self.dice.one_in(25) {
                self.fault();
            }
            self.step(true);
        }
        for step in 0..PEACE {
            // While old connections are still waited for.
            if step < PEACE / 2 && self.out.len() < MOST_OUT && self.dice.one_in(20) {
                self.submit();
            }
            self.step(false);
        }
        self.check_end()?;
        self.outcome.late = self.server.late;
        Ok(self.outcome)
    }

    fn check_end(&mut self) -> Result<(), String> {
        if let Some(problem) = self.problem.take() {
            return Err(problem);
        }
        if !self.out.is_empty() {
            return Err(format!("requests never ended: {:?}", self.out));
        }
        let left: usize = self.queues.iter().map(|queue| queue.conns.len()).sum();
        let slots: usize =
            self.queues.iter().flat_map(|q| &q.conns).map(|conn| conn.link.slots.len()).sum();
        if left > self.queues.len()
            || slots > 0
            || self.common.waiting() > 0
            || self.common.is_fenced()
        {
            return Err(format!("left behind: {left} connections, {slots} slots"));
        }
        Ok(())
    }

    fn delay(&mut self) -> Duration {
        self.now + Duration::from_millis(self.dice.below(40) as u64)
    }

    fn step(&mut self, faults: bool) {
        self.now += Duration::from_millis(1 + self.dice.below(8) as u64);
        // A server that was given up may still work on what it has, for less than the fence lasts.
        let slowest = if faults { 1500 } else { 30 };
        for at in 0..self.wires.len() {
            let gone = !self
                .queues
                .iter_mut()
                .any(|queue| queue.live().is_some_and(|conn| conn.io == Some(at)));
            self.server.turn(&mut self.wires[at], self.now, slowest, gone, &mut self.dice);
        }
        for queue in 0..self.queues.len() {
            self.client(queue);
        }
    }

    /// What the tasks of a queue do.
    fn client(&mut self, at: usize) {
        let mut ended = Ended::new();
        let now = self.now;
        let queue = &mut self.queues[at];
        if queue.live().is_none() && self.dice.one_in(10) {
            self.connect(at);
        }
        let queue = &mut self.queues[at];
        if queue.is_dead(now)
            && let Some(id) = queue.live().map(|conn| conn.id)
        {
            let todo = queue.lose(id, Loss::Silent, now);
            self.act(at, id, &todo);
        }
        let queue = &mut self.queues[at];
        let expired = queue.expire(now, &mut ended);
        for id in expired.abort {
            if let Some(wire) = queue.conn(id).and_then(|conn| conn.io.take()) {
                // What is on the way stays on it.
                self.wires[wire].to_client.cut();
            }
        }
        if self.queues[at].adopt(now, &mut ended) {
            self.outcome.replayed += 1;
        }
        self.send(at);
        let ids: Vec<LinkId> = self.queues[at].conns.iter().map(|conn| conn.id).collect();
        for id in ids {
            self.receive(at, id, &mut ended);
        }
        self.end(ended);
    }

    fn connect(&mut self, at: usize) {
        self.wires.push(Wire::new());
        let dialect =
            Dialect { style: self.server.style, flags: TransmissionFlags::all(), allocation: None };
        let direct = self.dice.one_in(2);
        let link = Link::new(dialect, Pool::default(), direct);
        self.queues[at].attach(link, self.wires.len() - 1);
    }

    /// Sends a part of what waits, or all.
    fn send(&mut self, at: usize) {
        let arrival = self.delay();
        for conn in &mut self.queues[at].conns {
            let Some(wire) = conn.io else { continue };
            let mut bytes = vec![0; 1 + self.dice.below(4000)];
            let len = conn.link.outbox.copy_to(&mut bytes);
            bytes.truncate(len);
            if len > 0 {
                conn.link.outbox.advance(len);
                self.wires[wire].to_server.send(arrival, Arrival::Bytes(bytes));
            }
        }
    }

    fn receive(&mut self, at: usize, id: LinkId, ended: &mut Ended<SimJob>) {
        loop {
            let Some(conn) = self.queues[at].conn(id) else { return };
            let Some(wire) = conn.io.filter(|wire| self.wires[*wire].to_client.is_due(self.now))
            else {
                return;
            };
            match self.wires[wire].to_client.receive(self.now) {
                Some(Arrival::Bytes(bytes)) => {
                    for piece in bytes.chunks(1 + self.dice.below(700)) {
                        let Some(conn) = self.queues[at].conn(id) else { return };
                        put(&mut conn.link, piece, self.now);
                        let todo = self.queues[at].read(id, self.now, ended);
                        self.act(at, id, &todo);
                    }
                }
                Some(Arrival::End) | None => {
                    self.outcome.lost += 1;
                    self.queues[at].lose(id, Loss::Closed, self.now);
                    return;
                }
            }
        }
    }

    fn act(&mut self, at: usize, id: LinkId, todo: &Todo) {
        let arrival = self.delay();
        let Some(wire) = self.queues[at].conn(id).and_then(|conn| conn.io) else { return };
        match todo {
            Todo::Nothing | Todo::Listen => {}
            Todo::HalfClose | Todo::Lied(_) => {
                self.wires[wire].to_server.send(arrival, Arrival::End);
            }
            Todo::Close => {
                self.wires[wire].to_server.send(arrival, Arrival::End);
                self.queues[at].settle(id, self.now);
            }
        }
    }

    fn submit(&mut self) {
        let id = self.next_id;
        self.next_id += 1;
        let first = self.dice.below(BLOCKS);
        let count = 1 + self.dice.below((BLOCKS - first).min(4));
        let op = [Op::Read, Op::Read, Op::Write, Op::Write, Op::Write, Op::WriteZeroes, Op::Flush]
            [self.dice.below(7)];
        let mut ask = Ask {
            op,
            flags: Flags::empty(),
            offset: first as u64 * BLOCK,
            len: count as u64 * BLOCK,
        };
        if op == Op::Flush {
            (ask.offset, ask.len) = (0, 0);
        }
        if op.is_write() && self.dice.one_in(4) {
            ask.flags |= Flags::FUA;
        }
        let mut memory = Segments::new();
        if op == Op::Write || op == Op::Read && self.dice.one_in(2) {
            for _ in 0..count {
                let mut bytes = vec![0; 512];
                bytes[..8].copy_from_slice(&id.to_le_bytes());
                memory.push(Segment::from_vec(bytes));
            }
        }
        for block in blocks(&ask).filter(|_| op.is_write()) {
            self.history.started(block, written(&ask, id), self.now);
        }
        self.out.insert(id, (self.now, ask));
        let queue = self.dice.below(self.queues.len());
        let mut ended = Ended::new();
        let job = SimJob { id, ask, memory, delivered: Vec::new() };
        self.queues[queue].submit(job, self.now, &mut ended);
        self.end(ended);
    }

    /// Requests have ended: they were out, and have what they may.
    fn end(&mut self, ended: Ended<SimJob>) {
        for (job, status) in ended {
            let Some((start, ask)) = self.out.remove(&job.id) else {
                self.problem = Some(format!("request {} ended twice", job.id));
                return;
            };
            *(if status.is_ok() { &mut self.outcome.done } else { &mut self.outcome.failed }) += 1;
            match ask.op {
                Op::Read if status.is_ok() => self.check_read(&job, start),
                Op::Flush if status.is_ok() => self.history.flushed(start, self.now),
                op if op.is_write() => {
                    let durable = ask.flags.contains(Flags::FUA);
                    for block in blocks(&ask) {
                        let value = written(&ask, job.id);
                        self.history.ended(block, value, start, self.now, status.is_ok(), durable);
                    }
                }
                _ => assert!(status != Status::Invalid, "{ask:?}"),
            }
        }
    }

    fn check_read(&mut self, job: &SimJob, start: Duration) {
        let bytes = if job.memory.is_empty() {
            job.delivered.clone()
        } else {
            job.memory.iter().flat_map(Segment::to_vec).collect()
        };
        if bytes.len() as u64 != job.ask.len {
            self.problem = Some(format!("a read of {} bytes has {}", job.ask.len, bytes.len()));
            return;
        }
        for (block, bytes) in blocks(&job.ask).zip(bytes.chunks(512)) {
            let value = u64::from_le_bytes(bytes[..8].try_into().unwrap_or_default());
            if let Err(problem) = self.history.check(block, value, start, self.now) {
                self.problem.get_or_insert(problem);
            }
        }
    }

    fn fault(&mut self) {
        let (now, arrival) = (self.now, self.delay());
        let open: Vec<usize> = (0..self.wires.len()).filter(|at| self.wires[*at].open).collect();
        if open.is_empty() {
            return;
        }
        let at = open[self.dice.below(open.len())];
        let wire = &mut self.wires[at];
        match self.dice.below(8) {
            // Replies are lost, and the client hears nothing any more; what it sent still gets there.
            0 | 1 => wire.to_client.cut(),
            // Nothing gets through any more, either way.
            2 => {
                wire.to_client.cut();
                wire.to_server.cut();
            }
            // The server closes one connection, at once or after its replies.
            3 => wire.close(arrival),
            4 => {
                wire.close(arrival);
                wire.to_client.reset(arrival);
            }
            // It is killed and started again.
            5 => {
                for wire in &mut self.wires {
                    wire.close(arrival);
                }
                if self.server.restart() {
                    self.history.power_cut(now);
                }
            }
            // It sends what is no reply.
            6 => {
                let bytes = (0..1 + self.dice.below(60)).map(|_| self.dice.next().to_le_bytes()[0]);
                let bytes = bytes.collect();
                self.wires[at].to_client.send(arrival, Arrival::Bytes(bytes));
            }
            // Another connection takes the place of the one in use.
            _ => {
                let queue = self.dice.below(self.queues.len());
                if let Some(id) = self.queues[queue].live().map(|conn| conn.id) {
                    let todo = self.queues[queue].lose(id, Loss::Replaced, now);
                    self.act(queue, id, &todo);
                }
            }
        }
    }
}

/// The value that a write leaves in its blocks.
fn written(ask: &Ask, id: u64) -> u64 {
    if ask.op == Op::Write { id } else { 0 }
}

fn blocks(ask: &Ask) -> impl Iterator<Item = usize> + use<> {
    let first = usize::try_from(ask.offset / BLOCK).unwrap_or(0);
    let count = usize::try_from(ask.len / BLOCK).unwrap_or(0);
    first..first + count
}

/// As a socket does: into the places first, then into the buffer.
fn put<J: Job>(link: &mut Link<J>, mut bytes: &[u8], now: Duration) {
    while !bytes.is_empty() {
        link.inbox.make_room();
        let (places, room) = link.inbox.room();
        let mut count = 0;
        for place in places {
            let here = place.len().min(bytes.len());
            place.slice(0, here).copy_from(&bytes[..here]);
            bytes = &bytes[here..];
            count += here;
        }
        let here = room.len().min(bytes.len());
        room[..here].copy_from_slice(&bytes[..here]);
        bytes = &bytes[here..];
        link.came(count + here, now);
    }
}
