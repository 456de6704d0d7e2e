//! Requests that are out for too long, and what is to be tried again (kernel: `blk_mq_timeout_work`).

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Hctx, NEVER, Todo};
use crate::driver::{Driver, InFlight, Timeout};

impl<D: Driver> Hctx<D> {
    /// Asks the driver about requests that are out for too long, and tries again what is due. Says when to come
    /// again.
    pub(crate) fn tick(self: &Arc<Self>, now_ns: u64) -> Option<u64> {
        let mut expired: SmallVec<[InFlight; 8]> = SmallVec::new();
        let mut todo = Todo::default();
        let (opens_ns, held_ns, unwanted) = {
            let mut st = self.state.lock();
            for (tag, slot) in (0..).zip(st.slots.iter()) {
                if let Some((op, sector, len)) = slot.what.filter(|_| slot.deadline_ns <= now_ns) {
                    let cookie = u64::from(slot.generation) << 32 | u64::from(tag);
                    let age_ns = now_ns.saturating_sub(slot.since_ns);
                    expired.push(InFlight { tag, cookie, op, sector, len, age_ns });
                }
            }
            if st.retry_at_ns.is_some_and(|at| at <= now_ns) {
                st.retry_at_ns = None;
                st.resume_next(now_ns);
                todo.run = true;
            }
            let mut next = Vec::new();
            st.flush.kick(now_ns, &mut next);
            self.follow(&mut st, next, now_ns, &mut todo);
            let (held_ns, unwanted) = Self::open_held(&mut st, now_ns, &mut todo);
            (self.open_gate(&mut st, now_ns, &mut todo), held_ns, unwanted)
        };
        Self::end_unwanted(unwanted);
        for rq in expired {
            let Some(verdict) = self.with_driver(|part| self.shared.driver.timeout(part, &rq))
            else {
                continue;
            };
            let mut st = self.state.lock();
            let slot = &mut st.slots[rq.tag as usize];
            if u64::from(slot.generation) == rq.cookie >> 32 {
                slot.deadline_ns = match verdict {
                    Timeout::ResetTimer => now_ns.saturating_add(self.shared.timeout_ns()),
                    // The driver sees to it: it is not asked again.
                    Timeout::Done => NEVER,
                };
            }
        }
        self.settle(&mut todo);
        let st = self.state.lock();
        let timers =
            st.slots.iter().filter(|slot| slot.what.is_some()).map(|slot| slot.deadline_ns);
        let timers = timers.filter(|&deadline_ns| deadline_ns != NEVER);
        timers
            .chain(st.retry_at_ns)
            .chain(st.flush.deadline_ns())
            .chain(opens_ns)
            .chain(held_ns)
            .min()
    }

    /// When the disk was asked for the oldest of what is here: in a request, wherever that is, or waiting for one.
    pub(crate) fn oldest_ns(&self) -> Option<u64> {
        let st = self.state.lock();
        let begun = st.came_ns.iter().copied().filter(|&came_ns| came_ns > 0);
        let waiting = st.waiting.iter().map(|arrival| arrival.bio.came_ns);
        let kept = st.gate.as_ref().and_then(|gate| gate.oldest_ns());
        begun.chain(waiting).chain(kept).min()
    }

    /// What is out, for people.
    pub(crate) fn in_flight(&self, now_ns: u64) -> Vec<InFlight> {
        let st = self.state.lock();
        let out = (0..).zip(st.slots.iter()).filter_map(|(tag, slot)| {
            let (op, sector, len) = slot.what?;
            let cookie = u64::from(slot.generation) << 32 | u64::from(tag);
            Some(InFlight {
                tag,
                cookie,
                op,
                sector,
                len,
                age_ns: now_ns.saturating_sub(slot.since_ns),
            })
        });
        out.chain(st.held.iter().map(|held| held.in_flight(now_ns))).collect()
    }
}
