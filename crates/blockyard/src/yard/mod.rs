//! The yard: what runs. Disks and exports by name, the threads that they live on, and the file that says which there are.

pub mod changes;
pub mod config;
pub mod events;
mod faults;
mod first_flush;
pub mod follow;
pub mod housekeeping;
pub mod plan;
pub mod queue_threads;
mod removed;
pub mod report;
mod turns;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use blockyard_blkmq::{BlockLayer, Clock, Disk, DiskFlags, DiskListener, Event, MonotonicClock};
use blockyard_export_nbd::{Address, Listener, Server};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::daemon::Losses;
use crate::disks::{DiskMaker, DiskPlan, OpenDisk};
use crate::error::{Error, ErrorKind, Result};
use crate::exports::{self, Bound, Export, ExportKind, ExportPlan, Front, FrontDisk};
use config::save::{Edit, Prepared};
use events::Events;
use first_flush::FirstFlushes;
use follow::State;
use housekeeping::{Bell, Watched};
use plan::{NbdPlan, YardPlan};
use queue_threads::{OnPark, QueueThreads};
use removed::Removed;
use turns::Turns;

/// What clients, and then the servers of disks, have at least, however short the grace is.
const LEAST: Duration = Duration::from_secs(1);
/// Disks that are being opened at a time, with those whose opening was given up and has not ended: each has a thread.
const MAX_OPENINGS: usize = 256;

/// Disks and exports by name, and what they live on. Whatever opens or closes is called from where it may wait, and never on a
/// queue thread.
pub struct Yard {
    layer: Arc<BlockLayer>,
    threads: Mutex<Option<QueueThreads>>,
    handles: Vec<Handle>,
    clock: Arc<dyn Clock>,
    watched: Arc<Watched>,
    nbd: Arc<Server>,
    maker: DiskMaker,
    inside: Arc<RwLock<Inside>>,
    /// Held by whoever tells exports of the whole yard which disks there are.
    showing: Arc<Mutex<()>>,
    /// Who changes what.
    turns: Turns,
    /// Room for threads that open a disk.
    openings: Arc<Semaphore>,
    events: Arc<Events>,
    /// The file that says what there is, if there is one.
    file: OnceLock<PathBuf>,
    /// Held by whoever writes to it.
    saving: tokio::sync::Mutex<()>,
    /// Exports that were removed before their disks had done with their clients.
    removed: Removed,
    /// Held by all who close a disk that was removed; by an end, alone.
    closing: tokio::sync::RwLock<()>,
    /// What was lost with disks that were removed since the end began.
    lost: Mutex<Losses>,
    /// Whether that has begun.
    ending: tokio::sync::watch::Sender<bool>,
    /// How long the clients of an export, and the last flush of a disk, have when it is removed.
    grace: OnceLock<Duration>,
    started: Instant,
}

/// What there is, in the order in which it came.
#[derive(Default)]
struct Inside {
    disks: Vec<YardDisk>,
    exports: Vec<YardExport>,
    addresses: Vec<Address>,
    /// Nothing comes any more.
    is_closed: bool,
}

/// A disk of the yard.
#[derive(Clone)]
struct YardDisk {
    name: String,
    plan: Arc<DiskPlan>,
    open: Arc<OpenDisk>,
    /// Tells its exports what becomes of it.
    _follower: Arc<dyn DiskListener>,
}

/// A disk that is being opened: either it comes to be there, or it is given up.
#[derive(Default)]
struct Opening(AtomicBool);

