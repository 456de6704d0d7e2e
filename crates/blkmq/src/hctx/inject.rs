//! Between the block layer and the driver: what the faults of a disk do to requests, which have their tags by then, are merged
//! and cut as the driver sees them, and were counted as begun.

use std::sync::Arc;

use blockyard_buf::Segments;

use super::Hctx;
use super::held::Until;
use super::stand_in::{Aside, answer, cache_write, fill, first_of, memory, stand_in};
use crate::bio::{Bio, Extent};
use crate::driver::Driver;
use crate::fault::{Act, Begun, Durable, FaultKind, FaultSet, Page, Plan, Wait, WriteCache};
use crate::limits::Limits;
use crate::op::{Flags, Op, Status};
use crate::request::{Request, Role, Rq};
use crate::units::{SECTOR_SIZE, Sector};

/// A flush that finds another one under way tries again after this long.
const FLUSH_RETRY_NS: u64 = 1_000_000;
/// The most that is written at a time of what a flush has taken from the cache.
const MAX_RUN_BYTES: u64 = 256 << 10;

/// What faults do to a request, and how far that has come.
pub(crate) struct Mark {
    plan: Plan,
    stage: Stage,
    aside: Option<Aside>,
}

enum Stage {
    /// The driver has not seen it.
    Before,
    /// It is with the driver, as it came.
    Plain,
    /// A read of the same is with the driver, into this memory.
    Read { memory: Segments, over: Vec<(u64, Page)> },
    /// The beginning of it is with the driver; it ends so if that goes well.
    Torn(Status),
    /// What the cache has for the flush is with the driver, up to here.
    Writes(Arc<WriteCache>, Sector),
    /// The flush itself is.
    Flush(Arc<WriteCache>),
}

/// How the next step of a flush that takes its time comes out.
enum Step<D: Driver> {
    /// The driver is to have this.
    Issue(Box<Rq<D>>),
    /// It ends so.
    Over(Box<Rq<D>>, Status),
}

impl<D: Driver> Hctx<D> {
    /// Goes by these faults from now on.
    pub(crate) fn set_faults(self: &Arc<Self>, faults: Option<Arc<FaultSet>>) {
        if let Some(part) = self.driver.lock().as_mut() {
            part.faults = faults;
        }
        self.run_pending();
    }

    /// Does to a request what the faults say. Gives back what the driver is to have.
    pub(super) fn inject(
        self: &Arc<Self>,
        faults: &Arc<FaultSet>,
        mut rq: Box<Rq<D>>,
    ) -> Option<Box<Rq<D>>> {
        if self.is_late(faults, &rq) {
            return self.end_unseen(rq, Status::Io);
        }
        let range = rq.sector.bytes()..rq.sector.bytes().saturating_add(rq.len);
        let now_ns = if faults.is_timed { self.shared.clock.now_ns() } else { 0 };
        let mut mark = match rq.mark.take() {
            Some(mark) if !matches!(mark.stage, Stage::Before) => {
                rq.mark = Some(mark);
                return Some(rq);
            }
            Some(mark) => mark,
            // No rule was for it when it came.
            None if rq.begun => return Some(rq),
            None => {
                let plan = faults.plan(rq.op, &range, now_ns);
                let plan = plan.or_else(|| faults.cache.is_some().then(Plan::default));
                let Some(plan) = plan else { return Some(rq) };
                Box::new(Mark { plan, stage: Stage::Before, aside: None })
            }
        };
        if let Some(Wait { by, for_ns }) = mark.plan.next_wait(faults) {
            let due_ns = for_ns.map(|for_ns| self.shared.clock.now_ns().saturating_add(for_ns));
            let until = due_ns.map_or(Until::Released(by), |at_ns| Until::At(at_ns, Some(by)));
            rq.mark = Some(mark);
            self.hold(rq, until, faults);
            return None;
        }
        match mark.plan.act {
            Act::End(status) => self.end_unseen(rq, status),
            Act::Torn { silent, drawn } => {
                let status = if silent { Status::Ok } else { Status::Io };
                self.tear(faults, rq, mark, drawn, status)
            }
            Act::Pass | Act::Corrupt { .. } => match rq.op {
                Op::Read => self.read_over(faults, rq, mark),
                _ if faults.cache.is_some() => self.hold_write(faults, rq, mark, now_ns),
                _ => {
                    mark.stage = Stage::Plain;
                    rq.mark = Some(mark);
                    Some(rq)
                }
            },
        }
    }

