//! Changes while a yard runs: those of the same disk one at a time, and nobody but those who use what is changed notices.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::DiskFlags;

use super::config::save::Edit;
use super::events::Event;
use super::turns::Subject;
use super::{Inside, MAX_OPENINGS, Opening, Yard, YardExport, show_disks, shutting_down};
use crate::daemon::{Losses, enter_write_back_path_with};
use crate::disks::{DiskPlan, OptionSpec, Value, live};
use crate::error::{Error, ErrorKind, Result};
use crate::exports::{self, ExportKind, ExportPlan};

/// What has come of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was made.
    Made,
    /// It was there already, as it is wanted.
    Same,
    /// There is one of that name, and a new one was wanted.
    Taken,
}

/// Whether two plans are of the same disk, in the same words.
fn is_same(one: &DiskPlan, two: &DiskPlan) -> bool {
    format!("{one:?}") == format!("{two:?}")
}

fn given_up() -> Error {
    Error::failed("cancelled before the disk was open")
}

impl Yard {
    /// Opens a disk, under the name that its plan gives it; with `only_new`, only if there is none of that name.
    ///
    /// # Errors
    /// What keeps it from being opened. There is another one of that name.
    pub async fn add_disk(
        self: &Arc<Self>,
        plan: DiskPlan,
        only_new: bool,
        save: Option<Edit>,
    ) -> Result<Outcome> {
        self.add_disk_unless(plan, only_new, save, std::future::pending()).await
    }

    /// The same, which is given up when `unwanted` has ended, unless the disk is there by then. What its driver waits for may
    /// still be waited for, and what comes of that is closed.
    ///
    /// # Errors
    /// Those of [`Yard::add_disk`]. It was given up.
    pub async fn add_disk_unless(
        self: &Arc<Self>,
        plan: DiskPlan,
        only_new: bool,
        save: Option<Edit>,
        unwanted: impl Future<Output = ()>,
    ) -> Result<Outcome> {
        let mut unwanted = pin!(unwanted);
        let name = plan.options.name.clone().unwrap_or_default();
        let _turn = tokio::select! {
            turn = self.turns.of([Subject::disk(&name)]) => turn?,
            () = &mut unwanted => return Err(given_up()),
        };
        if only_new && self.inside.read().disk(&name).is_ok() {
            return Ok(Outcome::Taken);
        }
        let prepared = tokio::select! {
            prepared = self.prepare(save) => prepared?,
            () = &mut unwanted => return Err(given_up()),
        };
        let outcome = self.add_disk_now(name, plan, unwanted).await?;
        self.save(prepared).await?;
        Ok(outcome)
    }

    async fn add_disk_now(
        self: &Arc<Self>,
        name: String,
        plan: DiskPlan,
        unwanted: impl Future<Output = ()>,
    ) -> Result<Outcome> {
        let before = self.inside.read().disk(&name).ok().map(|disk| Arc::clone(&disk.plan));
        if let Some(before) = before {
            if is_same(&before, &plan) {
                return Ok(Outcome::Same);
            }
            let what = format!("a disk named {name:?} already exists: {}", before.uri);
            return Err(Error::new(ErrorKind::Busy, what)
                .help("remove that export first, or choose another name"));
        }
        let Ok(place) = Arc::clone(&self.openings).try_acquire_owned() else {
            let what = format!("{MAX_OPENINGS} disks are being opened already");
            return Err(Error::new(ErrorKind::Busy, what)
                .help("wait until their drivers have given up, or restart the daemon"));
        };
        let (yard, opening) = (Arc::clone(self), Arc::<Opening>::default());
        let other_end = Arc::clone(&opening);
        let mut opened = tokio::task::spawn_blocking(move || {
            // Who has given it up does not end the thread.
            let _place = place;
            yard.open_disk_unless(&plan, DiskFlags::empty(), &other_end).map(drop)
        });
        let mut ending = self.ending.subscribe();
        let opened = tokio::select! {
            opened = &mut opened => opened,
            () = unwanted => {
                if opening.ends() {
                    return Err(given_up());
                }
                opened.await
            }
            // Its end needs nothing of what is not there yet.
            () = async { drop(ending.wait_for(|ending| *ending).await) } => {
                if opening.ends() {
                    return Err(shutting_down());
                }
                opened.await
            }
        };
        opened.map_err(|err| Error::failed("cannot open the disk").caused_by(err))??;
        Ok(Outcome::Made)
    }

