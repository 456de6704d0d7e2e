//! The daemon of a disk that is attached: it opens the disk, gives it to the kernel, and serves it until it is told
//! to end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockyard_blkmq::{BlockLayer, Clock, Disk, DiskFlags, MonotonicClock, OpenMode};
use blockyard_export_nbd as nbd;
use tokio::sync::{mpsc, oneshot};

use super::kernel::{Attachment, Below, new_mark};
use super::record::Record;
use super::{Wish, launch};
use crate::control::report::DeviceReport;
use crate::control::{self, Answer, report};
use crate::daemon::signals::Signals;
use crate::disks::DiskMaker;
use crate::error::{Error, ErrorKind, Result};
use crate::housekeeping::{self, Bell};
use crate::plan::{ExportPlan, YardPlan};
use crate::queue_threads::{OnPark, QueueThreads};
use crate::remote::Remote;
use crate::term;

/// How long what a killed daemon has of its disk may take to be given up by the system.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);
/// The name that the disk goes by.
const EXPORT: &str = "attached";

/// What a daemon is to do.
pub enum Order {
    /// Attach a disk anew.
    Attach(Wish),
    /// Go on where another has died.
    Recover(Box<Record>),
}

impl Order {
    fn wish(&self) -> &Wish {
        match self {
            Self::Attach(wish) => wish,
            Self::Recover(record) => &record.wish,
        }
    }
}

/// Does it, prints the path of the kernel's disk once I/O works, and serves until it is detached or a signal says
/// to stop. With a `log`, as a daemon in the background whose output goes there.
///
/// # Errors
/// What keeps it from being attached, with what to do.
pub fn run(order: Order, log: Option<PathBuf>) -> Result<u8> {
    let background = log.is_some();
    if background {
        launch::leave_the_starter();
    }
    crate::daemon::block_on(async move {
        let attach = move || Server::open(&order)?.attach(&order, log);
        let attached = tokio::task::spawn_blocking(attach)
            .await
            .map_err(|err| Error::failed("attaching failed").caused_by(err))??;
        attached.serve(background).await
    })
}

/// A disk of ours, and what serves it.
struct Server {
    plan: YardPlan,
    layer: Arc<BlockLayer>,
    disk: Arc<Disk>,
    remotes: Vec<Remote>,
    threads: QueueThreads,
    nbd: Arc<nbd::Server>,
    clock: Arc<dyn Clock>,
    bell: Arc<Bell>,
}

impl Server {
    fn open(order: &Order) -> Result<Self> {
        let wish = order.wish();
        let mut disk = crate::commands::disk_uri(&wish.uri)?;
        disk.options.read_only |= wish.read_only;
        let mut plan = YardPlan::new(vec![disk])?;
        plan.threads = wish.threads.map_or(plan.threads, usize::from);
        let mut export = ExportPlan::new(0, EXPORT);
        export.read_only = wish.read_only;
        plan.exports.push(export);
        let bell = Arc::new(Bell::default());
        let ring = Arc::clone(&bell);
        let on_park: OnPark = Arc::new(move || ring.ring());
        let threads = QueueThreads::start_with(plan.threads, &on_park)?;
        let layer = Arc::new(BlockLayer::new());
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        // The kernel looks for partitions itself.
        let mut maker = DiskMaker::new(&layer, threads.handles(), Arc::clone(&clock))
            .with_flags(DiskFlags::NO_PART_SCAN);
        let disk = match order {
            Order::Attach(_) => maker.make(&plan.disks[0])?,
            Order::Recover(_) => patiently(|| maker.make(&plan.disks[0]))?,
        };
        let remotes = maker.into_remotes();
        let mut config = crate::daemon::nbd_config(&plan, std::slice::from_ref(&disk))?;
        for export in &mut config.exports {
            // The kernel knows blocks only.
            export.minimum_block_size = Some(export.bdev.limits().logical_block_size.bytes());
        }
        let nbd = nbd::Server::new(config, threads.handles().to_vec())
            .map_err(crate::daemon::nbd_error)?;
        Ok(Self { plan, layer, disk, remotes, threads, nbd, clock, bell })
    }

