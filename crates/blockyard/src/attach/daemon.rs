//! The daemon of a disk that is attached: it opens the disk, gives it to the kernel, and serves it until it is told
//! to end.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blockyard_blkmq::{Disk, DiskFlags, OpenMode};
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::flushes::{inherit_failed_flushes, note_failed_flushes};
use super::kernel::{Attachment, Below, new_mark};
use super::record::Record;
use super::store::{Begun, Held, Store, forget_log};
use super::{Wish, helper, launch, usage};
use crate::api::{self, Attached as Device, Reply};
use crate::daemon::signals::Signals;
use crate::disks::identity::DiskIdentity;
use crate::disks::{DiskPlan, Value};
use crate::error::{Error, ErrorKind, Result};
use crate::exports::{self, ExportPlan};
use crate::text::term;
use crate::yard::Yard;
use crate::yard::follow::{Follow, State};
use crate::yard::plan::YardPlan;
use crate::yard::report::DeviceReport;

/// How long what a killed daemon has of its disk may take to be given up by the system.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);
/// How long the kernel may leave a message half-way: it hangs up by itself, and what it has asked may not be given up before
/// that, or it asks again on another connection while the first is still with the disk.
const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How often a daemon that is to end looks whether its device is still in use, at first and in the end.
const LOOK: Duration = Duration::from_secs(1);
const LONGEST_LOOK: Duration = Duration::from_secs(60);
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
    // Before there are other threads: they inherit it.
    crate::daemon::enter_write_back_path();
    crate::daemon::block_on(async move {
        let (server, order) = blocking(move || Ok((Server::open(&order)?, order))).await?;
        // From here on there is a device that an end by a signal would leave behind.
        let signals = Signals::new()?;
        let hang_up = signal(SignalKind::hangup())
            .map_err(|err| Error::failed("cannot catch signals").caused_by(err))?;
        let attached = blocking(move || server.attach(order, log)).await?;
        attached.serve(signals, hang_up, background).await
    })
}

async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(job).await;
    done.map_err(|err| Error::failed("attaching failed").caused_by(err))?
}

/// A disk of ours, and what serves it.
struct Server {
    yard: Arc<Yard>,
    disk: Arc<Disk>,
    identity: DiskIdentity,
    grace: Duration,
    fence: Option<Duration>,
    /// The record of a device that is recovered: nobody else does.
    held: Option<Held>,
}

impl Server {
    fn open(order: &Order) -> Result<Self> {
        let wish = order.wish();
        let (mut disk, held) = match order {
            Order::Attach(_) => (crate::commands::disk_uri(&wish.uri)?, None),
            Order::Recover(record) => {
                let held = Store::open()?.claim(record)?;
                (to_recover(record)?, Some(held))
            }
        };
        disk.options.read_only |= wish.read_only;
        let mut plan = YardPlan::new(vec![disk])?;
        plan.threads = wish.threads.map_or(plan.threads, usize::from);
        plan.nbd.limits.stall_timeout = NEVER;
        let yard = Yard::start(plan.threads, &plan.nbd)?;
        // The kernel looks for partitions itself.
        let make = || yard.open_disk(&plan.disks[0], DiskFlags::NO_PART_SCAN);
        let open = match order {
            Order::Attach(_) => make()?,
            Order::Recover(_) => patiently(make)?,
        };
        // It is there now: a file may have been made, or have come in the place of the one that was looked at before.
        let identity = DiskIdentity::of(&plan.disks[0])?;
        if let Order::Recover(record) = order {
            check_identity(record, &identity)?;
            open.hold_writes();
        }
        // The kernel knows blocks only.
        let export = ExportPlan::new(&exports::nbd::KIND, plan.disk_name(0), EXPORT)
            .with("read_only", Value::Flag(wish.read_only))
            .with("whole_blocks", Value::Flag(true));
        let bound = (export.kind.bind)(&export)?;
        yard.open_export(export, bound)?.start()?;
        let disk = Arc::clone(open.disk());
        Ok(Self { yard, disk, identity, grace: plan.grace, fence: plan.disks[0].fence(), held })
    }