impl Opening {
    /// Says whether this came first.
    fn ends(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// An export of the yard.
#[derive(Clone)]
struct YardExport {
    plan: Arc<ExportPlan>,
    export: Arc<dyn Export>,
    /// It was opened so that its clients cannot change the disk, whatever becomes of that.
    only_reads: bool,
}

impl YardDisk {
    fn for_front(&self) -> FrontDisk {
        let (plan, open) = (Arc::clone(&self.plan), Arc::clone(&self.open));
        FrontDisk { name: self.name.clone(), plan, open }
    }
}

impl YardExport {
    fn is(&self, kind: &ExportKind, name: &str) -> bool {
        self.plan.kind == kind && self.plan.name == name
    }
}

/// Tells the exports of a disk what becomes of it.
struct Follower {
    disk: String,
    inside: Weak<RwLock<Inside>>,
    events: Arc<Events>,
}

impl DiskListener for Follower {
    fn event(&self, disk: &Disk, event: Event) {
        if event == Event::Faults {
            let (name, faults) = (self.disk.clone(), disk.faults().len());
            return self.events.push(events::Event::FaultsChanged { disk: name, faults });
        }
        if !matches!(event, Event::Resized { .. } | Event::ReadOnly(_) | Event::MediaChanged) {
            return;
        }
        let Some(inside) = self.inside.upgrade() else { return };
        let exports: Vec<_> = {
            let inside = inside.read();
            let of_disk = |export: &&YardExport| export.plan.disk == self.disk;
            inside.exports.iter().filter(of_disk).map(|it| Arc::clone(&it.export)).collect()
        };
        let now = State::of(disk);
        exports.iter().for_each(|export| export.follow(now));
        // The last block may be longer than the disk is.
        let (size, read_only) = (disk.size_bytes(), now.read_only);
        self.events.push(events::Event::DiskChanged { disk: self.disk.clone(), size, read_only });
    }
}

impl Yard {
    /// An empty one, on so many queue threads.
    ///
    /// # Errors
    /// Files of TLS that cannot be used, no room for threads.
    pub fn start(threads: usize, nbd: &NbdPlan) -> Result<Arc<Self>> {
        let tls = exports::nbd::tls_mode(nbd)?;
        let bell = Arc::new(Bell::default());
        let ring = Arc::clone(&bell);
        let on_park: OnPark = Arc::new(move || ring.ring());
        let threads = QueueThreads::start_with(threads, &on_park)?;
        let handles = threads.handles().to_vec();
        let layer = Arc::new(BlockLayer::new());
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        let server = exports::nbd::server(nbd, tls, &handles)?;
        server.set_default_export(nbd.default_export.clone());
        Ok(Arc::new(Self {
            maker: DiskMaker::new(&layer, &handles, Arc::clone(&clock)),
            layer,
            threads: Mutex::new(Some(threads)),
            handles,
            clock,
            watched: Arc::new(Watched::new(bell)),
            nbd: server,
            inside: Arc::default(),
            showing: Arc::default(),
            turns: Turns::default(),
            openings: Arc::new(Semaphore::new(MAX_OPENINGS)),
            events: Arc::default(),
            file: OnceLock::new(),
            saving: tokio::sync::Mutex::default(),
            removed: Removed::default(),
            closing: tokio::sync::RwLock::default(),
            lost: Mutex::default(),
            ending: tokio::sync::watch::Sender::new(false),
            grace: OnceLock::new(),
            started: Instant::now(),
        }))
    }

    /// The queue threads.
    #[must_use]
    pub fn threads(&self) -> &[Handle] {
        &self.handles
    }

    /// Its NBD server.
    #[must_use]
    pub fn nbd(&self) -> &Arc<Server> {
        &self.nbd
    }

    /// Its disks as the block layer has them.
    #[must_use]
    pub fn layer(&self) -> &BlockLayer {
        &self.layer
    }

    /// The open disk of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn disk(&self, name: &str) -> Result<Arc<OpenDisk>> {
        self.inside.read().disk(name).map(|disk| Arc::clone(&disk.open))
    }

    /// All that are open, by their names.
    pub(crate) fn open_disks(&self) -> Vec<(String, Arc<OpenDisk>)> {
        let inside = self.inside.read();
        inside.disks.iter().map(|disk| (disk.name.clone(), Arc::clone(&disk.open))).collect()
    }

    /// Whether its end has begun.
    pub(crate) fn is_ending(&self) -> bool {
        self.inside.read().is_closed
    }

    /// The open disk of that name, and what was said of it.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn open_and_plan(&self, name: &str) -> Result<(Arc<OpenDisk>, Arc<DiskPlan>)> {
        let inside = self.inside.read();
        inside.disk(name).map(|disk| (Arc::clone(&disk.open), Arc::clone(&disk.plan)))
    }