    /// Flushes and closes a disk that nobody uses.
    ///
    /// # Errors
    /// There is none of that name, it has exports, or its last flush has failed: it is closed all the same then.
    pub async fn remove_disk(&self, name: &str, save: Option<Edit>) -> Result<()> {
        let _turn = self.turns.of([Subject::disk(name)]).await?;
        // It is gone, whatever was lost with it: the file says so before that is told.
        let mut losses = Losses::default();
        let removed = async {
            losses = self.remove_disk_now(name).await?;
            Ok(())
        };
        let saved = self.changed(save, removed).await;
        losses.into_result().inspect_err(|_| {
            if let Err(err) = &saved {
                tracing::error!(%name, error = %err, "removal not saved to yard.toml");
            }
        })?;
        saved
    }

    /// Says what was lost with it.
    async fn remove_disk_now(&self, name: &str) -> Result<Losses> {
        // Held before it is taken out: an end finds it in the yard, or waits for this.
        let _closing = self.closing.read().await;
        let disk = {
            let mut inside = self.inside.write();
            inside.disk(name)?;
            let exports = inside.exports.iter().filter(|export| export.plan.disk == name);
            let labels: Vec<_> = exports.map(|export| export.plan.label()).collect();
            if !labels.is_empty() {
                let what = format!("the disk {name:?} has exports: {}", labels.join(", "));
                return Err(Error::new(ErrorKind::Busy, what).help("remove them first"));
            }
            let at = inside.disks.iter().position(|disk| disk.name == name);
            at.map(|at| inside.disks.remove(at))
        };
        let Some(disk) = disk else { return Ok(Losses::default()) };
        self.removed.forget(|it| it.disk == name);
        self.take_from_exports().await;
        let losses = disk.open.close(&self.layer, self.grace()).await;
        disk.open.layers().for_each(|layer| self.watched.remove(layer.disk()));
        self.events.push(Event::DiskRemoved { disk: name.into() });
        if self.inside.read().is_closed {
            // Who has asked may hear nothing more of this daemon.
            self.lost.lock().extend(losses.clone());
        }
        Ok(losses)
    }

    /// Those of the whole yard let go of what is not in it any more.
    async fn take_from_exports(&self) {
        let (inside, showing) = (Arc::clone(&self.inside), Arc::clone(&self.showing));
        let taken = tokio::task::spawn_blocking(move || show_disks(&inside, &showing));
        if let Err(err) = taken.await {
            tracing::error!(error = %err, "export did not release its disk");
        }
    }

    /// Opens an export, and serves it.
    ///
    /// # Errors
    /// What keeps it from that. There is another one of that name, or no such disk.
    pub async fn add_export(
        self: &Arc<Self>,
        plan: ExportPlan,
        save: Option<Edit>,
    ) -> Result<Outcome> {
        let subjects = [Subject::disk(&plan.disk), Subject::export(plan.kind, &plan.name)];
        let _turn = self.turns.of(subjects).await?;
        self.changed(save, self.add_export_now(plan)).await
    }

    async fn add_export_now(self: &Arc<Self>, plan: ExportPlan) -> Result<Outcome> {
        if self.has_export(&plan).await? {
            return Ok(Outcome::Same);
        }
        // A disk that is not there is told before a place is taken.
        if !plan.kind.whole_yard {
            self.disk(&plan.disk)?;
        }
        if plan.kind.local_kernel {
            enter_write_back_path_with(&self.handles).await;
        }
        let yard = Arc::clone(self);
        let (kind, name, disk) = (plan.kind, plan.name.clone(), plan.disk.clone());
        let again = name.clone();
        let added = Event::ExportAdded { kind: kind.name.into(), name: name.clone(), disk };
        let opened = tokio::task::spawn_blocking(move || {
            let bound = (kind.bind)(&plan)?;
            yard.open_export(plan, bound)?.start().inspect_err(|_| {
                yard.inside.write().take_export(kind, &name);
            })
        });
        opened.await.map_err(|err| Error::failed("cannot open the export").caused_by(err))??;
        self.removed.forget(|it| it.is(kind, &again));
        self.events.push(added);
        Ok(Outcome::Made)
    }

