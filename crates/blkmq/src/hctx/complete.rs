//! The way back: a request goes on to the next step of its flush, or its bios end and it is free again (kernel:
//! `blk_mq_end_request`, `mq_flush_data_end_io`).

use std::sync::Arc;

use parking_lot::MutexGuard;

use super::{Hctx, State, Todo};
use crate::bytes::Waiters;
use crate::driver::Driver;
use crate::flush::Next;
use crate::op::{Flags, Op, Status};
use crate::request::{Role, Rq};

impl<D: Driver> Hctx<D> {
    /// A driver has ended a request: it goes on to its next step, or its bios end.
    pub(crate) fn ended(self: Arc<Self>, mut rq: Box<Rq<D>>, status: Status) {
        if rq.role == Role::Plain {
            return self.finish(rq, status);
        }
        // What went wrong with a part of it, its bio knows.
        let part = rq.bios.front().map_or(Status::Ok, |bio| bio.status);
        let status = if status.is_ok() { part } else { status };
        let mut todo = Todo::default();
        // Nothing is lost for good by a flush that a fault has ended.
        let has_failed = !status.is_ok() && !rq.unseen && matches!(rq.role, Role::Flush { .. });
        if has_failed && self.shared.driver.loses_by_flush(status) {
            self.shared.flush_failed();
        }
        {
            let now_ns = self.shared.clock.now_ns();
            let mut st = self.state.lock();
            Self::stop(&mut st, &rq);
            let mut next = Vec::new();
            if let Role::Flush { borrowed_tag } = rq.role {
                let tag = rq.tag.take();
                if let Some(tag) = tag.filter(|_| !borrowed_tag) {
                    self.put_tag(&mut st, tag);
                }
                st.stats.done(Op::Flush, now_ns.saturating_sub(rq.start_ns));
                self.shared.busy.update(now_ns, || true);
                st.flush_rq = Some(rq);
                st.flush.flush_done(status, now_ns, &mut next);
            } else {
                rq.hctx = Some(Arc::clone(&self));
                // Under a scheduler requests wait for tags with what they have to do: none is kept from them
                // while this one waits for a flush.
                if st.elevator
                    && let Some(tag) = rq.tag.take()
                {
                    self.put_tag(&mut st, tag);
                }
                st.flush.data_done(rq, status, now_ns, &mut next);
            }
            self.follow(&mut st, next, now_ns, &mut todo);
            todo.run |= !st.dispatch.is_empty() || st.staged > 0;
        }
        self.tags.wake();
        self.settle(&mut todo);
    }

    /// Does what the flush machine says.
    pub(super) fn follow(
        self: &Arc<Self>,
        st: &mut State<D>,
        next: Vec<Next<Box<Rq<D>>>>,
        now_ns: u64,
        todo: &mut Todo<D>,
    ) {
        for next in next {
            match next {
                Next::Data(mut rq) => {
                    rq.role = Role::Sequenced;
                    rq.flags -= Flags::PREFLUSH;
                    if !st.limits.features.contains(crate::limits::Features::FUA) {
                        rq.flags -= Flags::FUA;
                    }
                    st.dispatch.push_back(rq);
                }
                Next::End(rq, status) => todo.ended.push((rq, status)),
                Next::Flush => {
                    let Some(mut rq) = st.flush_rq.take() else {
                        unreachable!("one flush is out at a time")
                    };
                    // A tag of one of those that wait for it will do: they may hold all that there are.
                    let tag = st.flush.running().find_map(|waits| waits.tag);
                    rq.begin(
                        Op::Flush,
                        Flags::empty(),
                        Role::Flush { borrowed_tag: tag.is_some() },
                        now_ns,
                    );
                    rq.tag = tag;
                    rq.hctx = Some(Arc::clone(self));
                    st.stats.start(Op::Flush);
                    st.dispatch.push_back(rq);
                }
            }
            todo.run = true;
        }
    }