    fn attach(self, order: Order, log: Option<PathBuf>) -> Result<Attached> {
        let store = Store::open()?;
        let mode = if self.disk.is_read_only() { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
        let bdev = self
            .disk
            .open(None, mode)
            .map_err(|err| Error::failed("cannot open the disk").caused_by(err))?;
        let below = Below {
            bdev: Arc::new(bdev),
            threads: self.yard.threads(),
            server: self.yard.nbd(),
            export: EXPORT,
            outlives_us: !self.identity.is_volatile(),
            fence: self.fence,
        };
        let size = self.disk.size_bytes();
        let failed =
            |uri: &str, err: Error| Error::failed(format!("cannot attach {uri}")).caused_by(err);
        let identity = self.identity.clone();
        let (attachment, mut record, begun) = match &order {
            Order::Attach(wish) => {
                let mark = new_mark();
                let begun = store.begin(mark)?;
                note_failed_flushes(&self.disk, store.failed_flush_of(mark));
                let attachment =
                    Attachment::attach(wish, mark, &below).map_err(|err| failed(&wish.uri, err))?;
                let (via, number) = (attachment.via(), attachment.number());
                let record = Record::new(via, number, mark, wish.clone(), identity);
                (attachment, record, Some(begun))
            }
            Order::Recover(before) => {
                check_size(before, size)?;
                inherit_failed_flushes(&self.disk, store.failed_flush_of(before.mark), before);
                let attachment = Attachment::take_over(before, &below)
                    .map_err(|err| failed(&before.wish.uri, err))?;
                let mut record = Record::clone(before);
                (record.pid, record.identity) = (std::process::id(), identity);
                (attachment, record, None)
            }
        };
        (record.size, record.log) = (size, log);
        let recovered = match order {
            Order::Attach(_) => None,
            Order::Recover(before) => Some(*before),
        };
        Ok(Attached { server: self, attachment: Some(attachment), record, store, begun, recovered })
    }
}

/// What is opened to go on with a device. It is never made anew, and has to be the disk that it was.
fn to_recover(record: &Record) -> Result<DiskPlan> {
    let (path, uri) = (record.path(), &record.wish.uri);
    if record.identity.is_volatile() {
        let what =
            format!("the contents of {uri} were in the memory of the daemon, which has died");
        return Err(Error::failed(format!("cannot recover {path}"))
            .caused_by(Error::failed(what).help(format!("run: blockyard detach --force {path}"))));
    }
    // Paths that are not absolute start where they did. If that is no more, absolute ones are found all the same.
    if let Err(err) = std::env::set_current_dir(&record.directory) {
        tracing::warn!(directory = %record.directory.display(), %err, "cannot go there");
    }
    let mut plan = crate::commands::disk_uri(uri)?;
    plan.never_make();
    let is_file = plan.source.file().is_some();
    // What was set while it ran holds, and not what it was attached with. A server says by itself how large an export is.
    if plan.options.size.is_some() || (is_file && record.resized) {
        plan.options.size = Some(record.size);
    }
    check_identity(record, &DiskIdentity::of(&plan)?)?;
    Ok(plan)
}

/// Whether what is found in the place of a disk is still that one.
///
/// # Errors
/// What is there instead.
pub fn check_identity(record: &Record, found: &DiskIdentity) -> Result<()> {
    if record.identity.same_disk(found) {
        return Ok(());
    }
    let (path, uri) = (record.path(), &record.wish.uri);
    let what = if found.is_absent() {
        format!("{uri} is missing")
    } else {
        format!("{uri} is another disk: {found}, but {} was attached", record.identity)
    };
    Err(Error::failed(format!("cannot recover {path}")).caused_by(
        Error::failed(what)
            .help("restore the disk (is its file system mounted?), and recover again"),
    ))
}

/// A disk that was attached has not become smaller; both are bytes, whatever its last block is padded with.
fn check_size(record: &Record, size: u64) -> Result<()> {
    if size >= record.size {
        return Ok(());
    }
    let what = format!(
        "{} has {size} bytes; {} has {}: not the disk that was attached",
        record.wish.uri,
        record.path(),
        record.size
    );
    Err(Error::failed(what))
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
    store: Store,
    /// Until it is on record.
    begun: Option<Begun>,
    /// What was on record before.
    recovered: Option<Record>,
}

/// How a daemon comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The kernel has nothing of it any more.
    Detached,
    /// The kernel waits for the next daemon.
    HandedOver,
}

impl Attached {
    /// Listens to who asks, and puts it on record: in this order, as who finds it on record asks.
    async fn announce(&mut self, ask: mpsc::Sender<Reply>) -> Result<api::Server> {
        let control = api::Server::bind(Arc::clone(&self.server.yard), Some(self.device(ask)))?;
        self.save().await?;
        self.begun = None;
        if let Some(before) = self.recovered.take() {
            forget_log(&before);
        }
        Ok(control)
    }

