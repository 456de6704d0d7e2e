//! Faults that are injected into a disk on purpose: rules which say what is done to which requests, between the block layer and
//! the driver (kernel: `fault-inject`, dm-flakey, dm-delay, dm-log-writes).
//!
//! All rules of a disk are one snapshot, a [`FaultSet`], which each hardware queue keeps beside the driver's part of it: whoever
//! issues requests holds that anyway, so that a disk without rules costs one look for each list of requests, and a rule
//! that is not for a request costs it no lock. What is drawn comes from the seed of the rule.

mod cache;

use std::fmt;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use smallvec::SmallVec;

pub(crate) use cache::{Begun, Durable, Page, WriteCache};

use crate::error::{Error, ErrorKind, Result};
use crate::limits::Features;
use crate::op::{Op, Status};

/// The most rules that a disk has at a time.
pub const MAX_FAULTS: usize = 64;
/// The most that a [`FaultKind::Volatile`] may hold.
pub const MAX_VOLATILE_BYTES: u64 = 4 << 30;

bitflags::bitflags! {
    /// Operations that a rule is for.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct FaultOps: u8 {
        /// [`Op::Read`].
        const READ = 1 << 0;
        /// [`Op::Write`].
        const WRITE = 1 << 1;
        /// [`Op::Flush`].
        const FLUSH = 1 << 2;
        /// [`Op::Discard`] and [`Op::SecureErase`].
        const DISCARD = 1 << 3;
        /// [`Op::WriteZeroes`].
        const WRITE_ZEROES = 1 << 4;
        /// [`Op::BlockStatus`].
        const BLOCK_STATUS = 1 << 5;
        /// [`Op::Prefetch`].
        const PREFETCH = 1 << 6;
    }
}

impl From<Op> for FaultOps {
    fn from(op: Op) -> Self {
        match op {
            Op::Read => Self::READ,
            Op::Write => Self::WRITE,
            Op::Flush => Self::FLUSH,
            Op::Discard | Op::SecureErase => Self::DISCARD,
            Op::WriteZeroes => Self::WRITE_ZEROES,
            Op::BlockStatus => Self::BLOCK_STATUS,
            Op::Prefetch => Self::PREFETCH,
        }
    }
}

/// What is done to requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// They end with this, and the driver does not see them.
    Error(Status),
    /// They wait before the driver sees them, for a time that is drawn from these bounds.
    Delay {
        /// At least.
        least: Duration,
        /// At most.
        most: Duration,
    },
    /// They wait until they are released.
    Stall,
    /// Only the first blocks of a write are written, as many as are drawn, but not all.
    Torn {
        /// It ends well nevertheless. Else it ends with [`Status::Io`].
        silent: bool,
    },
    /// One bit of what was read is another.
    Corrupt,
    /// A flush ends well, and nothing is flushed.
    FlushLies,
    /// What is written is held in memory until it is flushed, so that a power cut loses it.
    Volatile {
        /// What is beyond that is refused, with [`Status::NoSpace`].
        max_bytes: u64,
    },
    /// What a [`FaultKind::Volatile`] holds is dropped, and everything ends with [`Status::Io`] for as long as this lasts.
    PowerCut,
}

impl FaultKind {
    /// How many there are.
    pub const COUNT: usize = 8;
    /// Their names, by their index.
    pub const NAMES: [&'static str; Self::COUNT] =
        ["error", "delay", "stall", "torn", "corrupt", "flush-lies", "volatile", "power-cut"];

    /// Which of them it is.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Error(_) => 0,
            Self::Delay { .. } => 1,
            Self::Stall => 2,
            Self::Torn { .. } => 3,
            Self::Corrupt => 4,
            Self::FlushLies => 5,
            Self::Volatile { .. } => 6,
            Self::PowerCut => 7,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        Self::NAMES[self.index()]
    }

    /// The operations that it can be for: all of them, unless others are asked for.
    #[must_use]
    pub fn ops(self) -> FaultOps {
        match self {
            Self::Error(_) | Self::Delay { .. } | Self::Stall | Self::PowerCut => FaultOps::all(),
            Self::Torn { .. } => FaultOps::WRITE | FaultOps::WRITE_ZEROES,
            Self::Corrupt => FaultOps::READ,
            Self::FlushLies => FaultOps::FLUSH,
            Self::Volatile { .. } => FaultOps::empty(),
        }
    }

    /// Whether it is for the whole disk, and says nothing of which requests.
    #[must_use]
    pub const fn is_of_disk(self) -> bool {
        matches!(self, Self::Volatile { .. } | Self::PowerCut)
    }
}

