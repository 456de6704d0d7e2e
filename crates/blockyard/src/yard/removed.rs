//! Exports that are gone, while their disks still have requests of their clients: who removes one again hears how many.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::exports::{Export, ExportKind, ExportPlan, InFlight};

/// Those that are known. Who removes more, and asks again for the first, hears that there is no such export.
const MAX_REMOVED: usize = 128;

/// An export that was removed.
pub(super) struct RemovedExport {
    kind: &'static ExportKind,
    name: String,
    pub(super) disk: String,
    in_flight: InFlight,
}

impl RemovedExport {
    pub(super) fn is(&self, kind: &ExportKind, name: &str) -> bool {
        self.kind == kind && self.name == name
    }
}

/// In the order in which they were removed.
#[derive(Default)]
pub(super) struct Removed(Mutex<VecDeque<RemovedExport>>);

impl Removed {
    /// One that has ended. Says how many requests of its clients the disk still has, and keeps that in mind if there are any.
    pub(super) fn note(&self, plan: &ExportPlan, export: &dyn Export) -> usize {
        let Some(in_flight) = export.in_flight() else { return 0 };
        let count = in_flight();
        if count > 0 {
            let (kind, name, disk) = (plan.kind, plan.name.clone(), plan.disk.clone());
            let mut removed = self.0.lock();
            removed.retain(|it| !it.is(kind, &name));
            if removed.len() == MAX_REMOVED {
                removed.pop_front();
            }
            removed.push_back(RemovedExport { kind, name, disk, in_flight });
        }
        count
    }

    /// How many requests of its clients its disk still has; none if there was no such export, or it left nothing. That they have
    /// ended is told once.
    pub(super) fn in_flight(&self, kind: &ExportKind, name: &str) -> Option<usize> {
        let mut removed = self.0.lock();
        let at = removed.iter().position(|it| it.is(kind, name))?;
        let count = removed.get(at).map(|it| (it.in_flight)());
        if count == Some(0) {
            removed.remove(at);
        }
        count
    }

    /// Whether there is something left to tell of an export of that name.
    pub(super) fn has(&self, kind: &ExportKind, name: &str) -> bool {
        self.0.lock().iter().any(|it| it.is(kind, name))
    }

    /// There are others of that name now, or their disk is gone.
    pub(super) fn forget(&self, which: impl Fn(&RemovedExport) -> bool) {
        self.0.lock().retain(|it| !which(it));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use blockyard_blkmq::{Bio, Op, OpenMode, Sector};
    use tokio::sync::Notify;

    use super::*;
    use crate::error::Result;
    use crate::exports::{Doing, nbd, vhost_user_blk};
    use crate::yard::plan::NbdPlan;
    use crate::yard::report::Served;
    use crate::yard::{Yard, YardExport};

    /// How long anything may take.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// So many requests are at its disk.
    struct Left(Arc<AtomicUsize>);

    impl Export for Left {
        fn start(&self) -> Result<()> {
            Ok(())
        }

        fn end(&self, _clients: Duration, _grace: Duration) -> Doing<'_, Result<()>> {
            Box::pin(std::future::ready(Ok(())))
        }

        fn in_flight(&self) -> Option<InFlight> {
            let left = Arc::clone(&self.0);
            Some(Box::new(move || left.load(Ordering::Relaxed)))
        }

        fn report(&self) -> Served {
            Served::default()
        }
    }

    #[test]
    fn what_a_removed_export_has_left_is_told_until_there_is_another_of_its_name() {
        let removed = Removed::default();
        let count = Arc::new(AtomicUsize::new(0));
        let plan = |name: &str| ExportPlan::new(&nbd::KIND, "disk", name);
        let note = |name: &str| removed.note(&plan(name), &Left(Arc::clone(&count)));
        assert_eq!((note("a"), removed.in_flight(&nbd::KIND, "a")), (0, None), "it left nothing");
        count.store(2, Ordering::Relaxed);
        assert_eq!((note("a"), removed.in_flight(&nbd::KIND, "a")), (2, Some(2)));
        assert_eq!(removed.in_flight(&vhost_user_blk::KIND, "a"), None);
        count.store(0, Ordering::Relaxed);
        assert_eq!(removed.in_flight(&nbd::KIND, "a"), Some(0), "it is done");
        assert_eq!(removed.in_flight(&nbd::KIND, "a"), None, "as one that never was");
        count.store(1, Ordering::Relaxed);
        note("a");
        removed.forget(|it| it.is(&nbd::KIND, "a"));
        assert_eq!(removed.in_flight(&nbd::KIND, "a"), None);
        // Their number has a bound.
        count.store(1, Ordering::Relaxed);
        (0..=MAX_REMOVED).for_each(|number| _ = note(&number.to_string()));
        assert_eq!(removed.in_flight(&nbd::KIND, "0"), None);
        assert_eq!(removed.in_flight(&nbd::KIND, &MAX_REMOVED.to_string()), Some(1));
        removed.forget(|it| it.disk == "disk");
        assert!(removed.0.lock().is_empty());
    }

    /// Ends when it is told to, as one whose clients have files open.
    struct Lingering(Arc<Notify>);

    impl Export for Lingering {
        fn start(&self) -> Result<()> {
            Ok(())
        }

        fn end(&self, _clients: Duration, _grace: Duration) -> Doing<'_, Result<()>> {
            Box::pin(async {
                self.0.notified().await;
                Ok(())
            })
        }

        fn report(&self) -> Served {
            Served::default()
        }
    }

    /// What its clients have asked for is let in by then.
    #[tokio::test]
    async fn limits_are_there_again_for_others_while_an_export_lingers() {
        let yard = Yard::start(1, &NbdPlan::default()).unwrap();
        yard.give_grace(Duration::from_millis(200));
        let plan = "null:1M?write_bps=1&name=a".parse().unwrap();
        yard.add_disk(plan, false, None).await.unwrap();
        let disk = Arc::clone(yard.disk("a").unwrap().disk());
        let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
        let end = Arc::new(Notify::new());
        let export: Arc<dyn Export> = Arc::new(Lingering(Arc::clone(&end)));
        let plan = Arc::new(ExportPlan::new(&nbd::KIND, "a", "e"));
        yard.inside.write().exports.push(YardExport { plan, export, only_reads: false });
        let others = async {
            // One after the other, until one has been kept for a second.
            while disk.oldest() < Some(Duration::from_secs(1)) {
                if disk.oldest().is_none() {
                    let write = Bio::new(Op::WriteZeroes, Sector(0), 4096);
                    bdev.submit(0, write.on_end(Arc::new(drop::<Box<Bio>>)));
                }
                blockyard_conformance::pause();
                tokio::task::yield_now().await;
            }
            end.notify_one();
        };
        let removing = yard.remove_export(&nbd::KIND, "e", None);
        let both = async { tokio::join!(removing, others) };
        let (removed, ()) =
            tokio::time::timeout(PATIENCE, both).await.expect("the disk has no limits");
        assert_eq!(removed.unwrap(), 0);
        drop((bdev, disk));
        yard.end(PATIENCE).await.into_result().unwrap();
    }
}
