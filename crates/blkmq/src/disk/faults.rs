//! The faults of a disk: set, shown, cleared, and ended when their time is over.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Disk, Event};
use crate::error::{Error, ErrorKind, Result};
use crate::fault::{
    Control, Durable, FaultCounts, FaultInfo, FaultKind, FaultSet, FaultSpec, Rule, WriteCache,
};
use crate::limits::Features;
use crate::op::Status;
use crate::queue::Size;

/// Whoever ticks the disk comes again so soon while its faults are being changed.
const RETRY_NS: u64 = 10_000_000;

impl Disk {
    /// Injects faults from now on. Whoever does so ticks the disk ([`Disk::set_alarm`]). It waits for whoever is with the driver,
    /// so that it is not for an [`EndIo`](crate::EndIo).
    ///
    /// A [`FaultKind::PowerCut`] is one at once: what a [`FaultKind::Volatile`] holds is gone, and so is what other faults hold.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for what cannot be, [`ErrorKind::Resource`] if there are too many, [`ErrorKind::Exists`] if there
    /// can be only one such, [`ErrorKind::Offline`] once it is being removed.
    pub fn add_fault(&self, spec: FaultSpec) -> Result<FaultInfo> {
        let _changing = self.faults.changing.lock();
        if self.queue.life() != crate::queue::Life::Live {
            return Err(self.is_leaving());
        }
        let now_ns = self.queue.clock().now_ns();
        let kind = spec.kind;
        let (rule, cache) = {
            let mut control = self.faults.control.lock();
            if control.is_closed {
                return Err(self.is_leaving());
            }
            let rule = control.add(spec, self.size_bytes(), now_ns)?;
            if let FaultKind::Volatile { max_bytes } = kind {
                let features = self.limits().features;
                let durable = Durable::by(features);
                control.features = Some(features);
                control.cache = Some(Arc::new(WriteCache::new(max_bytes, durable)));
                // Before: what is flushed has to get there.
                let features = (features | Features::WRITE_CACHE) - Features::NO_FLUSH;
                self.queue.set_features(features);
            }
            self.publish(&control);
            (rule, control.cache.clone())
        };
        let (disk, id) = (&self.name, rule.id);
        tracing::warn!(disk, id, kind = kind.name(), rule = ?rule.spec, "fault set");
        if kind == FaultKind::PowerCut {
            self.queue.fail_held(Status::Io);
            let bytes = cache.map_or(0, |cache| self.cut(&cache));
            rule.dropped.store(bytes, Ordering::Relaxed);
            tracing::warn!(disk, id, bytes, "power cut simulated: unflushed writes dropped");
        }
        let info = self.info(&rule);
        self.notify(Event::Faults);
        Ok(info)
    }

    fn is_leaving(&self) -> Error {
        Error::new(ErrorKind::Offline, format!("{} is being removed", self.name))
    }

    fn cut(&self, cache: &WriteCache) -> u64 {
        let now_ns = self.queue.clock().now_ns();
        self.faults.tally.cut(now_ns);
        cache.cut(now_ns)
    }

    /// The faults that are injected into it, in the order in which they came.
    #[must_use]
    pub fn faults(&self) -> Vec<FaultInfo> {
        let rules = self.faults.control.lock().rules.clone();
        rules.iter().map(|rule| self.info(rule)).collect()
    }

    /// How often faults were injected into it, by [`FaultKind::index`]; also by rules that are gone.
    #[must_use]
    pub fn fault_counts(&self) -> FaultCounts {
        self.faults.tally.counts()
    }

    fn info(&self, rule: &Rule) -> FaultInfo {
        let held = self.queue.held().iter().filter(|(by, _)| *by == Some(rule.id)).count();
        let mut info = rule.info(self.queue.clock().now_ns(), held as u64);
        if matches!(rule.spec.kind, FaultKind::Volatile { .. }) {
            let cache = self.faults.control.lock().cache.clone();
            info.bytes = cache.map_or(0, |cache| cache.bytes());
        }
        info
    }

