//! I/O schedulers: in which order requests go to the driver, and which ones grow by merging while they wait.
//!
//! [`Kind::None`] is the absence of one: requests then go straight from the software queues to the driver.
//! kyber (latency targets per kind of request) and bfq-like fairness by client get their place in [`Kind`] and
//! a file each beside [`deadline`]: a [`Scheduler`] is all that the queue knows of any of them.
//!
//! A scheduler is a value without clock, lock or thread. It is generic over what it holds, so that it is tested
//! with something trivial.

pub mod deadline;
mod lane;

use std::fmt;
use std::str::FromStr;

use crate::op::{IoPrio, Op};
use crate::units::Sector;

/// What a scheduler has to know of a request.
pub trait Item {
    /// What it does.
    fn op(&self) -> Op;
    /// Its first sector.
    fn sector(&self) -> Sector;
    /// The sector after its last.
    fn end(&self) -> Sector;
    /// Its priority. Never changes while a scheduler holds the item.
    fn prio(&self) -> IoPrio;
}

/// On which side of a waiting request a bio would be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeKind {
    /// The request ends where the bio starts.
    Back,
    /// The request starts where the bio ends.
    Front,
}

/// A bio that looks for a request to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What it does.
    pub op: Op,
    /// Its first sector.
    pub start: Sector,
    /// The sector after its last.
    pub end: Sector,
    /// Its priority.
    pub prio: IoPrio,
}

/// Decides on the order of requests that wait for the driver (kernel: `struct elevator_mq_ops`).
///
/// The contract: what is inserted comes out of [`Scheduler::dispatch`] or [`Scheduler::drain`] exactly once,
/// and every dispatch is answered by one [`Scheduler::completed`], when the request ended or was handed back
/// (and may be inserted again).
pub trait Scheduler<R: Item>: Send {
    /// Which one it is.
    fn kind(&self) -> Kind;

    /// Takes a request; one at the head goes before all others (kernel: `insert_requests`).
    fn insert(&mut self, rq: R, at_head: bool, now_ns: u64);

    /// The request to give to the driver next, of those that `want` wants, if any (kernel: `dispatch_request`).
    fn dispatch(&mut self, now_ns: u64, want: &dyn Fn(&R) -> bool) -> Option<R>;

    /// The request that would be next if all were wanted.
    fn peek(&self, now_ns: u64) -> Option<&R>;

    /// Offers `merge` the waiting requests of the same operation and priority class that `bio` is adjacent to, of
    /// those that `want` wants, until it takes one: it then has added the bio to the request and returns true
    /// (kernel: `bio_merge`). The scheduler sorts the request in again by itself. Returns whether one was taken.
    fn try_merge(
        &mut self,
        bio: Candidate,
        want: &dyn Fn(&R) -> bool,
        merge: &mut dyn FnMut(&mut R, MergeKind) -> bool,
    ) -> bool;

    /// A request of that priority that was dispatched has ended, or came back (kernel: `finish_request`). After
    /// a switch, those that the scheduler before had dispatched may be reported too: it does no harm.
    fn completed(&mut self, prio: IoPrio);

    /// Whether something waits (kernel: `has_work`).
    fn has_work(&self) -> bool;

    /// Everything that waits, in the order of its insertion, heads first: for switching to another scheduler.
    fn drain(&mut self) -> Vec<R>;

    /// The queue has another number of requests (kernel: `depth_updated`).
    fn depth_updated(&mut self, nr_requests: u32);

    /// How many of the queue's requests may be in use by operations of this kind, if not all of them (kernel:
    /// `limit_depth`).
    fn depth_limit(&self, op: Op) -> Option<u32>;

    /// What can be tuned, as sysfs names it (`queue/iosched/`).
    fn tunables(&self) -> &'static [Tunable];

    /// The value of a tunable, in the unit of its sysfs file.
    ///
    /// # Errors
    ///
    /// [`TuneError::Unknown`].
    fn get(&self, name: &str) -> Result<u64, TuneError>;

    /// Changes a tunable; what already waits keeps its deadline.
    ///
    /// # Errors
    ///
    /// [`TuneError`], and nothing has changed.
    fn set(&mut self, name: &str, value: u64) -> Result<(), TuneError>;
}

/// A value that can be changed while the scheduler runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunable {
    /// Its name in sysfs.
    pub name: &'static str,
    /// The smallest value.
    pub min: u64,
    /// The largest value.
    pub max: u64,
}

/// Why a tunable was not read or changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TuneError {
    /// There is none of that name (ENOENT).
    #[error("{scheduler} has no tunable {name:?}; it has: {known}")]
    Unknown {
        /// Who was asked.
        scheduler: Kind,
        /// For what.
        name: String,
        /// What there is.
        known: String,
    },
    /// It takes no such value (EINVAL).
    #[error("{name} is from {min} to {max}, not {value}")]
    Range {
        /// Which one.
        name: &'static str,
        /// The smallest value.
        min: u64,
        /// The largest value.
        max: u64,
        /// What was asked for.
        value: u64,
    },
}

/// The schedulers there are, by the names that the kernel's sysfs knows them by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `none`: requests go as they come.
    #[default]
    None,
    /// `mq-deadline`: by sector, but none waits for longer than its deadline ([`deadline::Deadline`]).
    MqDeadline,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::None, Self::MqDeadline];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::MqDeadline => "mq-deadline",
        }
    }

    /// A new one for a queue of so many requests; nothing for [`Kind::None`].
    #[must_use]
    pub fn build<R: Item + Send + 'static>(
        self,
        nr_requests: u32,
    ) -> Option<Box<dyn Scheduler<R>>> {
        match self {
            Self::None => None,
            Self::MqDeadline => Some(Box::new(deadline::Deadline::new(nr_requests))),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A scheduler that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown scheduler {0:?}; supported: none, mq-deadline")]
pub struct UnknownKind(pub String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_parsing_and_an_unknown_one_is_told_all_of_them() {
        for kind in Kind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let text = "bfq".parse::<Kind>().unwrap_err().to_string();
        assert!(Kind::ALL.iter().all(|kind| text.contains(kind.name())), "{text}");
    }
}