    async fn save(&mut self) -> Result<()> {
        let (store, record) = (self.store.clone(), self.record.clone());
        let held = blocking(move || store.save(&record)).await?;
        self.server.held = Some(held);
        Ok(())
    }

    fn device(&self, detach: mpsc::Sender<Reply>) -> Device {
        let record = &self.record;
        Device {
            device: DeviceReport {
                path: record.path(),
                via: record.via.name().into(),
                uri: record.wish.uri.clone(),
                recoverable: self.attachment.as_ref().is_some_and(Attachment::is_recoverable),
            },
            mark: record.mark,
            detach,
        }
    }

    async fn serve(mut self, signals: Signals, hang_up: Signal, background: bool) -> Result<u8> {
        let (ask, asked) = mpsc::channel(1);
        // Before anybody can ask for a change.
        let mut follow = Follow::of(&self.server.disk);
        let state = follow.now();
        self.record.size = state.size;
        let control = match self.announce(ask).await {
            Ok(control) => control,
            Err(err) => {
                // Nobody could ever detach it; what was recovered stays for the next one.
                if self.recovered.is_none() {
                    let _ = self.detach().await;
                } else {
                    std::mem::forget(self);
                }
                return Err(err);
            }
        };
        let housekeeper = tokio::spawn(Arc::clone(&self.server.yard).keep());
        let control = tokio::spawn(control.serve());
        tell_ready(
            || term::say(self.record.path()),
            || if background { launch::let_go() } else { Ok(()) },
        );
        crate::daemon::notify(&[sd_notify::NotifyState::Ready]);
        let end = self.until_the_end(signals, hang_up, asked, follow, state).await;
        crate::daemon::notify(&[sd_notify::NotifyState::Stopping]);
        housekeeper.abort();
        let failed_flush = Store::open()?.failed_flush_of(self.record.mark);
        let ended = match end {
            End::Detached => {
                let ended = crate::daemon::extending(self.end()).await;
                // The last flush may have failed, too, and nobody goes on with the device.
                failed_flush.forget();
                ended
            }
            // Taking it down in order would wait for the kernel's requests. All of them are asked again.
            End::HandedOver => {
                std::mem::forget(self);
                Ok(())
            }
        };
        control.abort();
        // Cancelled: that removes its socket.
        let _ = control.await;
        ended.map(|()| 0)
    }

    async fn until_the_end(
        &mut self,
        mut signals: Signals,
        mut hang_up: Signal,
        mut asked: mpsc::Receiver<Reply>,
        mut follow: Follow,
        mut state: State,
    ) -> End {
        let (tell, mut refused) = mpsc::channel(1);
        let mut leaving = false;
        let mut telling: Option<JoinHandle<()>> = None;
        loop {
            tokio::select! {
                () = signals.next() => {
                    if !std::mem::replace(&mut leaving, true) {
                        leave(self.record.path(), tell.clone());
                    } else if let Err(err) = usage::check_unused(&self.record.path(), self.record.pid) {
                        tell_that_it_stays(&err);
                    }
                }
                // Whoever has started us is gone; who uses the disk is not.
                _ = hang_up.recv() => tracing::info!("SIGHUP ignored"),
                Some(answer) = asked.recv() => {
                    let result = self.detach().await;
                    let detached = result.is_ok();
                    // Who asked may have left.
                    let _ = answer.send(result);
                    if detached {
                        return End::Detached;
                    }
                }
                () = gone(&mut self.attachment) => {
                    let path = self.record.path();
                    term::tell(format_args!("{path} was removed by another process: its disk is flushed and closed"));
                    if let Err(err) = self.detach().await {
                        tracing::warn!(%err, "cannot remove the rest of the device");
                    }
                    return End::Detached;
                }
                Some(()) = refused.recv() => {
                    let recoverable = self.attachment.as_ref().is_some_and(Attachment::is_recoverable);
                    if recoverable && self.record.wish.hand_over {
                        term::tell(format_args!("it waits for: blockyard recover {}", self.record.path()));
                        return End::HandedOver;
                    }
                    term::tell("serving it until it is unused");
                }
                now = follow.changed() => {
                    let before = std::mem::replace(&mut state, now);
                    self.record.note(before, now);
                    if let Err(err) = self.save().await {
                        tracing::warn!(%err, "cannot record its size and whether it is read-only");
                    }
                    let read_only = now.read_only;
                    if before.read_only == read_only {
                        continue;
                    }
                    let (path, before) = (self.record.path(), telling.take());
                    telling = Some(std::thread::spawn(move || {
                        // One after the other. One that has panicked has said so.
                        let _ = before.map(JoinHandle::join);
                        helper::set_read_only(&path, read_only);
                    }));
                }
            }
        }
    }