    /// Has the hardware queues go by the rules that there are.
    fn publish(&self, control: &Control) {
        let Control { rules, cache, .. } = control;
        // What came before a cut may wait for longer than there are faults.
        let was_cut = self.faults.tally.cut_ns() > 0;
        let set = (!rules.is_empty() || cache.is_some() || was_cut)
            .then(|| Arc::new(FaultSet::new(rules, cache.clone(), &self.faults.tally)));
        let soonest_ns = rules.iter().filter_map(|rule| rule.until_ns).min();
        self.faults.soonest_ns.store(soonest_ns.unwrap_or(u64::MAX), Ordering::Release);
        self.queue.set_faults(set);
    }

    /// Ends a fault: what it delays or stalls goes on. What a [`FaultKind::Volatile`] holds is written and flushed, which waits
    /// for what is out.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none of that number; [`ErrorKind::Busy`] and [`ErrorKind::Io`] for a
    /// [`FaultKind::Volatile`] that has to stay.
    pub fn clear_fault(self: &Arc<Self>, id: u64) -> Result<()> {
        let _changing = self.faults.changing.lock();
        let rule = self.faults.control.lock().rules.iter().find(|rule| rule.id == id).cloned();
        let Some(rule) = rule else {
            let what = format!("{} has no fault {id}", self.name);
            return Err(Error::new(ErrorKind::NotFound, what));
        };
        self.clear(&rule)
    }

    /// Ends all of them; says how many there were.
    ///
    /// # Errors
    /// As [`Disk::clear_fault`]: those before it have ended then.
    pub fn clear_faults(self: &Arc<Self>) -> Result<usize> {
        let _changing = self.faults.changing.lock();
        let mut rules = self.faults.control.lock().rules.clone();
        // Those that would be in its way first.
        rules.sort_by_key(|rule| matches!(rule.spec.kind, FaultKind::Volatile { .. }));
        rules.iter().try_for_each(|rule| self.clear(rule))?;
        Ok(rules.len())
    }

    fn clear(self: &Arc<Self>, rule: &Rule) -> Result<()> {
        if matches!(rule.spec.kind, FaultKind::Volatile { .. }) {
            let name = &self.name;
            match self.write_back() {
                Status::Ok => {}
                Status::Again => {
                    let stalled = self.stalled();
                    let what =
                        format!("{stalled} requests of {name} are stalled; release them first");
                    return Err(Error::new(ErrorKind::Busy, what));
                }
                failed => {
                    let what = format!("unflushed writes of {name} cannot be written");
                    return Err(Error::new(ErrorKind::Io, what).caused_by(failed));
                }
            }
        }
        self.end_rule(rule, "fault cleared");
        Ok(())
    }

    fn end_rule(&self, rule: &Rule, why: &'static str) {
        {
            let mut control = self.faults.control.lock();
            control.rules.retain(|other| other.id != rule.id);
            if matches!(rule.spec.kind, FaultKind::Volatile { .. }) {
                control.cache = None;
            }
            self.publish(&control);
        }
        self.queue.release(&|by| by == Some(rule.id));
        let (disk, id, kind) = (&self.name, rule.id, rule.spec.kind.name());
        tracing::warn!(disk, id, kind, "{why}");
        self.notify(Event::Faults);
    }

    /// Whether a [`FaultKind::Volatile`] keeps what is written from the driver, also one that [`Disk::end_faults`] has ended.
    #[must_use]
    pub fn has_volatile(&self) -> bool {
        self.faults.control.lock().cache.is_some()
    }

    /// Writes and flushes all that is held, and holds nothing any more: what comes later goes to the driver. Blocks as long as
    /// what is out takes. [`Status::Again`]: a fault stalls some of that.
    #[must_use]
    pub fn write_back(self: &Arc<Self>) -> Status {
        self.queue.start_freeze();
        let written = self.write_back_frozen();
        self.queue.unfreeze();
        written
    }