    /// Whether there is that very export. One that others have ended makes way.
    async fn has_export(&self, plan: &ExportPlan) -> Result<bool> {
        let before = self.inside.read().export(plan.kind, &plan.name).cloned();
        let Some(before) = before else { return Ok(false) };
        if before.export.is_over() {
            if let Err(err) = before.export.end(self.grace() / 2, self.grace()).await {
                tracing::warn!(export = plan.label(), error = %err, "replaced export did not stop cleanly");
            }
            self.inside.write().take_export(plan.kind, &plan.name);
            return Ok(false);
        }
        if *before.plan == *plan {
            return Ok(true);
        }
        let of = match &before.plan.disk {
            _ if plan.kind.whole_yard => "all disks".to_owned(),
            disk => format!("disk {disk:?}"),
        };
        let what = format!("export {:?} already exists and serves {of}", plan.label());
        Err(Error::new(ErrorKind::Busy, what)
            .help("remove that export first, or choose another name"))
    }

    /// Ends an export: what its clients have asked for is answered, and nobody else is told. Says how many of their requests the
    /// disk has not ended yet; so it does when it is asked again.
    ///
    /// # Errors
    /// There is none of that name. Something of it is left, or not durable: it is gone all the same then.
    pub async fn remove_export(
        &self,
        kind: &ExportKind,
        name: &str,
        save: Option<Edit>,
    ) -> Result<usize> {
        loop {
            let disk_of =
                |inside: &Inside| inside.export(kind, name).map(|it| it.plan.disk.clone());
            let disk = disk_of(&self.inside.read()).unwrap_or_default();
            let subjects = [Subject::disk(&disk), Subject::export(kind, name)];
            let _turn = self.turns.of(subjects).await?;
            // While it was waited for, there may have come another of that name.
            if disk_of(&self.inside.read()).is_none_or(|now| now == disk) {
                // It is gone, whatever is left of it: the file says so before that is told.
                let mut ended = Ok(0);
                let removed = async {
                    ended = self.remove_export_now(kind, name).await?;
                    Ok(())
                };
                let saved = self.changed(save, removed).await;
                let in_flight = ended.inspect_err(|_| {
                    if let Err(err) = &saved {
                        tracing::error!(%name, error = %err, "removal not saved to yard.toml");
                    }
                })?;
                return saved.map(|()| in_flight);
            }
        }
    }

    /// Says how it has ended.
    async fn remove_export_now(&self, kind: &ExportKind, name: &str) -> Result<Result<usize>> {
        let taken = self.inside.write().take_export(kind, name);
        let Some(YardExport { plan, export, .. }) = taken else {
            if let Some(in_flight) = self.removed.in_flight(kind, name) {
                return Ok(Ok(in_flight));
            }
            let what = format!("no export named {name:?} of kind {}", kind.name);
            return Err(Error::failed(what).help("list disks and exports: blockyard list"));
        };
        // Its clients leave once they have been answered.
        let disks: Vec<_> = if plan.kind.whole_yard {
            self.open_disks().into_iter().map(|(_, open)| open).collect()
        } else {
            self.disk(&plan.disk).into_iter().collect()
        };
        let no_waits = disks.iter().map(|open| open.disk().limit_waits(Duration::ZERO));
        let no_waits: Vec<_> = no_waits.collect();
        export.stop();
        let (clients, grace) = (self.grace() / 2, self.grace());
        let mut ending = export.end(clients, grace);
        let ended = match tokio::time::timeout(clients, &mut ending).await {
            Ok(ended) => ended,
            // They have had their time. What they have asked for is let in by now, and the limits are there for all others.
            Err(_) => {
                drop(no_waits);
                ending.await
            }
        };
        let in_flight = self.removed.note(&plan, &*export);
        let (kind, name) = (plan.kind.name.into(), plan.name.clone());
        self.events.push(Event::ExportRemoved { kind, name });
        Ok(ended.map(|()| in_flight))
    }

    /// Whether there was an export of that name, and its disk may not have done with its clients.
    pub(crate) fn has_removed(&self, kind: &str, name: &str) -> bool {
        exports::known(kind).is_some_and(|kind| self.removed.has(kind, name))
    }

