//! The flush state machine (kernel: block/blk-flush.c).
//!
//! A write that wants a flush before it, or to be durable when it ends, goes through up to three steps:
//! PREFLUSH, DATA, POSTFLUSH. Flushes are shared: while one is with the driver, all that need a next one
//! gather, and go with it. What a disk can do decides which steps are left: without a volatile cache none is,
//! with FUA in the driver POSTFLUSH is not.
//!
//! This is a pure state machine over some kind of request `R`: it says what to do next, and is told what was
//! done.

use std::collections::VecDeque;
use std::fmt;

use crate::op::{Flags, Op, Status};

bitflags::bitflags! {
    /// Steps that are still before a request.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Steps: u8 {
        const PREFLUSH = 1;
        const DATA = 2;
        const POSTFLUSH = 4;
    }
}

impl Steps {
    /// The steps of an operation on a disk with a volatile write cache (kernel: `blk_flush_policy`).
    pub(crate) fn of(op: Op, flags: Flags, driver_has_fua: bool) -> Self {
        let mut steps = Self::empty();
        steps.set(Self::PREFLUSH, op == Op::Flush || flags.contains(Flags::PREFLUSH));
        steps.set(Self::DATA, op != Op::Flush);
        steps.set(Self::POSTFLUSH, flags.contains(Flags::FUA) && !driver_has_fua);
        steps
    }

    /// Whether the request needs no help: only its data is to be written.
    pub(crate) fn is_plain(self) -> bool {
        self == Self::DATA
    }
}

/// Gives access to the steps that are kept in a request.
pub(crate) trait Sequenced {
    fn steps_mut(&mut self) -> &mut Steps;
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<R> {
    /// Send the flush to the driver; only one is out at a time.
    Flush,
    /// Send this request's data.
    Data(R),
    /// This one is through.
    End(R, Status),
}

/// Requests whose data is out hold a flush back no longer than this (kernel: `FLUSH_PENDING_TIMEOUT`, 5 s).
pub(crate) const PENDING_TIMEOUT_NS: u64 = 5_000_000_000;

/// Requests between their steps.
pub(crate) struct FlushQueue<R> {
    /// Wait for the next flush.
    pending: VecDeque<R>,
    pending_since_ns: u64,
    /// Wait for the one that is out.
    running: VecDeque<R>,
    flush_out: bool,
    data_out: u32,
}

impl<R> fmt::Debug for FlushQueue<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pending, running, flush_out, data_out, .. } = self;
        write!(
            f,
            "flush: {} pending, {} running, out {flush_out}, {data_out} with their data",
            pending.len(),
            running.len()
        )
    }
}

impl<R> Default for FlushQueue<R> {
    fn default() -> Self {
        Self {
            pending: VecDeque::new(),
            pending_since_ns: 0,
            running: VecDeque::new(),
            flush_out: false,
            data_out: 0,
        }
    }
}

impl<R: Sequenced> FlushQueue<R> {
    /// A request with its steps set begins.
    pub(crate) fn start(&mut self, rq: R, now_ns: u64, todo: &mut Vec<Next<R>>) {
        self.go_on(rq, now_ns, todo);
        self.kick(now_ns, todo);
    }

    /// The data of `rq` was written, or not.
    pub(crate) fn data_done(
        &mut self,
        mut rq: R,
        status: Status,
        now_ns: u64,
        todo: &mut Vec<Next<R>>,
    ) {
        self.data_out -= 1;
        rq.steps_mut().remove(Steps::DATA);
        self.stepped(rq, status, now_ns, todo);
        self.kick(now_ns, todo);
    }

    /// The flush that was out has ended.
    pub(crate) fn flush_done(&mut self, status: Status, now_ns: u64, todo: &mut Vec<Next<R>>) {
        assert!(self.flush_out, "a flush ended that was never sent");
        self.flush_out = false;
        for mut rq in std::mem::take(&mut self.running) {
            let steps = rq.steps_mut();
            let this =
                if steps.contains(Steps::PREFLUSH) { Steps::PREFLUSH } else { Steps::POSTFLUSH };
            steps.remove(this);
            self.stepped(rq, status, now_ns, todo);
        }
        self.kick(now_ns, todo);
    }

    /// When [`FlushQueue::kick`] should be called though nothing ended.
    pub(crate) fn deadline_ns(&self) -> Option<u64> {
        (!self.pending.is_empty() && !self.flush_out)
            .then(|| self.pending_since_ns.saturating_add(PENDING_TIMEOUT_NS))
    }

    /// Sends the next flush, if somebody waits for one, none is out, and either no data is out that might want
    /// to share it, or that took too long.
    pub(crate) fn kick(&mut self, now_ns: u64, todo: &mut Vec<Next<R>>) {
        let overdue = now_ns >= self.pending_since_ns.saturating_add(PENDING_TIMEOUT_NS);
        if self.flush_out || self.pending.is_empty() || (self.data_out > 0 && !overdue) {
            return;
        }
        self.flush_out = true;
        self.running = std::mem::take(&mut self.pending);
        todo.push(Next::Flush);
    }

    /// Those that the flush which is out is for.
    pub(crate) fn running(&self) -> impl Iterator<Item = &R> {
        self.running.iter()
    }

    fn stepped(&mut self, rq: R, status: Status, now_ns: u64, todo: &mut Vec<Next<R>>) {
        if status.is_ok() {
            self.go_on(rq, now_ns, todo);
        } else {
            todo.push(Next::End(rq, status));
        }
    }

    fn go_on(&mut self, mut rq: R, now_ns: u64, todo: &mut Vec<Next<R>>) {
        let steps = *rq.steps_mut();
        if steps.contains(Steps::DATA) && !steps.contains(Steps::PREFLUSH) {
            self.data_out += 1;
            todo.push(Next::Data(rq));
        } else if steps.is_empty() {
            todo.push(Next::End(rq, Status::Ok));
        } else {
            if self.pending.is_empty() {
                self.pending_since_ns = now_ns;
            }
            self.pending.push_back(rq);
        }
    }
}

#[cfg(test)]
mod tests;