    /// Ends the bios of a request, and frees it.
    fn finish(self: &Arc<Self>, mut rq: Box<Rq<D>>, status: Status) {
        let part = rq.bios.front().and_then(|bio| bio.part.clone());
        while let Some(bio) = rq.bios.pop_front() {
            bio.end(status);
        }
        rq.hctx = None;
        let now_ns = self.shared.clock.now_ns();
        if let Some(part) = part {
            let elapsed_ns = now_ns.saturating_sub(rq.start_ns);
            part.done(self.index, rq.op, rq.total_len, elapsed_ns, now_ns);
        }
        self.shared.busy.update(now_ns, || true);
        let mut st = self.state.lock();
        let waiters = self.free(&mut st, rq, now_ns);
        self.freed(st, waiters.as_slice());
    }

    /// The same of several, each with the status that it has.
    pub(crate) fn finish_all(self: &Arc<Self>, list: &mut Vec<Box<Rq<D>>>) {
        let now_ns = self.shared.clock.now_ns();
        for rq in list.iter_mut() {
            if let Some(part) = rq.bios.front().and_then(|bio| bio.part.as_ref()) {
                let elapsed_ns = now_ns.saturating_sub(rq.start_ns);
                part.done(self.index, rq.op, rq.total_len, elapsed_ns, now_ns);
            }
            while let Some(bio) = rq.bios.pop_front() {
                bio.end(rq.status);
            }
            rq.hctx = None;
        }
        self.shared.busy.update(now_ns, || true);
        let mut waiters = Waiters::new();
        let mut st = self.state.lock();
        for rq in list.drain(..) {
            waiters.extend(self.free(&mut st, rq, now_ns));
        }
        self.freed(st, &waiters);
    }

    /// Counts a request whose bios have ended, and makes it and its tag free. Gives back who has waited for its end.
    fn free(&self, st: &mut State<D>, mut rq: Box<Rq<D>>, now_ns: u64) -> Waiters {
        // A flush is counted when it is sent, once for all who wait for it.
        if rq.op != Op::Flush {
            st.stats.transfer(rq.op, rq.total_len);
            st.stats.done(rq.op, now_ns.saturating_sub(rq.start_ns));
        }
        if let Some(tag) = rq.tag.take() {
            st.slots[tag as usize].what = None;
            self.put_tag(st, tag);
        }
        st.allocated -= 1;
        st.came_ns[rq.internal_tag as usize] = 0;
        let writes = st.writes.as_mut();
        let waiters = writes.map_or_else(Waiters::new, |writes| writes.end(rq.internal_tag));
        if std::mem::take(&mut rq.scheduled) {
            self.shared.elevator.completed(&rq);
        }
        st.free.push(rq);
        waiters
    }

    /// Requests and tags are free: whoever has waited for them goes on.
    fn freed(self: &Arc<Self>, st: MutexGuard<'_, State<D>>, waiters: &[u64]) {
        let run = st.elevator
            || st.staged > 0
            || !st.dispatch.is_empty()
            || st.waiting.has_inside()
            || (st.frozen == 0 && !st.waiting.is_empty());
        let drained = st.allocated == 0 && st.frozen > 0;
        drop(st);
        self.tags.wake();
        self.shared.locks.write_ended(&self.shared, waiters);
        if drained {
            self.shared.drained.notify(usize::MAX);
        }
        if run {
            self.run();
        }
    }

    /// Ends what is to be ended, with no lock held.
    pub(super) fn end_all(self: &Arc<Self>, todo: &mut Todo<D>) {
        for (bio, status) in todo.ended_bios.drain(..) {
            bio.end(status);
        }
        for (rq, status) in todo.ended.drain(..) {
            self.finish(rq, status);
        }
        if !todo.unaligned.is_empty() {
            self.carry_out_unaligned(todo);
        }
        if std::mem::take(&mut todo.wake) {
            self.tags.wake();
        }
    }

    /// Apart, so that those who have none pay for a look only.
    #[cold]
    fn carry_out_unaligned(self: &Arc<Self>, todo: &mut Todo<D>) {
        for (arrival, block) in std::mem::take(&mut todo.unaligned) {
            self.carry_out_bytes(arrival, block);
        }
    }
}