    /// Changes a disk while it is used. It may take a while, as files are made longer for certain.
    ///
    /// # Errors
    /// One cannot be so. Nothing is changed then, unless the driver has refused what could not be told before.
    pub async fn set(
        &self,
        disk: &str,
        settings: Vec<(&'static OptionSpec, Value)>,
        shrink: bool,
        save: Option<Edit>,
    ) -> Result<()> {
        let _turn = self.turns.of([Subject::disk(disk)]).await?;
        let open = self.disk(disk)?;
        let set = async {
            let set = tokio::task::spawn_blocking(move || live::set(&open, &settings, shrink));
            set.await.map_err(|err| Error::failed("cannot change the disk").caused_by(err))?
        };
        self.changed(save, set).await
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use blockyard_blkmq::{Bio, Op, OpenMode, Sector, StatGroup};
    use parking_lot::Mutex;
    use tokio::io::AsyncWriteExt;
    use tokio::sync::Barrier;

    use super::*;
    use crate::exports::{Doing, Export};
    use crate::yard::LEAST;
    use crate::yard::plan::NbdPlan;
    use crate::yard::report::Served;

    /// How long anything may take.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Notes how long its clients have, and how long it may take to end, and ends together with all others that have its barrier.
    struct Ended(Mutex<Option<(Duration, Duration)>>, Arc<Barrier>);

    impl Export for Ended {
        fn start(&self) -> Result<()> {
            Ok(())
        }

        fn end(&self, clients: Duration, grace: Duration) -> Doing<'_, Result<()>> {
            *self.0.lock() = Some((clients, grace));
            Box::pin(async {
                self.1.wait().await;
                Ok(())
            })
        }

        fn report(&self) -> Served {
            Served { address: None, clients: 0, queues: None, requests: 0 }
        }
    }

    #[tokio::test]
    async fn an_end_waits_for_a_change_under_way_and_lets_no_other_begin() {
        let yard = Yard::start(1, &NbdPlan::default()).unwrap();
        let mut plan: DiskPlan = "ram:1M?name=a".parse().unwrap();
        assert_eq!(yard.add_disk(plan.clone(), false, None).await.unwrap(), Outcome::Made);
        assert_eq!(yard.add_disk(plan.clone(), false, None).await.unwrap(), Outcome::Same);
        // As a removal holds it that closes a disk.
        let change = yard.turns.of([Subject::disk("a")]).await.unwrap();
        let ending = Arc::clone(&yard);
        let ending = tokio::spawn(async move { ending.end(Duration::from_secs(60)).await });
        while !yard.inside.read().is_closed {
            tokio::task::yield_now().await;
        }
        assert!(!ending.is_finished());
        assert_eq!(yard.inside.read().disks.len(), 1);
        plan.options.name = Some("b".into());
        let refused = yard.open_disk(&plan, DiskFlags::empty()).map(drop).unwrap_err();
        assert!(refused.to_string().contains("is shutting down"), "{refused}");
        drop(change);
        ending.await.unwrap().into_result().unwrap();
        assert!(yard.inside.read().disks.is_empty() && yard.layer.disks().is_empty());
    }

    /// So many exports, which end together or not at all.
    fn put_exports(yard: &Yard, count: usize) -> Vec<Arc<Ended>> {
        let together = Arc::new(Barrier::new(count));
        let put = |index| {
            let ended = Arc::new(Ended(Mutex::default(), Arc::clone(&together)));
            let plan =
                Arc::new(ExportPlan::new(&crate::exports::nbd::KIND, "a", format!("e{index}")));
            let export: Arc<dyn Export> = Arc::<Ended>::clone(&ended);
            yard.inside.write().exports.push(YardExport { plan, export, only_reads: false });
            ended
        };
        (0..count).map(put).collect()
    }

    #[tokio::test]
    async fn a_change_that_does_not_end_takes_no_time_from_the_rest() {
        let yard = Yard::start(1, &NbdPlan::default()).unwrap();
        let exports = put_exports(&yard, 1);
        let _stuck = yard.turns.of([Subject::disk("a")]).await.unwrap();
        // More than the least, which they have in any case.
        let grace = LEAST * 2 + Duration::from_millis(100);
        yard.end(grace).await.into_result().unwrap();
        assert_eq!(*exports[0].0.lock(), Some((grace / 2, grace / 2)));
    }

    /// Waits until its disk has flushed, as a client does whose last flush takes as long as its server may.
    struct UntilFlushed(Arc<blockyard_blkmq::Disk>);

    impl Export for UntilFlushed {
        fn start(&self) -> Result<()> {
            Ok(())
        }

        fn end(&self, _clients: Duration, _grace: Duration) -> Doing<'_, Result<()>> {
            Box::pin(async {
                let flushes = || self.0.stats().0.counters(StatGroup::Flush).ios;
                let flushed = async {
                    while flushes() == 0 {
                        blockyard_conformance::pause();
                        tokio::task::yield_now().await;
                    }
                };
                tokio::time::timeout(PATIENCE, flushed).await.expect("it is not flushed");
                Ok(())
            })
        }

        fn report(&self) -> Served {
            Served::default()
        }
    }