    /// Takes the disk from the kernel. Whoever asks for it has seen to it that nobody uses it, and that all is
    /// flushed: for us to do that would be to wait for ourselves.
    async fn detach(&mut self) -> Result<()> {
        let runtime = self.server.yard.threads()[0].clone();
        take_away(&mut self.attachment, move |attachment| attachment.remove(&runtime)).await?;
        self.begun = None;
        if let Some(held) = self.server.held.take() {
            let (store, record) = (self.store.clone(), self.record.clone());
            if let Err(err) = blocking(move || store.forget(&record, &held)).await {
                // The device is gone: whoever looks next takes it off.
                tracing::warn!(%err, "cannot remove the attach record");
            }
        }
        Ok(())
    }

    async fn end(self) -> Result<()> {
        self.server.yard.end(self.server.grace).await.into_result()
    }
}

/// Tells whoever has started us, and lets go of it. The kernel has its disk by now, and it is on record: what fails here is no
/// reason to leave that alone.
fn tell_ready(say: impl FnOnce() -> Result<()>, let_go: impl FnOnce() -> io::Result<()>) {
    if let Err(err) = say() {
        tracing::warn!(%err, "cannot report that the disk is attached");
    }
    if let Err(err) = let_go() {
        tracing::warn!(%err, "cannot detach from the starting process");
    }
}

/// Waits until somebody else has taken the device away.
async fn gone(attachment: &mut Option<Attachment>) {
    match attachment {
        Some(attachment) => attachment.gone().await,
        None => std::future::pending().await,
    }
}

/// Removes what there is; it stays where it is if that fails.
async fn take_away<T: Send + 'static>(
    kept: &mut Option<T>,
    remove: impl FnOnce(&mut T) -> Result<()> + Send + 'static,
) -> Result<()> {
    let Some(mut taken) = kept.take() else { return Ok(()) };
    let (left, removed) = blocking(move || {
        let removed = remove(&mut taken);
        Ok((removed.is_err().then_some(taken), removed))
    })
    .await?;
    *kept = left;
    removed
}

/// Has the device detached, as a user would: now, or as soon as nobody uses it. What keeps it is told each time, and `refused`
/// hears of it.
fn leave(path: String, refused: mpsc::Sender<()>) {
    let own = std::process::id();
    let runtime = Handle::current();
    std::thread::spawn(move || {
        let mut pause = LOOK;
        loop {
            match while_extending(&runtime, || helper::detach(&path)) {
                Ok(status) if status.success() => return,
                // It has said why not.
                Ok(_) => {}
                Err(err) => tracing::error!(%err, "cannot start `blockyard detach`"),
            }
            if refused.blocking_send(()).is_err() {
                return;
            }
            std::thread::sleep(pause);
            while usage::check_unused(&path, own).is_err() {
                std::thread::sleep(LOOK);
            }
            pause = (pause * 2).min(LONGEST_LOOK);
        }
    });
}

/// What the kernel has cached for the device is written before it can go: the service manager is asked for more time while that
/// goes on. It is not told that we stop (`STOPPING=1`): a device that is in use stays, and systemd kills who has said so.
fn while_extending<T>(runtime: &Handle, job: impl FnOnce() -> T) -> T {
    let (_done, is_done) = oneshot::channel::<()>();
    runtime.spawn(crate::daemon::extending(is_done));
    job()
}

