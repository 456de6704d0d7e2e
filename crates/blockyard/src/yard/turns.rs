//! Whose turn it is to change what: changes of the same disk or export come one after the other, in the order in which they were
//! asked for, and others beside them. A disk that does not open, or does not end, keeps nobody from another.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::{OwnedMutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::error::Result;
use crate::exports::ExportKind;

/// What is changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Subject {
    /// A disk, with what lies on it: whoever changes an export has the turn of its disk, too.
    Disk(String),
    /// An export, by its kind and its name.
    Export(&'static str, String),
}

impl Subject {
    pub(super) fn disk(name: &str) -> Self {
        Self::Disk(name.to_owned())
    }

    pub(super) fn export(kind: &ExportKind, name: &str) -> Self {
        Self::Export(kind.name, name.to_owned())
    }
}

/// A line for each subject that is changed now.
#[derive(Default)]
pub(super) struct Turns {
    /// Held by all who change something; by an end, alone.
    going_on: RwLock<()>,
    /// An end has begun, and whoever asks from then on is refused.
    is_over: AtomicBool,
    lines: Mutex<HashMap<Subject, Arc<tokio::sync::Mutex<()>>>>,
}

/// Until it is dropped, nobody else changes the same.
pub(super) struct Turn<'a> {
    _going_on: RwLockReadGuard<'a, ()>,
    _lines: Vec<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits for the turn of all subjects. Everybody stands in line for disks before exports: nobody waits in a circle.
    ///
    /// # Errors
    /// An end has begun.
    pub(super) async fn of<const N: usize>(&self, mut subjects: [Subject; N]) -> Result<Turn<'_>> {
        subjects.sort_unstable();
        // Only an end has it alone, or waits for that.
        let going_on = self.going_on.try_read().ok();
        let going_on = going_on.filter(|_| !self.is_over.load(Ordering::Acquire));
        let going_on = going_on.ok_or_else(super::shutting_down)?;
        let mut had = Vec::with_capacity(N);
        for subject in subjects {
            let line = {
                let mut lines = self.lines.lock();
                // Nobody stands in those any more.
                lines.retain(|_, line| Arc::strong_count(line) > 1);
                Arc::clone(lines.entry(subject).or_default())
            };
            had.push(line.lock_owned().await);
        }
        Ok(Turn { _going_on: going_on, _lines: had })
    }

    /// Waits until no change is under way; none begins from now on.
    pub(super) async fn over(&self) -> RwLockWriteGuard<'_, ()> {
        self.is_over.store(true, Ordering::Release);
        self.going_on.write().await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::Poll;

    use super::*;

    /// Looks at it once.
    async fn waits(future: &mut (impl Future + Unpin)) -> bool {
        std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx).is_pending())).await
    }

    #[tokio::test]
    async fn the_same_is_changed_in_order_and_others_beside_it() {
        let turns = Turns::default();
        let (a, b) = (Subject::disk("a"), Subject::disk("b"));
        let of_a = Subject::Export("nbd", "a".into());
        let first = turns.of([a.clone()]).await.unwrap();
        let mut second = pin!(turns.of([of_a.clone(), a.clone()]));
        let mut third = pin!(turns.of([a.clone()]));
        assert!(waits(&mut second).await && waits(&mut third).await);
        drop(turns.of([b]).await.unwrap());
        drop(turns.of([of_a]).await.unwrap());
        drop(first);
        assert!(waits(&mut third).await, "it came later");
        drop(second.await.unwrap());
        drop(third.await.unwrap());
        drop(turns.of([Subject::disk("c")]).await.unwrap());
        assert_eq!(turns.lines.lock().len(), 1, "lines without anybody are forgotten");
    }

    #[tokio::test]
    async fn an_end_waits_for_all_changes_and_lets_no_other_begin() {
        let turns = Turns::default();
        let change = turns.of([Subject::disk("a")]).await.unwrap();
        let mut in_line = pin!(turns.of([Subject::disk("a")]));
        assert!(waits(&mut in_line).await);
        let refused = async || {
            let mut later = pin!(turns.of([Subject::disk("b")]));
            let looked = std::future::poll_fn(|cx| Poll::Ready(later.as_mut().poll(cx)));
            matches!(looked.await, Poll::Ready(Err(err)) if err.to_string().contains("shutting down"))
        };
        {
            let mut over = pin!(turns.over());
            assert!(waits(&mut over).await);
            assert!(refused().await);
            drop(change);
            assert!(waits(&mut over).await, "one was in line before");
            drop(in_line.await.unwrap());
            let _ended = over.await;
            assert!(refused().await);
        }
        assert!(refused().await, "an end that has not waited any longer is one, too");
    }
}