    /// A disk that has much to write back begins when its clients are asked to leave, not when they have left.
    #[tokio::test]
    async fn disks_are_flushed_while_clients_leave() {
        let dir = tempfile::tempdir().unwrap();
        let uri = format!("file:{}?create=1M&name=a", dir.path().join("a").display());
        let yard = Yard::start(1, &NbdPlan::default()).unwrap();
        yard.add_disk(uri.parse().unwrap(), false, None).await.unwrap();
        let disk = Arc::clone(yard.disk("a").unwrap().disk());
        let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
        let (tell, told) = tokio::sync::oneshot::channel();
        let tell = Mutex::new(Some(tell));
        let ended = move |bio: Box<Bio>| _ = tell.lock().take().unwrap().send(bio.status());
        let write = Bio::new(Op::WriteZeroes, Sector(0), 4096).on_end(Arc::new(ended));
        bdev.submit(0, write);
        assert!(told.await.unwrap().is_ok());
        drop(bdev);
        let plan = Arc::new(ExportPlan::new(&crate::exports::nbd::KIND, "a", "e"));
        let export: Arc<dyn Export> = Arc::new(UntilFlushed(disk));
        yard.inside.write().exports.push(YardExport { plan, export, only_reads: false });
        yard.end(PATIENCE).await.into_result().unwrap();
    }

    /// What one's clients take is not taken from another's, nor from the disks.
    #[tokio::test]
    async fn exports_end_together_in_half_of_the_time() {
        let seconds = Duration::from_secs;
        // The last one gives less than it may be.
        for (grace, half) in [(seconds(8), seconds(4)), (Duration::ZERO, seconds(1))] {
            let yard = Yard::start(1, &NbdPlan::default()).unwrap();
            let exports = put_exports(&yard, 3);
            let ending = tokio::time::timeout(PATIENCE, yard.end(grace));
            ending.await.expect("they end one after the other").into_result().unwrap();
            for export in exports {
                assert_eq!(*export.0.lock(), Some((half, half)), "{grace:?}");
            }
        }
    }

    /// One that does not answer, as on a file server that is gone, until somebody writes to it.
    fn silent_file(dir: &tempfile::TempDir) -> std::path::PathBuf {
        let file = dir.path().join("yard.toml");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        file
    }

    #[tokio::test]
    async fn a_change_is_given_up_while_its_file_does_not_answer() {
        let dir = tempfile::tempdir().unwrap();
        let file = silent_file(&dir);
        let yard = Yard::start(1, &NbdPlan::default()).unwrap();
        yard.keep_in(file.clone());
        let plan: DiskPlan = "ram:1M?name=a".parse().unwrap();
        let edit = Edit::AddDisk { plan: plan.clone(), options: Vec::new() };
        // Opens it, if somebody reads it.
        let answer = || {
            let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
            rustix::fs::open(&file, flags, rustix::fs::Mode::empty()).ok()
        };
        let mut answering = None;
        let asked = async {
            while answering.is_none() {
                answering = answer();
                tokio::task::yield_now().await;
            }
        };
        let adding = yard.add_disk_unless(plan, false, Some(edit), asked);
        let given_up = tokio::time::timeout(PATIENCE, adding).await;
        // Whoever waits for it is through.
        drop(answering.or_else(answer));
        let err = given_up.expect("it waits for the file").unwrap_err();
        assert_eq!(err.to_string(), "cancelled before the disk was open");
        assert!(yard.disk("a").is_err());
        yard.end(PATIENCE).await.into_result().unwrap();
    }