/// A rule: what is done to which requests.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultSpec {
    /// What is done.
    pub kind: FaultKind,
    /// To these operations.
    pub ops: FaultOps,
    /// To those that have a byte of this range of the disk. `None`: wherever they are.
    pub range: Option<Range<u64>>,
    /// To each of them with this probability.
    pub probability: f64,
    /// What that, and whatever else is left to chance, is drawn from.
    pub seed: u64,
    /// To so many of them, and no more.
    pub count: Option<NonZeroU64>,
    /// After so many of them.
    pub after: u64,
    /// For so long.
    pub lasts: Option<Duration>,
}

impl FaultSpec {
    /// To all requests that it can be for, always.
    #[must_use]
    pub fn new(kind: FaultKind) -> Self {
        Self {
            kind,
            ops: kind.ops(),
            range: None,
            probability: 1.0,
            seed: 0,
            count: None,
            after: 0,
            lasts: None,
        }
    }

    /// Whether there can be such a rule, on a disk of so many bytes.
    fn check(&self, size_bytes: u64) -> Result<()> {
        let kind = self.kind.name();
        let invalid = |what: String| Err(Error::new(ErrorKind::Invalid, what));
        if !(self.probability > 0.0 && self.probability <= 1.0) {
            return invalid(format!("probability {} is not above 0 and up to 1", self.probability));
        }
        if !self.kind.ops().contains(self.ops)
            || (self.ops.is_empty() && !matches!(self.kind, FaultKind::Volatile { .. }))
        {
            return invalid(format!("{kind} is not for these operations"));
        }
        if let Some(Range { start, end }) = self.range
            && (start >= end || end > size_bytes)
        {
            return invalid(format!(
                "range {start} to {end} is not within the disk, which has {size_bytes} bytes"
            ));
        }
        if self.lasts.is_some_and(|lasts| lasts.is_zero()) {
            return invalid("a fault lasts longer than 0".into());
        }
        match self.kind {
            FaultKind::Delay { least, most } if least > most || most.is_zero() => {
                invalid(format!("invalid delay: {least:?} to {most:?}"))
            }
            FaultKind::Volatile { max_bytes } if !(1..=MAX_VOLATILE_BYTES).contains(&max_bytes) => {
                invalid(format!("{max_bytes} is not from 1 to {MAX_VOLATILE_BYTES} bytes"))
            }
            FaultKind::Volatile { .. } if self.lasts.is_some() => {
                invalid(format!("{kind} does not end by itself: what it holds is written then"))
            }
            _ => Ok(()),
        }
    }
}

/// A rule of a disk, and what has come of it.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultInfo {
    /// Its number: no other rule of the disk ever has it.
    pub id: u64,
    /// What it says.
    pub spec: FaultSpec,
    /// For how long it is there yet.
    pub left: Option<Duration>,
    /// Requests that it was for.
    pub matched: u64,
    /// Of those, the ones that it was done to.
    pub fired: u64,
    /// Of those, the ones that wait.
    pub held: u64,
    /// Bytes that a [`FaultKind::Volatile`] holds, or a [`FaultKind::PowerCut`] has dropped.
    pub bytes: u64,
}

/// How often faults were injected into a disk, by [`FaultKind::index`].
pub type FaultCounts = [u64; FaultKind::COUNT];

#[derive(Debug, Default)]
struct Drawn {
    matched: u64,
    fired: u64,
}

pub(crate) struct Rule {
    pub(crate) id: u64,
    pub(crate) spec: FaultSpec,
    pub(crate) until_ns: Option<u64>,
    /// It has been done as often as it is to be: nobody takes a lock for it any more.
    is_over: AtomicBool,
    state: Mutex<(Drawn, StdRng)>,
    /// What a power cut has dropped.
    pub(crate) dropped: AtomicU64,
}

impl Rule {
    pub(crate) fn new(id: u64, spec: FaultSpec, now_ns: u64) -> Self {
        let lasts_ns = spec.lasts.map(|lasts| u64::try_from(lasts.as_nanos()).unwrap_or(u64::MAX));
        Self {
            id,
            until_ns: lasts_ns.map(|lasts_ns| now_ns.saturating_add(lasts_ns)),
            is_over: AtomicBool::new(false),
            state: Mutex::new((Drawn::default(), StdRng::seed_from_u64(spec.seed))),
            dropped: AtomicU64::new(0),
            spec,
        }
    }

    /// Whether it is for such a request; of a range, `end` is behind it.
    fn is_for(&self, op: Op, range: &Range<u64>, now_ns: u64) -> bool {
        self.spec.ops.contains(op.into())
            && !self.is_over.load(Ordering::Relaxed)
            && self.spec.range.as_ref().is_none_or(|its| {
                !range.is_empty() && its.start < range.end && range.start < its.end
            })
            && self.until_ns.is_none_or(|until_ns| now_ns < until_ns)
    }

