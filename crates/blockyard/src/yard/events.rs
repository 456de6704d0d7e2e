//! What happens in a yard, for those who watch: the newest events are kept, so that who was away for a while misses none.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Events that are kept.
const KEPT: usize = 1024;

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// There is a new disk.
    DiskAdded {
        /// Its name.
        disk: String,
    },
    /// A disk has another size, or is read-only now, or no more.
    DiskChanged {
        /// Its name.
        disk: String,
        /// Its size in bytes.
        size: u64,
        /// Whether nobody may change it.
        read_only: bool,
    },
    /// Other faults are injected into a disk than before, or none.
    FaultsChanged {
        /// Its name.
        disk: String,
        /// How many.
        faults: usize,
    },
    /// A disk is gone.
    DiskRemoved {
        /// Its name.
        disk: String,
    },
    /// There is a new export.
    ExportAdded {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// Its disk.
        disk: String,
    },
    /// An export is gone.
    ExportRemoved {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// A job was begun that nobody waits for.
    JobBegun {
        /// Its number.
        job: u64,
    },
    /// It has ended.
    JobEnded {
        /// Its number.
        job: u64,
    },
    /// More has happened than is kept, or in a daemon before this one: look at everything again.
    Missed,
}

/// The newest events.
pub struct Events {
    /// Tells the numbers of this yard from those of others.
    era: u64,
    kept: Mutex<Kept>,
    newest: watch::Sender<u64>,
}

#[derive(Default)]
struct Kept {
    events: VecDeque<Event>,
    /// The number of the next one.
    next: u64,
}

/// How far somebody has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read(u64);

impl Default for Events {
    fn default() -> Self {
        // A clock that stands before 1970 makes all eras one: then old numbers look like ours.
        let era = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros());
        let era = u64::try_from(era).unwrap_or(u64::MAX);
        Self { era, kept: Mutex::default(), newest: watch::Sender::new(0) }
    }
}

impl Events {
    /// Something has happened.
    pub fn push(&self, event: Event) {
        let mut kept = self.kept.lock();
        if kept.events.len() == KEPT {
            kept.events.pop_front();
        }
        kept.events.push_back(event);
        kept.next += 1;
        self.newest.send_replace(kept.next);
    }

    /// From now on.
    #[must_use]
    pub fn now(&self) -> Read {
        Read(self.kept.lock().next)
    }

    /// Behind the event of that id; none if that is of another era, or no id at all.
    #[must_use]
    pub fn behind(&self, id: &str) -> Option<Read> {
        let (era, number) = id.split_once('-')?;
        let number: u64 = number.parse().ok()?;
        (era.parse() == Ok(self.era) && number <= self.kept.lock().next).then_some(Read(number))
    }

    /// What is known of an event by its reader.
    #[must_use]
    pub fn id(&self, read: Read) -> String {
        format!("{}-{}", self.era, read.0)
    }

    /// The event behind `read`, and where its reader is then; waits for it. What was dropped meanwhile is one [`Event::Missed`].
    pub async fn next(&self, read: Read) -> (Event, Read) {
        let mut newest = self.newest.subscribe();
        loop {
            newest.mark_unchanged();
            if let Some(next) = self.try_next(read) {
                return next;
            }
            if newest.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn try_next(&self, read: Read) -> Option<(Event, Read)> {
        let kept = self.kept.lock();
        let oldest = kept.next - kept.events.len() as u64;
        if read.0 < oldest {
            return Some((Event::Missed, Read(oldest)));
        }
        let at = usize::try_from(read.0 - oldest).ok()?;
        kept.events.get(at).map(|event| (event.clone(), Read(read.0 + 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_comes_back_goes_on_where_it_was_and_is_told_what_it_missed() {
        let events = Events::default();
        let begin = events.now();
        let added = |disk: usize| Event::DiskAdded { disk: disk.to_string() };
        events.push(added(0));
        let (event, read) = events.next(begin).await;
        assert_eq!(event, added(0));
        let id = events.id(read);
        events.push(added(1));
        let back = events.behind(&id).unwrap();
        assert_eq!(events.next(back).await.0, added(1));
        for disk in 2..=KEPT + 1 {
            events.push(added(disk));
        }
        let (event, after) = events.next(back).await;
        assert_eq!(event, Event::Missed);
        assert_eq!(events.next(after).await.0, added(2));
        for stranger in ["1-1", "x", "", &format!("{}-99999", events.era)] {
            assert_eq!(events.behind(stranger), None, "{stranger}");
        }
        // One that waits is woken.
        let now = events.now();
        let (got, ()) = tokio::join!(events.next(now), async { events.push(added(7)) });
        assert_eq!(got.0, added(7));
    }
}