    fn attach(self, order: &Order, log: Option<PathBuf>) -> Result<Attached> {
        let mode = if self.disk.is_read_only() { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
        let bdev = self
            .disk
            .open(None, mode)
            .map_err(|err| Error::failed("the disk cannot be opened").caused_by(err))?;
        let below = Below {
            bdev: Arc::new(bdev),
            threads: self.threads.handles(),
            server: &self.nbd,
            export: EXPORT,
        };
        let size = self.disk.capacity().bytes();
        let failed = |err: Error| {
            Error::failed(format!("cannot attach {}", order.wish().uri)).caused_by(err)
        };
        let (attachment, mark) = match order {
            Order::Attach(wish) => {
                let mark = new_mark();
                (Attachment::attach(wish, mark, &below).map_err(failed)?, mark)
            }
            Order::Recover(record) => {
                if size < record.size {
                    let what = format!(
                        "{} has {size} bytes; {} has {}: it is not the disk that was attached",
                        record.wish.uri,
                        record.path(),
                        record.size
                    );
                    return Err(Error::failed(what));
                }
                (Attachment::take_over(record, &below).map_err(failed)?, record.mark)
            }
        };
        let path = attachment.path();
        let name = super::device_name(&path).to_owned();
        let wish = order.wish().clone();
        let mut record = Record::new(name, attachment.via(), attachment.number(), mark, wish, size);
        record.log = log;
        if let Order::Recover(before) = order {
            record.directory.clone_from(&before.directory);
        }
        let attached = Attached { server: self, attachment: Some(attachment), record };
        if let Err(err) = attached.record.save() {
            attached.give_up();
            return Err(err);
        }
        if let Order::Recover(before) = order {
            before.forget_log();
        }
        Ok(attached)
    }
}

/// Tries again while somebody else has it.
fn patiently<T>(mut make: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match make() {
            Err(err) if err.kind() == ErrorKind::Busy && Instant::now() < end => {
                std::thread::sleep(POLL);
            }
            made => return made,
        }
    }
}

/// A disk that the kernel has.
struct Attached {
    server: Server,
    /// None once it is detached.
    attachment: Option<Attachment>,
    record: Record,
}

impl Attached {
    /// Takes it back at once: nobody knows of it yet.
    fn give_up(mut self) {
        let runtime = self.server.threads.handles()[0].clone();
        if let Some(attachment) = self.attachment.take()
            && let Err(err) = attachment.remove(&runtime)
        {
            tracing::error!(%err, "it stays attached");
        }
    }

    async fn serve(mut self, background: bool) -> Result<u8> {
        let mut signals = Signals::new()?;
        let (ask, mut asked) = mpsc::channel(1);
        let yard = Arc::new(Yard::new(&self, ask));
        let control = match control::Server::bind(yard) {
            Ok(control) => control,
            Err(err) => {
                // Nobody could ever detach it.
                let _ = self.detach().await;
                return Err(err);
            }
        };
        let (disks, clock) = (vec![Arc::clone(&self.server.disk)], Arc::clone(&self.server.clock));
        let bell = Arc::clone(&self.server.bell);
        let housekeeper = tokio::spawn(housekeeping::keep(disks, clock, bell));
        let control = tokio::spawn(control.serve());
        term::say(self.record.path())?;
        if background {
            launch::let_go()
                .map_err(|err| Error::failed("cannot leave the starter").caused_by(err))?;
        }
        crate::daemon::notify(&[sd_notify::NotifyState::Ready]);
        let (tell, mut told) = mpsc::channel(1);
        let gone = loop {
            tokio::select! {
                () = signals.next() => ask_to_detach(self.record.path(), tell.clone()),
                Some(answer) = asked.recv() => {
                    let result = self.detach().await;
                    let detached = result.is_ok();
                    // Who asked may have left.
                    let _ = answer.send(result);
                    if detached {
                        break true;
                    }
                }
                Some(()) = told.recv() => {
                    if self.attachment.as_ref().is_some_and(Attachment::is_recoverable) {
                        term::tell(format_args!("it waits for: blockyard recover {}", self.record.path()));
                        break false;
                    }
                }
            }
        };
        crate::daemon::notify(&[sd_notify::NotifyState::Stopping]);
        housekeeper.abort();
        if gone {
            self.end().await;
        } else {
            // Taking it down in order would wait for the kernel's requests. All of them are asked again.
            std::mem::forget(self);
        }
        control.abort();
        // Cancelled: that removes its socket.
        let _ = control.await;
        Ok(0)
    }