fn tell_that_it_stays(err: &Error) {
    term::tell(format_args!("{err}; serving it until it is unused"));
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::process::{Command, Stdio};

    use blockyard_blkmq::{BlockLayer, Clock, MonotonicClock};

    use super::super::record::tests::record;
    use super::*;
    use crate::disks::DiskMaker;
    use crate::yard::queue_threads::QueueThreads;

    /// Its output may be a full disk.
    #[test]
    fn a_daemon_that_cannot_say_that_it_is_ready_lets_go_and_serves_on() {
        let mut has_let_go = false;
        let let_go = || {
            has_let_go = true;
            Err(io::ErrorKind::NotFound.into())
        };
        tell_ready(|| Err(Error::failed("no space left on device")), let_go);
        assert!(has_let_go);
    }

    #[tokio::test]
    async fn what_cannot_be_removed_is_there_for_the_next_try() {
        let mut kept = Some(0);
        let refuse = |tries: &mut i32| {
            *tries += 1;
            Err(Error::failed("the driver cannot be opened"))
        };
        for tries in 1..=2 {
            take_away(&mut kept, refuse).await.unwrap_err();
            assert_eq!(kept, Some(tries));
        }
        take_away(&mut kept, |_| Ok(())).await.unwrap();
        assert_eq!(kept, None);
        take_away(&mut kept, refuse).await.unwrap();
    }

    #[test]
    fn what_is_recovered_has_the_size_that_was_set_while_it_ran() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4 << 20).unwrap();
        let path = file.path().display();
        let state = |size| State { read_only: false, size };
        let recovered = |record: &Record| to_recover(record).unwrap().options.size;

        let mut part = record(0, 7, &format!("file:{path}?size=1M"));
        part.size = 1 << 20;
        assert_eq!(recovered(&part), Some(1 << 20));
        part.note(state(1 << 20), state(2 << 20));
        assert_eq!(recovered(&part), Some(2 << 20));

        let mut whole = record(0, 7, &path.to_string());
        whole.size = 4 << 20;
        assert_eq!(recovered(&whole), None, "it may have grown meanwhile");
        whole.note(state(4 << 20), State { read_only: true, size: 3 << 20 });
        assert_eq!(recovered(&whole), Some(3 << 20));
        assert!(whole.read_only);
    }

    /// It runs once more by itself, as a service does.
    #[test]
    fn more_time_is_asked_for_while_what_is_to_go_is_flushed() {
        const NAME: &str = "more_time_is_asked_for_while_what_is_to_go_is_flushed";
        if std::env::var_os("NOTIFY_SOCKET").is_some() {
            let service = crate::daemon::block_on(async {
                let runtime = Handle::current();
                blocking(move || {
                    // Until the manager has heard enough.
                    Ok(while_extending(&runtime, || io::copy(&mut io::stdin(), &mut io::sink())))
                })
                .await
            });
            service.unwrap().unwrap();
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut service = Command::new(std::env::current_exe().unwrap());
        service.args([&format!("attach::daemon::tests::{NAME}"), "--exact"]);
        service.env("NOTIFY_SOCKET", &path).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut service = service.spawn().unwrap();
        let mut message = [0; 64];
        let heard = manager.recv(&mut message);
        drop(service.stdin.take());
        assert!(service.wait().unwrap().success());
        let said = std::str::from_utf8(&message[..heard.unwrap()]).unwrap();
        assert_eq!(said.trim(), "EXTEND_TIMEOUT_USEC=30000000");
    }

    /// Its last block is padded, and there is nothing behind it in the file.
    #[tokio::test]
    async fn a_disk_that_is_no_whole_block_is_recovered_with_its_very_size() {
        let threads = QueueThreads::start(1).unwrap();
        let layer = Arc::new(BlockLayer::new());
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        let mut maker = DiskMaker::new(&layer, threads.handles(), clock);
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1_000_001).unwrap();
        let path = file.path().display();
        for uri in [format!("{path}"), format!("file:{path}?size=1000001")] {
            let mut record = record(0, 7, &uri);
            let mut sizes = [1_000_001, 2_000_003, 1_000_001].into_iter();
            record.size = sizes.next().unwrap();
            let mut plan: DiskPlan = uri.parse().unwrap();
            for to in sizes {
                let open = maker.open(&plan).unwrap();
                let mut follow = Follow::of(open.disk());
                let before = follow.now();
                check_size(&record, before.size).unwrap();
                assert_eq!(before.size, record.size);
                open.disk().resize_bytes(to).unwrap();
                record.note(before, follow.changed().await);
                assert_eq!(record.size, to);
                layer.del_disk(open.disk());
                plan = to_recover(&record).unwrap();
                assert_eq!(plan.options.size, Some(to));
            }
            let open = maker.open(&plan).unwrap();
            check_size(&record, State::of(open.disk()).size).unwrap();
            layer.del_disk(open.disk());
            let err = check_size(&record, 1_000_000).unwrap_err();
            assert!(err.to_string().contains("1000001"), "{err}");
        }
        threads.shutdown();
    }
}