    #[tokio::test]
    async fn a_file_that_does_not_answer_keeps_only_its_own_change_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let file = silent_file(&dir);
        let yard = Yard::start(1, &NbdPlan::default()).unwrap();
        yard.keep_in(file.clone());
        yard.add_disk("ram:1M?name=a".parse().unwrap(), false, None).await.unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        // It answers when others have had their turn.
        let answering = std::thread::spawn(move || {
            let others = told.recv_timeout(PATIENCE);
            drop(std::fs::OpenOptions::new().write(true).open(file).unwrap());
            others
        });
        let removing = yard.remove_disk("a", Some(Edit::RemoveDisk("a".into())));
        let (removed, ()) = tokio::join!(removing, async { tell.send(()).unwrap() });
        answering.join().unwrap().expect("nobody else had a turn");
        let refused = removed.unwrap_err().to_string();
        assert!(refused.contains("yard.toml cannot express that"), "{refused}");
        yard.disk("a").unwrap();
        yard.end(PATIENCE).await.into_result().unwrap();
    }

    #[tokio::test]
    async fn a_flush_that_fails_in_a_removal_as_the_daemon_ends_is_lost_by_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let uri = format!("file:{}?create=1M&name=a", dir.path().join("a").display());
        let yard = Yard::start(1, &NbdPlan::default()).unwrap();
        yard.add_disk(uri.parse().unwrap(), false, None).await.unwrap();
        yard.disk("a").unwrap().disk().fail_flushes();
        let change = yard.turns.of([Subject::disk("a")]).await.unwrap();
        let removing = Arc::clone(&yard);
        let mut removing = Box::pin(async move { removing.remove_disk("a", None).await });
        // Until it stands before the lock, where it is before the end.
        let once = std::future::poll_fn(|cx| Poll::Ready(removing.as_mut().poll(cx).is_pending()));
        assert!(once.await);
        let ending = Arc::clone(&yard);
        let ending = tokio::spawn(async move { ending.end(Duration::from_secs(60)).await });
        while !yard.inside.read().is_closed {
            tokio::task::yield_now().await;
        }
        drop(change);
        removing.await.unwrap_err();
        let lost = ending.await.unwrap().into_result().unwrap_err();
        assert!(lost.to_string().contains("final flush failed: a"), "{lost}");
    }

    #[tokio::test]
    async fn a_disk_whose_last_flush_fails_is_removed_from_the_file_too() {
        let dir = tempfile::tempdir().unwrap();
        let (file, uri) =
            (dir.path().join("yard.toml"), format!("file:{}", dir.path().join("a").display()));
        let text = format!(
            "[[disk]]\nname = \"a\"\nuri = \"{uri}\"\n\n[[disk]]\nname = \"b\"\nuri = \"ram:1M\"\n\n\
             [nbd]\nlisten = \"unix:s\"\n"
        );
        std::fs::write(&file, text).unwrap();
        let yard = Yard::start(1, &NbdPlan::default()).unwrap();
        yard.keep_in(file.clone());
        yard.add_disk(format!("{uri}?create=1M&name=a").parse().unwrap(), false, None)
            .await
            .unwrap();
        yard.disk("a").unwrap().disk().fail_flushes();
        let lost = yard.remove_disk("a", Some(Edit::RemoveDisk("a".into()))).await.unwrap_err();
        assert!(lost.to_string().contains("final flush failed: a"), "{lost}");
        let saved = std::fs::read_to_string(&file).unwrap();
        assert!(saved.contains("\"b\"") && !saved.contains("\"a\""), "{saved}");
        yard.end(Duration::from_secs(60)).await.into_result().unwrap();
    }

    #[tokio::test]
    async fn an_opening_that_was_given_up_counts_until_its_thread_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("silent");
        let silent = tokio::net::UnixListener::bind(&path).unwrap();
        let yard = Yard::start(1, &NbdPlan::default()).unwrap();
        let others = u32::try_from(MAX_OPENINGS - 1).unwrap();
        let others = yard.openings.acquire_many(others).await.unwrap();
        let stuck = format!("nbd+unix:///?socket={}&timeout=10m&name=a", path.display());
        let mut peer = None;
        let unwanted = async { peer = Some(silent.accept().await.unwrap().0) };
        let adding = yard.add_disk_unless(stuck.parse().unwrap(), false, None, unwanted);
        adding.await.unwrap_err();
        let add = || yard.add_disk("ram:1M?name=b".parse().unwrap(), false, None);
        assert_eq!(add().await.unwrap_err().kind(), ErrorKind::Busy);
        // What is no NBD server is not waited for.
        peer.unwrap().write_all(&[b'x'; 64]).await.unwrap();
        let added = async {
            while add().await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), added).await.unwrap();
        drop(others);
        yard.end(Duration::from_secs(60)).await.into_result().unwrap();
    }

    #[tokio::test]
    async fn an_export_is_told_of_when_it_is_served() {
        let yard = Yard::start(1, &NbdPlan::default()).unwrap();
        yard.add_disk("ram:1M?name=a".parse().unwrap(), false, None).await.unwrap();
        let from = yard.events().now();
        let plan = ExportPlan::new(&crate::exports::nbd::KIND, "a", "e");
        // The server has one of that name, so that ours cannot be started.
        let bdev = yard.disk("a").unwrap().disk().open(None, OpenMode::ReadOnly);
        let other = blockyard_export_nbd::Export::new("e", Arc::new(bdev.unwrap()));
        yard.nbd().add_export(other).unwrap();
        yard.add_export(plan.clone(), None).await.unwrap_err();
        yard.nbd().remove_export("e", Duration::ZERO).await;
        yard.add_disk("ram:1M?name=b".parse().unwrap(), false, None).await.unwrap();
        let (event, from) = yard.events().next(from).await;
        assert_eq!(event, Event::DiskAdded { disk: "b".into() });
        yard.add_export(plan, None).await.unwrap();
        let (kind, name, disk) = ("nbd".into(), "e".into(), "a".into());
        let (event, _) = yard.events().next(from).await;
        assert_eq!(event, Event::ExportAdded { kind, name, disk });
        yard.end(Duration::from_secs(60)).await.into_result().unwrap();
    }

    #[tokio::test]
    async fn the_size_that_is_told_is_the_disk_s_and_not_its_last_block_s() {
        let dir = tempfile::tempdir().unwrap();
        let uri = format!("file:{}?create=1M&name=a", dir.path().join("a").display());
        let yard = Yard::start(1, &NbdPlan::default()).unwrap();
        yard.add_disk(uri.parse().unwrap(), false, None).await.unwrap();
        let from = yard.events().now();
        yard.disk("a").unwrap().disk().resize_bytes((1 << 20) + 1).unwrap();
        let size = yard.report().disks[0].size;
        assert_eq!(size, (1 << 20) + 1);
        let (event, _) = yard.events().next(from).await;
        assert_eq!(event, Event::DiskChanged { disk: "a".into(), size, read_only: false });
        yard.end(Duration::from_secs(60)).await.into_result().unwrap();
    }

    /// As two clients do who have both seen the disk as it was.
    #[tokio::test]
    async fn a_disk_becomes_smaller_only_when_that_is_said_whatever_came_before() {
        let yard = Yard::start(1, &NbdPlan::default()).unwrap();
        yard.add_disk("ram:1M?name=a".parse().unwrap(), false, None).await.unwrap();
        let size = |text| vec![crate::disks::setting("size", text).unwrap()];
        let change = yard.turns.of([Subject::disk("a")]).await.unwrap();
        let set = |text| yard.set("a", size(text), false, None);
        let (first, second) = (set("4M"), set("2M"));
        let ((), first, second) = tokio::join!(async { drop(change) }, first, second);
        first.unwrap();
        let refused = second.unwrap_err().to_string();
        assert!(refused.contains("to 2097152 bytes"), "{refused}");
        assert_eq!(yard.report().disks[0].size, 4 << 20);
        yard.set("a", size("2M"), true, None).await.unwrap();
        assert_eq!(yard.report().disks[0].size, 2 << 20);
        yard.end(Duration::from_secs(60)).await.into_result().unwrap();
    }
}