    /// Takes the disk from the kernel. Whoever asks for it has seen to it that nobody uses it, and that all is
    /// flushed: for us to do that would be to wait for ourselves.
    async fn detach(&mut self) -> Result<()> {
        let Some(attachment) = self.attachment.take() else { return Ok(()) };
        let runtime = self.server.threads.handles()[0].clone();
        tokio::task::spawn_blocking(move || attachment.remove(&runtime))
            .await
            .map_err(|err| Error::failed("detaching failed").caused_by(err))??;
        self.record.forget();
        Ok(())
    }

    async fn end(self) {
        let grace = self.server.plan.grace;
        self.server.nbd.shutdown(grace).await;
        for remote in &self.server.remotes {
            remote.leave(grace).await;
        }
        let ended = tokio::task::spawn_blocking(move || {
            self.server.layer.del_disk(&self.server.disk);
            self.server.threads.shutdown();
        });
        // A panic has been reported where it happened.
        let _ = ended.await;
    }
}

/// Has another process ask us to detach, as a user would: it sees to it that nobody uses the disk, flushes it, and
/// asks. If it cannot, that is told.
fn ask_to_detach(path: String, told: mpsc::Sender<()>) {
    tokio::task::spawn_blocking(move || {
        let asked = std::env::current_exe().and_then(|program| {
            std::process::Command::new(program).arg("detach").arg(path).status()
        });
        match asked {
            Ok(status) if status.success() => return,
            // It has said why not.
            Ok(_) => {}
            Err(err) => tracing::error!(%err, "cannot ask for the end"),
        }
        // Nobody listens once the end has come.
        let _ = told.blocking_send(());
    });
}

type Reply = oneshot::Sender<Result<()>>;

/// The part of the daemon that answers questions.
struct Yard {
    plan: YardPlan,
    layer: Arc<BlockLayer>,
    disks: Vec<Arc<Disk>>,
    nbd: Arc<nbd::Server>,
    device: DeviceReport,
    started: Instant,
    ask: mpsc::Sender<Reply>,
}

impl Yard {
    fn new(attached: &Attached, ask: mpsc::Sender<Reply>) -> Self {
        let (server, record) = (&attached.server, &attached.record);
        Self {
            plan: server.plan.clone(),
            layer: Arc::clone(&server.layer),
            disks: vec![Arc::clone(&server.disk)],
            nbd: Arc::clone(&server.nbd),
            device: DeviceReport {
                path: record.path(),
                via: record.via.name().into(),
                uri: record.wish.uri.clone(),
                recoverable: attached.attachment.as_ref().is_some_and(Attachment::is_recoverable),
            },
            started: Instant::now(),
            ask,
        }
    }
}

impl control::Answers for Yard {
    fn report(&self) -> report::Daemon {
        let mut report = report::Daemon::of(&self.plan, &self.disks, &self.nbd, &[], self.started);
        report.devices.push(self.device.clone());
        report
    }

    fn diskstats(&self) -> String {
        self.layer.proc_diskstats()
    }

    fn partitions(&self) -> String {
        self.layer.proc_partitions()
    }

    fn disks(&self) -> &[Arc<Disk>] {
        &self.disks
    }

    async fn detach(&self) -> Answer {
        let (tell, told) = oneshot::channel();
        if self.ask.send(tell).await.is_err() {
            return Answer::Done;
        }
        match told.await {
            Ok(result) => result.into(),
            Err(_) => Answer::Error("the daemon is ending".into()),
        }
    }
}