    fn write_back_frozen(self: &Arc<Self>) -> Status {
        let (cache, features) = {
            let control = self.faults.control.lock();
            (control.cache.clone(), control.features)
        };
        // No other fault keeps it from that. Nothing else comes meanwhile.
        let only = FaultSet::new(&[], cache, &self.faults.tally);
        self.queue.set_faults(Some(Arc::new(only)));
        let flushed = if self.stalled() == 0 {
            // However long their delays are.
            self.queue.release(&|by| by.is_some());
            self.queue.wait_frozen();
            self.flush_inside()
        } else {
            Status::Again
        };
        if !flushed.is_ok() {
            self.publish(&self.faults.control.lock());
            return flushed;
        }
        let mut control = self.faults.control.lock();
        control.cache = None;
        control.features = None;
        self.publish(&control);
        if let Some(features) = features {
            self.queue.set_features(features);
        }
        Status::Ok
    }

    /// Of a disk that became smaller: nothing of what is past its end comes back.
    pub(super) fn forget_unflushed_past(&self, size: Size) {
        if let Some(cache) = &self.faults.control.lock().cache {
            cache.truncate(size.capacity, size.bytes);
        }
    }

    /// Ends the stalls, or one of them, so that what they hold goes on; says how many requests that were.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such stall.
    pub fn release_stalled(&self, id: Option<u64>) -> Result<usize> {
        let _changing = self.faults.changing.lock();
        let rules = self.faults.control.lock().rules.clone();
        let is_wanted = |rule: &&Arc<Rule>| {
            rule.spec.kind == FaultKind::Stall && id.is_none_or(|id| id == rule.id)
        };
        let stalls: Vec<_> = rules.iter().filter(is_wanted).collect();
        if let Some(id) = id.filter(|_| stalls.is_empty()) {
            let what = format!("{} has no stall {id}", self.name);
            return Err(Error::new(ErrorKind::NotFound, what));
        }
        let held = self.stalled_by(|rule| stalls.iter().any(|stall| stall.id == rule));
        stalls.into_iter().for_each(|rule| self.end_rule(rule, "fault released"));
        Ok(held)
    }

    /// How many requests are stalled by faults.
    #[must_use]
    pub fn stalled(&self) -> usize {
        self.stalled_by(|_| true)
    }

    fn stalled_by(&self, counts: impl Fn(u64) -> bool) -> usize {
        let held = self.queue.held().into_iter();
        let stalls = held.filter_map(|(rule, is_stalled)| rule.filter(|_| is_stalled));
        stalls.filter(|&rule| counts(rule)).count()
    }

    /// Ends all faults where nobody can wait: what they hold goes on, and what a [`FaultKind::Volatile`] holds is written with
    /// the next flush. There are no others from then on. For whoever closes the disk.
    pub fn end_faults(&self) {
        let mut control = self.faults.control.lock();
        control.is_closed = true;
        if control.rules.is_empty() {
            return;
        }
        let faults = std::mem::take(&mut control.rules).len();
        self.publish(&control);
        drop(control);
        self.queue.release(&|_| true);
        tracing::warn!(disk = self.name, faults, "faults ended with the disk");
    }

    /// A change of the disk waits for what is out: whoever looks for what it waits for is told.
    pub(super) fn warn_of_stalled(&self) {
        let stalled = self.stalled();
        if stalled > 0 {
            let disk = &self.name;
            tracing::warn!(disk, stalled, "a change waits for requests that a fault stalls");
        }
    }

    /// Ends those whose time is over; says when the next one is.
    pub(super) fn tick_faults(&self, now_ns: u64) -> Option<u64> {
        let soonest_ns = self.faults.soonest_ns.load(Ordering::Acquire);
        if soonest_ns > now_ns {
            return Some(soonest_ns).filter(|&soonest_ns| soonest_ns < u64::MAX);
        }
        // Whoever has it may wait for this thread.
        let Some(_changing) = self.faults.changing.try_lock() else {
            return Some(now_ns.saturating_add(RETRY_NS));
        };
        let rules = self.faults.control.lock().rules.clone();
        let is_over = |rule: &&Arc<Rule>| rule.until_ns.is_some_and(|until_ns| until_ns <= now_ns);
        rules
            .iter()
            .filter(is_over)
            .for_each(|rule| self.end_rule(rule, "fault ended: its time is over"));
        Some(self.faults.soonest_ns.load(Ordering::Acquire)).filter(|&next_ns| next_ns < u64::MAX)
    }
}