    /// Whether it came before the power went, and was not under way then: it waited for a tag, for another flush, or for whatever
    /// else.
    fn is_late(&self, faults: &FaultSet, rq: &Rq<D>) -> bool {
        let cut_ns = faults.tally.cut_ns();
        let is_before =
            |rq: &Rq<D>| rq.mark.as_ref().is_none_or(|mark| matches!(mark.stage, Stage::Before));
        cut_ns > 0 && !rq.begun && is_before(rq) && self.came_ns(rq) <= cut_ns
    }

    /// When the disk was asked for it; for a flush, when it was asked for the oldest of those that it is for.
    fn came_ns(&self, rq: &Rq<D>) -> u64 {
        let st = self.state.lock();
        let of = |rq: &Rq<D>| st.came_ns.get(rq.internal_tag as usize).copied();
        let came_ns = match rq.role {
            Role::Flush { .. } => st.flush.running().filter_map(|rq| of(rq)).min(),
            _ => of(rq),
        };
        came_ns.unwrap_or(u64::MAX)
    }

    /// Ends a request that the driver has not seen.
    fn end_unseen(&self, mut rq: Box<Rq<D>>, status: Status) -> Option<Box<Rq<D>>> {
        self.put_budget(&mut rq);
        rq.unseen = true;
        rq.mark = None;
        Request::new(rq).end(status);
        None
    }

    /// What a request took along of the driver's budget is free.
    pub(super) fn put_budget(&self, rq: &mut Rq<D>) {
        if std::mem::take(&mut rq.budgeted)
            && let Some(budget) = self.shared.driver.budget()
        {
            budget.put();
        }
    }

    fn limits(&self) -> Limits {
        self.state.lock().limits.clone()
    }

    /// Only the first blocks of a write are written.
    fn tear(
        &self,
        faults: &FaultSet,
        mut rq: Box<Rq<D>>,
        mut mark: Box<Mark>,
        drawn: u64,
        status: Status,
    ) -> Option<Box<Rq<D>>> {
        if rq.bios.front().is_some_and(|bio| bio.range.is_some()) {
            // It is written from memory then.
            return self.end_unseen(rq, Status::NotSupported);
        }
        let block = u64::from(self.limits().logical_block_size.bytes());
        let keep = drawn % (rq.len / block).max(1) * block;
        let Ok(len) = usize::try_from(keep) else { return self.end_unseen(rq, Status::Io) };
        if let Some(cache) = &faults.cache {
            let has_room = len == 0 || cache_write(cache, &rq, len);
            return self.end_unseen(rq, if has_room { status } else { Status::NoSpace });
        }
        if keep == 0 {
            return self.end_unseen(rq, status);
        }
        let bio = if rq.op == Op::Write {
            Bio::with_data(Op::Write, rq.sector, first_of(&rq, len))
        } else {
            Bio::new(rq.op, rq.sector, keep)
        };
        mark.aside = Some(Aside::put(&mut rq));
        mark.stage = Stage::Torn(status);
        stand_in(&mut rq, Some(bio));
        rq.mark = Some(mark);
        Some(rq)
    }