    /// Whether it is done to this one of those that it is for, and what was drawn for that. Says whether it is the first.
    fn fires(&self) -> Option<(u64, bool)> {
        let mut state = self.state.lock();
        let (drawn, rng) = &mut *state;
        let most = self.spec.count.map_or(u64::MAX, NonZeroU64::get);
        if drawn.fired >= most {
            return None;
        }
        drawn.matched += 1;
        let fires = drawn.matched > self.spec.after
            && (self.spec.probability >= 1.0 || rng.random_bool(self.spec.probability));
        if !fires {
            return None;
        }
        drawn.fired += 1;
        self.is_over.store(drawn.fired == most, Ordering::Relaxed);
        Some((rng.random(), drawn.fired == 1))
    }

    pub(crate) fn info(&self, now_ns: u64, held: u64) -> FaultInfo {
        let (matched, fired) = {
            let state = self.state.lock();
            (state.0.matched, state.0.fired)
        };
        let left = self.until_ns.map(|until_ns| until_ns.saturating_sub(now_ns));
        FaultInfo {
            id: self.id,
            spec: self.spec.clone(),
            left: left.map(Duration::from_nanos),
            matched,
            fired,
            held,
            bytes: self.dropped.load(Ordering::Relaxed),
        }
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Act {
    #[default]
    Pass,
    End(Status),
    /// With a number that was drawn, from which that of the blocks is made.
    Torn {
        silent: bool,
        drawn: u64,
    },
    /// With a number that was drawn, and the range in which a bit is to be another.
    Corrupt {
        drawn: u64,
        start: u64,
        end: u64,
    },
}

/// A rule that a request waits for, as long as there is that rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    pub(crate) by: u64,
    /// For so long at most. `None`: until the rule is gone.
    pub(crate) for_ns: Option<u64>,
}

/// What the rules say of a request, once for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// What it waits for, one after the other: stalls first.
    waits: SmallVec<[Wait; 2]>,
    pub(crate) act: Act,
}

impl Plan {
    fn wait(&mut self, by: u64, for_ns: Option<u64>) {
        let stalls = self.waits.iter().take_while(|wait| wait.for_ns.is_none()).count();
        let at = if for_ns.is_none() { stalls } else { self.waits.len() };
        self.waits.insert(at, Wait { by, for_ns });
    }

    /// What it waits for next, of the rules that there still are.
    pub(crate) fn next_wait(&mut self, faults: &FaultSet) -> Option<Wait> {
        while !self.waits.is_empty() {
            let wait = self.waits.remove(0);
            if faults.rules.iter().any(|rule| rule.id == wait.by) {
                return Some(wait);
            }
        }
        None
    }
}

/// What was injected so far, and into which disk.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) disk: String,
    /// When the power went last. 0: never.
    cut_ns: AtomicU64,
    counts: [AtomicU64; FaultKind::COUNT],
}

impl Tally {
    pub(crate) fn of(disk: &str) -> Self {
        Self { disk: disk.to_owned(), ..Self::default() }
    }

    /// The power goes. What came before fails, wherever it waits: it was to make durable what is gone, or has read it.
    pub(crate) fn cut(&self, now_ns: u64) {
        self.cut_ns.store(now_ns.max(1), Ordering::Release);
    }

    pub(crate) fn cut_ns(&self) -> u64 {
        self.cut_ns.load(Ordering::Acquire)
    }

    pub(crate) fn count(&self, kind: FaultKind) {
        self.counts[kind.index()].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> FaultCounts {
        std::array::from_fn(|kind| self.counts[kind].load(Ordering::Relaxed))
    }
}

/// The rules of a disk at a moment.
pub(crate) struct FaultSet {
    /// A power cut first, then in the order in which they came.
    rules: Vec<Arc<Rule>>,
    pub(crate) cache: Option<Arc<WriteCache>>,
    /// Some of them end by themselves.
    pub(crate) is_timed: bool,
    pub(crate) tally: Arc<Tally>,
}

impl FaultSet {
    pub(crate) fn new(
        rules: &[Arc<Rule>],
        cache: Option<Arc<WriteCache>>,
        tally: &Arc<Tally>,
    ) -> Self {
        let mut rules = rules.to_vec();
        rules.sort_by_key(|rule| rule.spec.kind != FaultKind::PowerCut);
        let is_timed = rules.iter().any(|rule| rule.until_ns.is_some());
        Self { rules, cache, is_timed, tally: Arc::clone(tally) }
    }

