//! From the lists to the driver (kernel: `blk_mq_dispatch_rq_list`, `blk_mq_try_issue_directly`).
//!
//! Whoever has got the driver issues what is in the lists; nobody waits for him.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::{BATCH, Hctx, Part, RESOURCE_DELAY_NS, Requests, State, Todo};
use crate::driver::{Busy, Driver};
use crate::op::Flags;
use crate::request::{Request, Rq};

impl<D: Driver> Hctx<D> {
    /// Sends what is in the lists to the driver; at once, or by whoever is with the driver now.
    pub(crate) fn run(self: &Arc<Self>) {
        self.rerun.store(true, Ordering::SeqCst);
        self.run_pending();
    }

    /// Call after letting go of the driver.
    pub(super) fn run_pending(self: &Arc<Self>) {
        loop {
            // Pairs with the one of whoever set `rerun` and then failed to get the driver: either it gets the
            // driver, or we see `rerun`.
            fence(Ordering::SeqCst);
            if !self.rerun.load(Ordering::Relaxed) {
                return;
            }
            let Some(mut part) = self.driver.try_lock() else { return };
            self.rerun.store(false, Ordering::SeqCst);
            if let Some(part) = part.as_mut() {
                self.dispatch(part);
            }
        }
    }

    /// Talks to the driver's part of this queue, waiting for whoever does so now.
    pub(crate) fn with_driver<R>(self: &Arc<Self>, f: impl FnOnce(&mut D::Hctx) -> R) -> Option<R> {
        let result = self.driver.lock().as_mut().map(|part| f(&mut part.hctx));
        self.run_pending();
        result
    }

    fn dispatch(self: &Arc<Self>, part: &mut Part<D>) {
        loop {
            let mut todo = Todo::default();
            let more = {
                let now_ns = self.shared.clock.now_ns();
                let mut st = self.state.lock();
                if st.quiesced > 0 {
                    return;
                }
                self.admit_waiting(&mut st, now_ns, &mut todo);
                self.take_staged(&mut st, now_ns, &mut todo);
                st.elevator && st.dispatch.is_empty()
            };
            self.end_all(&mut todo);
            let list = &mut todo.issue;
            if list.is_empty() && more {
                self.take_scheduled(list);
            }
            if list.is_empty() || !self.issue(part, list) {
                return;
            }
        }
    }

    /// Moves requests from the lists to `todo.issue`: those that go first, else some of each software queue.
    fn take_staged(self: &Arc<Self>, st: &mut State<D>, now_ns: u64, todo: &mut Todo<D>) {
        while todo.issue.len() < BATCH
            && let Some(mut rq) = st.dispatch.pop_front()
        {
            if !self.tag_and_start(st, &mut rq, now_ns) {
                st.dispatch.push_front(rq);
                return;
            }
            todo.issue.push(rq);
        }
        let ctxs = st.ctxs.len();
        let mut idle = 0;
        while todo.issue.len() < BATCH && st.staged > 0 && idle < ctxs {
            let ctx = st.next_ctx % ctxs;
            st.next_ctx = st.next_ctx.wrapping_add(1);
            let Some(mut rq) = st.ctxs[ctx].pop_front() else {
                idle += 1;
                continue;
            };
            idle = 0;
            st.staged -= 1;
            if !self.tag_and_start(st, &mut rq, now_ns) {
                st.dispatch.push_back(rq);
                return;
            }
            todo.issue.push(rq);
        }
    }