    /// A read whose answer is changed is answered with memory of ours: what the driver has may be the disk itself.
    fn read_over(
        &self,
        faults: &FaultSet,
        mut rq: Box<Rq<D>>,
        mut mark: Box<Mark>,
    ) -> Option<Box<Rq<D>>> {
        let Ok(len) = usize::try_from(rq.len) else { return Some(rq) };
        let over = faults.cache.as_ref().map(|cache| cache.over(rq.sector, len));
        let over = over.unwrap_or_default();
        if over.is_empty() && !matches!(mark.plan.act, Act::Corrupt { .. }) {
            mark.stage = Stage::Plain;
            rq.mark = Some(mark);
            return Some(rq);
        }
        let Ok(memory) = memory(len, &self.limits()) else {
            return self.end_unseen(rq, Status::Resource);
        };
        let bio = Bio::with_data(Op::Read, rq.sector, memory.clone());
        mark.aside = Some(Aside::put(&mut rq));
        mark.stage = Stage::Read { memory, over };
        stand_in(&mut rq, Some(bio));
        rq.mark = Some(mark);
        Some(rq)
    }

    /// What changes a disk whose power may be cut is held in memory until it is flushed.
    fn hold_write(
        self: &Arc<Self>,
        faults: &Arc<FaultSet>,
        mut rq: Box<Rq<D>>,
        mut mark: Box<Mark>,
        now_ns: u64,
    ) -> Option<Box<Rq<D>>> {
        let Some(cache) = &faults.cache else { return Some(rq) };
        match rq.op {
            Op::Write if rq.bios.front().is_some_and(|bio| bio.range.is_some()) => {
                self.end_unseen(rq, Status::NotSupported)
            }
            Op::Write | Op::WriteZeroes => {
                let len = usize::try_from(rq.len).unwrap_or(usize::MAX);
                if !cache_write(cache, &rq, len) {
                    faults.tally.count(FaultKind::Volatile { max_bytes: 0 });
                    if cache.is_full_first() {
                        let disk = &faults.tally.disk;
                        tracing::warn!(
                            disk,
                            "writes refused: the fault volatile holds its maximum"
                        );
                    }
                    return self.end_unseen(rq, Status::NoSpace);
                }
                let (capacity, bytes) = (self.shared.capacity(), self.shared.size_bytes());
                if rq.end_sector() > capacity {
                    // It was checked before the disk became smaller, and has come after the rest was forgotten.
                    cache.truncate(capacity, bytes);
                    return self.end_unseen(rq, Status::OutOfRange);
                }
                if rq.flags.contains(Flags::FUA) && !faults.lies(now_ns) {
                    return self.begin_flush(faults, cache, rq, mark);
                }
                self.end_unseen(rq, Status::Ok)
            }
            Op::Flush => self.begin_flush(faults, cache, rq, mark),
            // It would take what was flushed.
            Op::Discard => self.end_unseen(rq, Status::Ok),
            Op::SecureErase => self.end_unseen(rq, Status::NotSupported),
            Op::BlockStatus if cache.has(rq.sector, rq.len) => {
                let len = rq.len;
                if let Some(bio) = rq.bios.front_mut() {
                    Extent::data(len).push(&mut bio.extents);
                }
                self.end_unseen(rq, Status::Ok)
            }
            Op::Read | Op::BlockStatus | Op::Prefetch => {
                mark.stage = Stage::Plain;
                rq.mark = Some(mark);
                Some(rq)
            }
        }
    }

    /// A flush, or a write that is as durable: it takes all that is held, and writes that first, under its own tag.
    fn begin_flush(
        self: &Arc<Self>,
        faults: &Arc<FaultSet>,
        cache: &Arc<WriteCache>,
        mut rq: Box<Rq<D>>,
        mut mark: Box<Mark>,
    ) -> Option<Box<Rq<D>>> {
        match cache.begin_flush(self.came_ns(&rq)) {
            Begun::Yes => {}
            Begun::Late => return self.end_unseen(rq, Status::Io),
            Begun::Busy => {
                let due_ns = self.shared.clock.now_ns().saturating_add(FLUSH_RETRY_NS);
                rq.mark = Some(mark);
                self.hold(rq, Until::At(due_ns, None), faults);
                return None;
            }
        }
        mark.aside = Some(Aside::put(&mut rq));
        mark.stage = Stage::Writes(Arc::clone(cache), Sector::ZERO);
        match self.next_step(rq, mark) {
            Step::Issue(rq) => Some(rq),
            Step::Over(rq, status) => self.end_unseen(rq, status),
        }
    }