    /// What it serves, if that is not disks: nothing else comes.
    pub(crate) fn only(&self) -> Option<String> {
        let inside = self.inside.read();
        let is_alone = |it: &&YardExport| exports::ALONE.contains(&it.plan.kind);
        inside.exports.iter().find(is_alone).map(|it| it.plan.name.clone())
    }

    /// Changes can be saved to that file.
    pub fn keep_in(&self, file: PathBuf) {
        // It is one file from the beginning to the end.
        let _ = self.file.set(file);
    }

    /// What is removed has so long to end.
    pub fn give_grace(&self, grace: Duration) {
        // It is one from the beginning to the end.
        let _ = self.grace.set(grace);
    }

    fn grace(&self) -> Duration {
        self.grace.get().copied().unwrap_or(YardPlan::GRACE)
    }

    /// Makes a change, and has it in the file of the yard, too, if that is wanted. What the file cannot say is not changed. The
    /// file may be where nobody answers: that keeps only this change waiting.
    async fn changed<T>(
        &self,
        save: Option<Edit>,
        change: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let prepared = self.prepare(save).await?;
        let done = change.await?;
        self.save(prepared).await?;
        Ok(done)
    }

    /// The first half of [`Yard::changed`]: what is to be written once the change is made.
    async fn prepare(&self, save: Option<Edit>) -> Result<Option<Prepared>> {
        let Some(edit) = save else { return Ok(None) };
        let file = self.file.get().cloned().ok_or_else(|| {
            Error::usage("the daemon was not started from a yard.toml")
                .help("omit --save, or start the daemon with: blockyard up -f yard.toml")
        })?;
        elsewhere(move || config::save::prepare(&file, &Arc::new(edit))).await
    }

    async fn save(&self, prepared: Option<Prepared>) -> Result<()> {
        let Some(prepared) = prepared else { return Ok(()) };
        // It may have taken long. What others have saved meanwhile is in what is written.
        let _one_at_a_time = self.saving.lock().await;
        elsewhere(move || prepared.write()).await
    }

    /// What happens in it.
    #[must_use]
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// Where its NBD server listens.
    #[must_use]
    pub fn addresses(&self) -> Vec<Address> {
        self.inside.read().addresses.clone()
    }

    /// Opens a disk, under the name that its plan gives it.
    ///
    /// # Errors
    /// What keeps it from being opened, with what to do. There is one of that name.
    pub fn open_disk(&self, plan: &DiskPlan, flags: DiskFlags) -> Result<Arc<OpenDisk>> {
        self.open_disk_unless(plan, flags, &Opening::default())
    }

    /// The same, unless it is given up before it is there.
    fn open_disk_unless(
        &self,
        plan: &DiskPlan,
        flags: DiskFlags,
        opening: &Opening,
    ) -> Result<Arc<OpenDisk>> {
        let name = plan.options.name.clone().unwrap_or_else(|| plan.default_name(0));
        if self.inside.read().disk(&name).is_ok() {
            let what = format!("a disk named {name:?} already exists");
            return Err(Error::new(ErrorKind::Busy, what).help("choose another name: name=NAME"));
        }
        let mut plan = plan.clone();
        plan.options.name = Some(name.clone());
        let open = Arc::new(self.maker.another().open_with(&plan, flags)?);
        open.layers().for_each(|layer| self.watched.add(layer.disk()));
        let inside = Arc::downgrade(&self.inside);
        let events = Arc::clone(&self.events);
        let follower: Arc<dyn DiskListener> =
            Arc::new(Follower { disk: name.clone(), inside, events });
        open.disk().subscribe(&follower);
        let added = events::Event::DiskAdded { disk: name.clone() };
        let disk = YardDisk {
            name: name.clone(),
            plan: Arc::new(plan),
            open: Arc::clone(&open),
            _follower: follower,
        };
        let why_not = {
            let mut inside = self.inside.write();
            if inside.is_closed {
                Some(shutting_down())
            } else if !opening.ends() {
                Some(Error::failed("cancelled"))
            } else {
                inside.disks.push(disk);
                None
            }
        };
        if let Some(why_not) = why_not {
            // Nothing was written to it.
            let _ = open.close_now(&self.layer, Duration::ZERO);
            open.layers().for_each(|layer| self.watched.remove(layer.disk()));
            return Err(why_not);
        }
        self.events.push(added);
        show_disks(&self.inside, &self.showing);
        Ok(open)
    }