    /// Asks the scheduler for requests of this hardware queue, each with a tag and a budget in hand: what has none stays
    /// where it is sorted. If the next is of another queue, that is run.
    fn take_scheduled(self: &Arc<Self>, list: &mut Requests<D>) {
        let now_ns = self.shared.clock.now_ns();
        let budget = self.shared.driver.budget();
        let (mut unused, mut unused_budget) = (false, None);
        {
            let mut st = self.state.lock();
            while list.len() < BATCH && !unused {
                // Before the tag: one that is given back wakes those who wait for it, and they may be the ones who ask
                // this queue to go on.
                if budget.is_some_and(|budget| !budget.get()) {
                    break;
                }
                let tag = self.get_tag(&mut st, false);
                let rq = tag.and_then(|_| self.shared.elevator.dispatch(self.index, now_ns));
                if let Some(mut rq) = rq {
                    (rq.tag, rq.scheduled, rq.budgeted) = (tag, true, budget.is_some());
                    self.start(&mut st, &mut rq, now_ns);
                    list.push(rq);
                    continue;
                }
                unused_budget = budget;
                let Some(tag) = tag else { break };
                self.put_tag(&mut st, tag);
                unused = true;
            }
        }
        if let Some(budget) = unused_budget {
            budget.put();
        }
        if unused {
            self.tags.wake();
        }
        let next = self.shared.elevator.next_queue(now_ns).filter(|&next| next != self.index);
        if let Some(other) = next.and_then(|next| self.shared.queues().nth(next)) {
            other.run();
        }
    }

    /// Keeps what is known of a request in step with it, after it has grown.
    pub(super) fn grown(st: &mut State<D>, rq: &Rq<D>) {
        if let Some(slot) = rq.tag.and_then(|tag| st.slots.get_mut(tag as usize)) {
            slot.what = Some((rq.op, rq.sector, rq.len));
        }
    }

    /// Gives a request a tag, if it has none, and starts its timer. If there is no tag, this queue will run
    /// again when there is.
    fn tag_and_start(self: &Arc<Self>, st: &mut State<D>, rq: &mut Rq<D>, now_ns: u64) -> bool {
        if rq.tag.is_none() {
            rq.tag = self.get_tag(st, rq.flags.contains(Flags::RESERVED));
        }
        self.start(st, rq, now_ns);
        rq.tag.is_some()
    }

    pub(super) fn start(&self, st: &mut State<D>, rq: &mut Rq<D>, now_ns: u64) {
        let Some(slot) = rq.tag.and_then(|tag| st.slots.get_mut(tag as usize)) else { return };
        slot.generation = slot.generation.wrapping_add(1);
        rq.generation = slot.generation;
        slot.what = Some((rq.op, rq.sector, rq.len));
        slot.since_ns = now_ns;
        slot.deadline_ns = now_ns.saturating_add(self.shared.timeout_ns());
    }

    /// Hands a list to the driver; says whether it took all.
    fn issue(self: &Arc<Self>, part: &mut Part<D>, list: &mut Requests<D>) -> bool {
        let driver = &self.shared.driver;
        let count = list.len();
        let mut gathered = false;
        let mut rest = list.drain(..).enumerate();
        while let Some((i, mut rq)) = rest.next() {
            let last = i + 1 == count;
            if let Some(faults) = &part.faults {
                match self.inject(faults, rq) {
                    Some(passed) => rq = passed,
                    None => continue,
                }
            }
            let budget = driver.budget();
            let budgeted = std::mem::take(&mut rq.budgeted);
            let refused = if !budgeted && budget.is_some_and(|budget| !budget.get()) {
                Some((rq, false))
            } else {
                match driver.queue_rq(&mut part.hctx, Request::new(rq), last) {
                    Ok(()) => None,
                    Err(busy) => {
                        if let Some(budget) = budget {
                            budget.put();
                        }
                        Some(match busy {
                            Busy::Resource(rq) => (self.cleaned(rq.into_inner()), true),
                            Busy::Device(rq) => (self.cleaned(rq.into_inner()), false),
                        })
                    }
                }
            };
            let Some((mut rq, retry)) = refused else {
                gathered = !last;
                continue;
            };
            rq.rewind();
            if gathered {
                driver.commit_rqs(&mut part.hctx);
            }
            let mut unused_budgets = 0;
            let mut st = self.state.lock();
            let back: Requests<D> = std::iter::once(rq).chain(rest.map(|(_, rq)| rq)).collect();
            for mut rq in back.into_iter().rev() {
                unused_budgets += usize::from(std::mem::take(&mut rq.budgeted));
                Self::stop(&mut st, &rq);
                st.dispatch.push_front(rq);
            }
            if retry {
                st.retry_at_ns = Some(self.shared.clock.now_ns().saturating_add(RESOURCE_DELAY_NS));
            }
            drop(st);
            if let Some(budget) = budget {
                (0..unused_budgets).for_each(|_| budget.put());
            }
            if retry {
                self.shared.ring_alarm();
            }
            return false;
        }
        if gathered {
            // What was to be the last was kept from the driver.
            driver.commit_rqs(&mut part.hctx);
        }
        true
    }