    fn next_step(&self, mut rq: Box<Rq<D>>, mut mark: Box<Mark>) -> Step<D> {
        let (cache, done) = match &mark.stage {
            Stage::Writes(cache, from) => {
                let cache = Arc::clone(cache);
                let limits = self.limits();
                let most =
                    |sector| limits.max_bytes(Op::Write, sector).clamp(SECTOR_SIZE, MAX_RUN_BYTES);
                if let Some((sector, bytes)) = cache.next_run(*from, most) {
                    let Ok(memory) = memory(bytes.len(), &limits) else {
                        cache.end_flush(false);
                        take_back(&mut rq, &mut mark);
                        return Step::Over(rq, Status::Resource);
                    };
                    fill(&memory, &bytes);
                    let is_fua = cache.durable == Durable::Fua;
                    let next = sector + Sector(bytes.len() as u64 / SECTOR_SIZE);
                    mark.stage = Stage::Writes(cache, next);
                    stand_in(&mut rq, Some(Bio::with_data(Op::Write, sector, memory)));
                    rq.flags.set(Flags::FUA, is_fua);
                    rq.mark = Some(mark);
                    return Step::Issue(rq);
                }
                let is_durable = cache.durable != Durable::Flush;
                (cache, is_durable)
            }
            Stage::Flush(cache) => (Arc::clone(cache), true),
            _ => unreachable!("only flushes have steps"),
        };
        if done {
            cache.end_flush(true);
            take_back(&mut rq, &mut mark);
            return Step::Over(rq, Status::Ok);
        }
        mark.stage = Stage::Flush(cache);
        stand_in(&mut rq, None);
        rq.mark = Some(mark);
        Step::Issue(rq)
    }

    /// The driver has ended a request that was marked. Gives back what ends, and how.
    pub(crate) fn after_driver(
        mut rq: Box<Rq<D>>,
        mut mark: Box<Mark>,
        status: Status,
    ) -> Option<(Box<Rq<D>>, Status)> {
        match std::mem::replace(&mut mark.stage, Stage::Plain) {
            Stage::Before | Stage::Plain => Some((rq, status)),
            Stage::Read { memory, over } => {
                take_back(&mut rq, &mut mark);
                if status.is_ok() {
                    answer(&mut rq, &memory, &over, mark.plan.act);
                }
                Some((rq, status))
            }
            Stage::Torn(torn) => {
                take_back(&mut rq, &mut mark);
                Some((rq, if status.is_ok() { torn } else { status }))
            }
            Stage::Writes(cache, _) | Stage::Flush(cache) if !status.is_ok() => {
                cache.end_flush(false);
                take_back(&mut rq, &mut mark);
                Some((rq, status))
            }
            stage => {
                mark.stage = stage;
                let hctx = rq.hctx.clone()?;
                match hctx.next_step(rq, mark) {
                    Step::Over(rq, status) => Some((rq, status)),
                    Step::Issue(rq) => {
                        {
                            let mut st = hctx.state.lock();
                            Self::stop(&mut st, &rq);
                            st.dispatch.push_front(rq);
                        }
                        hctx.run();
                        None
                    }
                }
            }
        }
    }
}

fn take_back<D: Driver>(rq: &mut Rq<D>, mark: &mut Mark) {
    if let Some(aside) = mark.aside.take() {
        aside.take_back(rq);
    }
}