    /// Opens an export that has its place. Nobody is served before it is started.
    ///
    /// # Errors
    /// What keeps it from being opened. There is one of that name, or no such disk.
    pub fn open_export(&self, plan: ExportPlan, bound: Bound) -> Result<Arc<dyn Export>> {
        let disks: Vec<_> = {
            let inside = self.inside.read();
            if inside.export(plan.kind, &plan.name).is_some() {
                let what = format!("an export named {:?} already exists", plan.label());
                return Err(Error::new(ErrorKind::Busy, what).help("choose another name"));
            }
            if plan.kind.whole_yard {
                inside.disks.iter().map(YardDisk::for_front).collect()
            } else {
                vec![inside.disk(&plan.disk)?.for_front()]
            }
        };
        let is_read_only = |disk: &FrontDisk| disk.open.disk().is_read_only();
        let was_read_only = !plan.kind.whole_yard && disks.iter().all(is_read_only);
        let export =
            bound(&Front { plan: &plan, disks: &disks, threads: &self.handles, nbd: &self.nbd })?;
        let only_reads = plan.read_only() || was_read_only;
        let opened = YardExport { plan: Arc::new(plan), export: Arc::clone(&export), only_reads };
        {
            let mut inside = self.inside.write();
            if inside.is_closed {
                return Err(shutting_down());
            }
            inside.exports.push(opened);
        }
        // What has come or gone since it was opened.
        show_disks(&self.inside, &self.showing);
        Ok(export)
    }

    /// Starts all exports: nobody is served before, and everybody after.
    ///
    /// # Errors
    /// One cannot be started.
    pub fn serve(&self, listeners: Vec<Listener>) -> Result<()> {
        let exports: Vec<_> =
            self.inside.read().exports.iter().map(|it| Arc::clone(&it.export)).collect();
        exports.iter().try_for_each(|export| export.start())?;
        let addresses = listeners.iter().flat_map(Listener::addresses).collect();
        self.inside.write().addresses = addresses;
        listeners.into_iter().for_each(|listener| self.nbd.listen(listener));
        Ok(())
    }

    /// Sees to timeouts and long work of its disks, for ever.
    pub async fn keep(self: Arc<Self>) {
        let (watched, clock) = (Arc::clone(&self.watched), Arc::clone(&self.clock));
        drop(self);
        housekeeping::keep(watched, clock).await;
    }

    /// Waits until there is nobody left who could be served: front-ends that were passed to this process are gone, what was
    /// mounted is unmounted, and nothing listens.
    pub async fn deserted(&self) {
        let mut gone: Vec<Arc<dyn Export>> = Vec::new();
        loop {
            let exports = self.with_clients();
            let is_gone = |export: &Arc<dyn Export>| gone.iter().any(|it| Arc::ptr_eq(it, export));
            let Some(export) = exports.iter().find(|export| !is_gone(export)) else { break };
            match export.deserted() {
                Some(end) => end.await,
                None => std::future::pending().await,
            }
            // One that was removed here has not been deserted.
            if self.with_clients().iter().any(|it| Arc::ptr_eq(it, export)) {
                gone.push(Arc::clone(export));
            }
        }
        if gone.is_empty() {
            std::future::pending::<()>().await;
        }
    }

    /// The exports that anybody can come by: where nothing listens, nobody does by NBD.
    fn with_clients(&self) -> Vec<Arc<dyn Export>> {
        let inside = self.inside.read();
        let listens = !inside.addresses.is_empty();
        let counts = |it: &&YardExport| listens || it.plan.kind != &exports::nbd::KIND;
        inside.exports.iter().filter(counts).map(|it| Arc::clone(&it.export)).collect()
    }