    /// The driver gave it back: what it holds for it is freed before it comes again.
    fn cleaned(&self, mut rq: Box<Rq<D>>) -> Box<Rq<D>> {
        self.shared.driver.cleanup_rq(&mut rq.cmd);
        rq
    }

    /// Stops the timer of a request that is not with the driver any more.
    pub(super) fn stop(st: &mut State<D>, rq: &Rq<D>) {
        if let Some(slot) = rq.tag.and_then(|tag| st.slots.get_mut(tag as usize)) {
            slot.what = None;
        }
    }

    /// Issues a list from the submitter's own thread, if nobody is with the driver; else leaves it to whoever
    /// is.
    pub(super) fn issue_direct(self: &Arc<Self>, list: &mut Requests<D>) {
        if let Some(mut part) = self.driver.try_lock() {
            // Whoever quiesces has waited for the driver after it said so: either it waits for us, or we see
            // it.
            if let Some(part) = part.as_mut().filter(|_| !self.quiesced.load(Ordering::SeqCst)) {
                self.issue(part, list);
            } else {
                self.hold_back(list);
            }
            drop(part);
            self.run_pending();
        } else {
            self.hold_back(list);
            self.run();
        }
    }

    /// Puts requests that were about to be issued into the software queues.
    fn hold_back(&self, list: &mut Requests<D>) {
        let mut st = self.state.lock();
        for rq in list.drain(..) {
            Self::stop(&mut st, &rq);
            Self::stage(&mut st, rq);
        }
    }

    pub(super) fn stage(st: &mut State<D>, rq: Box<Rq<D>>) {
        let ctx = rq.ctx % st.ctxs.len();
        st.ctxs[ctx].push_back(rq);
        st.staged += 1;
    }

    pub(crate) fn requeue(self: &Arc<Self>, rq: Box<Rq<D>>) {
        let rq = self.cleaned(rq);
        {
            let mut st = self.state.lock();
            Self::stop(&mut st, &rq);
            st.dispatch.push_front(rq);
        }
        self.run();
    }

    /// The rest of a request whose driver gives others their turn.
    pub(crate) fn resume_later(self: &Arc<Self>, rq: Box<Rq<D>>) {
        let rq = self.cleaned(rq);
        let someone_ticks = self.shared.has_alarm();
        {
            let mut st = self.state.lock();
            Self::stop(&mut st, &rq);
            if someone_ticks && !st.dying {
                st.later.push_back(rq);
                st.retry_at_ns = Some(self.shared.clock.now_ns());
            } else {
                // It has a tag, which those behind it may wait for. More than it is taken from the lists at a time.
                st.dispatch.push_front(rq);
            }
        }
        self.run();
        self.shared.ring_alarm();
    }

    pub(super) fn settle(self: &Arc<Self>, todo: &mut Todo<D>) {
        self.end_all(todo);
        if !todo.issue.is_empty() {
            self.issue_direct(&mut todo.issue);
        }
        if todo.run {
            self.run();
        }
        if todo.alarm {
            self.shared.ring_alarm();
        }
    }
}