    /// What is done to a request. `None`: none of the rules is for it.
    pub(crate) fn plan(&self, op: Op, range: &Range<u64>, now_ns: u64) -> Option<Plan> {
        let mut plan = None;
        for rule in self.rules.iter().filter(|rule| rule.is_for(op, range, now_ns)) {
            let plan: &mut Plan = plan.get_or_insert_default();
            let Some((drawn, is_first)) = rule.fires() else { continue };
            self.tally.count(rule.spec.kind);
            if is_first {
                let (disk, id, kind) = (&self.tally.disk, rule.id, rule.spec.kind.name());
                tracing::warn!(disk, id, kind, op = ?op, "fault injected for the first time");
            }
            plan.act = match rule.spec.kind {
                FaultKind::Error(status) => Act::End(status),
                FaultKind::PowerCut => Act::End(Status::Io),
                FaultKind::FlushLies => Act::End(Status::Ok),
                FaultKind::Torn { silent } => Act::Torn { silent, drawn },
                FaultKind::Corrupt => {
                    let its = rule.spec.range.as_ref().unwrap_or(range);
                    let (start, end) = (its.start.max(range.start), its.end.min(range.end));
                    Act::Corrupt { drawn, start, end }
                }
                FaultKind::Delay { least, most } => {
                    let span = u64::try_from((most - least).as_nanos()).unwrap_or(u64::MAX);
                    let more = (u128::from(drawn) * (u128::from(span) + 1)) >> 64;
                    let least = u64::try_from(least.as_nanos()).unwrap_or(u64::MAX);
                    let delay_ns = least.saturating_add(u64::try_from(more).unwrap_or(span));
                    plan.wait(rule.id, Some(delay_ns));
                    continue;
                }
                FaultKind::Stall => {
                    plan.wait(rule.id, None);
                    continue;
                }
                FaultKind::Volatile { .. } => continue,
            };
            break;
        }
        plan
    }

    /// Whether a write that is to be durable when it ends is only said to be.
    pub(crate) fn lies(&self, now_ns: u64) -> bool {
        let lies = |rule: &&Arc<Rule>| rule.spec.kind == FaultKind::FlushLies;
        let mut rules = self.rules.iter().filter(lies);
        rules.any(|rule| rule.is_for(Op::Flush, &(0..0), now_ns) && rule.fires().is_some())
    }
}

/// The rules of a disk, for whoever changes them.
pub(crate) struct Faults {
    pub(crate) tally: Arc<Tally>,
    /// Held by whoever changes them, for as long as that takes.
    pub(crate) changing: Mutex<()>,
    pub(crate) control: Mutex<Control>,
    /// When the first of them ends by itself.
    pub(crate) soonest_ns: AtomicU64,
}

#[derive(Default)]
pub(crate) struct Control {
    pub(crate) rules: Vec<Arc<Rule>>,
    pub(crate) cache: Option<Arc<WriteCache>>,
    /// What the disk could do before there was that.
    pub(crate) features: Option<Features>,
    /// The disk is going: there are no others.
    pub(crate) is_closed: bool,
    next_id: u64,
}

impl Faults {
    pub(crate) fn of(disk: &str) -> Self {
        Self {
            tally: Arc::new(Tally::of(disk)),
            changing: Mutex::default(),
            control: Mutex::default(),
            soonest_ns: AtomicU64::new(u64::MAX),
        }
    }
}

impl Control {
    /// Makes a rule of it, which nobody goes by yet.
    pub(crate) fn add(
        &mut self,
        spec: FaultSpec,
        size_bytes: u64,
        now_ns: u64,
    ) -> Result<Arc<Rule>> {
        spec.check(size_bytes)?;
        if self.rules.len() >= MAX_FAULTS {
            let what = format!("the disk has {MAX_FAULTS} faults, which is the most; clear some");
            return Err(Error::new(ErrorKind::Resource, what));
        }
        let is_same = |rule: &&Arc<Rule>| {
            spec.kind.is_of_disk() && rule.spec.kind.index() == spec.kind.index()
        };
        if let Some(same) = self.rules.iter().find(is_same) {
            let (kind, id) = (spec.kind.name(), same.id);
            let what = format!("the disk has a fault {kind} already: {id}");
            return Err(Error::new(ErrorKind::Exists, what));
        }
        self.next_id += 1;
        let rule = Arc::new(Rule::new(self.next_id, spec, now_ns));
        self.rules.push(Arc::clone(&rule));
        Ok(rule)
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} faults", self.control.lock().rules.len())
    }
}

#[cfg(test)]
mod tests;