    /// Ends all of it, once changes under way are over, for which they have `grace`: within `grace` from then on, half of which
    /// is for clients and the rest for servers of disks, each [`LEAST`] at least. Only disks of this machine take as long as
    /// they take.
    pub(crate) async fn end(&self, grace: Duration) -> Losses {
        self.inside.write().is_closed = true;
        self.ending.send_replace(true);
        // What is being closed has its queue threads until it is.
        let _changing = tokio::time::timeout(grace, self.turns.over()).await;
        // As with those below, a server has its limit, and disks of this machine take as long as they take.
        drop(self.closing.write().await);
        // What those took is not taken from servers and clients that have done nothing wrong.
        let end = Instant::now() + grace;
        let left = || end.saturating_duration_since(Instant::now());
        let mut losses = std::mem::take(&mut *self.lost.lock());
        let (disks, exports) = {
            let mut inside = self.inside.write();
            (std::mem::take(&mut inside.disks), std::mem::take(&mut inside.exports))
        };
        // What they have asked for is answered, whatever their limits.
        let layers = disks.iter().flat_map(|disk| disk.open.layers());
        let no_waits: Vec<_> = layers
            .map(|layer| {
                layer.disk().end_faults();
                layer.disk().limit_waits(Duration::ZERO)
            })
            .collect();
        exports.iter().for_each(|it| it.export.stop());
        let flushing = FirstFlushes::begin(&disks);
        // They end together: nobody's clients take the time of another's, nor that of the disks.
        let half = (grace / 2).max(LEAST);
        let mut ending = JoinSet::new();
        for it in exports {
            ending.spawn(async move { (it.plan.label(), it.export.end(half, half).await) });
        }
        let (_, ended) = tokio::join!(self.nbd.shutdown(half), ending.join_all());
        for (export, ended) in ended {
            // What a disk still has of clients is seen to with the disk.
            if let Err(err) = ended {
                tracing::error!(export, error = %err, "cannot end the export");
                losses.note_export(&export, &err);
            }
        }
        let limit = left().max(LEAST);
        let mut closing = JoinSet::new();
        for disk in disks {
            let layer = Arc::clone(&self.layer);
            closing.spawn(async move { disk.open.close(&layer, limit).await });
        }
        closing.join_all().await.into_iter().for_each(|lost| losses.extend(lost));
        drop(no_waits);
        flushing.note(&mut losses);
        // All that their disks had of them is answered.
        self.nbd.finish(LEAST).await;
        let threads = self.threads.lock().take();
        let ended = tokio::task::spawn_blocking(move || threads.map(QueueThreads::shutdown));
        if let Err(err) = ended.await {
            tracing::error!(error = %err, "a queue thread failed");
        }
        losses
    }
}

/// Does what may wait, for a file that does not answer, say, where that keeps nobody from anything else.
async fn elsewhere<T: Send + 'static>(
    job: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(job).await;
    done.map_err(|err| Error::failed("internal error in the daemon").caused_by(err))?
}

fn shutting_down() -> Error {
    Error::failed("the daemon is shutting down")
}

/// Has the exports of the whole yard show the disks that there are now, one call after the other: the last one knows of all.
fn show_disks(inside: &RwLock<Inside>, showing: &Mutex<()>) {
    let _one_at_a_time = showing.lock();
    let (disks, exports) = {
        let inside = inside.read();
        let exports: Vec<_> = inside.of_whole_yard().map(|it| Arc::clone(&it.export)).collect();
        if exports.is_empty() {
            return;
        }
        (inside.disks.iter().map(YardDisk::for_front).collect::<Vec<_>>(), exports)
    };
    exports.iter().for_each(|export| export.show(&disks));
}

impl Inside {
    fn export(&self, kind: &ExportKind, name: &str) -> Option<&YardExport> {
        self.exports.iter().find(|export| export.is(kind, name))
    }

    fn take_export(&mut self, kind: &ExportKind, name: &str) -> Option<YardExport> {
        let at = self.exports.iter().position(|export| export.is(kind, name))?;
        Some(self.exports.remove(at))
    }

    fn of_whole_yard(&self) -> impl Iterator<Item = &YardExport> {
        self.exports.iter().filter(|export| export.plan.kind.whole_yard)
    }

    fn disk(&self, name: &str) -> Result<&YardDisk> {
        self.disks.iter().find(|disk| disk.name == name).ok_or_else(|| {
            Error::failed(format!("no disk named {name:?}"))
                .help("list disks and exports: blockyard list")
        })
    }
}
