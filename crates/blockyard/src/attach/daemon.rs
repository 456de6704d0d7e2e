//! The daemon of a disk that is attached: it opens the disk, gives it to the kernel, and serves it until it is told
//! to end.

use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use blockyard_blkmq::partition::Warning;
use blockyard_blkmq::{Disk, OpenMode};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::flushes::{inherit_failed_flushes, note_failed_flushes};
use super::interrupted::{GivenUp, unless_told, while_abandoning};
use super::kernel::{Attachment, Below, new_mark};
use super::leaving::{HandingOver, RETRY, hand_over, leave, tell_that_it_stays};
use super::leftover::on_record;
use super::log::Log;
use super::opening::{EXPORT, Order, Server, check_size, note_handed_over};
use super::record::Record;
use super::store::{Begun, Store, forget_log_of};
use super::unflushed::{inherit_unflushed, note_unflushed};
use super::wanted::Wanted;
use super::{helper, launch, usage};
use crate::api::{self, Attached as Device, Reply};
use crate::daemon::MoreTime;
use crate::daemon::signals::Signals;
use crate::error::{Error, ErrorKind, Result};
use crate::text::term;
use crate::tools::check::read_table;
use crate::yard::follow::{Follow, State};
use crate::yard::report::DeviceReport;

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
    let own_log = log.clone().map(|path| Arc::new(Log::new(path)));
    if let Some(log) = own_log.clone() {
        term::after_telling(move || log.look());
    }
    // Before there are other threads: they inherit it.
    crate::daemon::enter_write_back_path();
    crate::daemon::block_on(async move {
        let is_new = matches!(order, Order::Attach(_));
        let opening = async {
            let (server, order) = blocking(move || Ok((Server::open(&order)?, order))).await?;
            // Whoever reads from it needs that.
            let housekeeper = tokio::spawn(Arc::clone(&server.yard).keep());
            if is_new {
                let disk = Arc::clone(server.disk());
                let looked = blocking(move || {
                    warn_of_partitions(&disk);
                    Ok(())
                });
                looked.await?;
            }
            Ok::<_, Error>((server, order, housekeeper))
        };
        let (server, order, housekeeper) = tokio::select! {
            biased;
            // Nobody waits for the device, and the same command may have been given again. What is recovered waits for us itself.
            () = launch::starter_gone(), if background && is_new => {
                return Err(Error::failed("stopped before the disk was attached: the starting process has exited"));
            }
            opened = opening => opened?,
        };
        // From here on there is a device that an end by a signal would leave behind.
        let mut signals = Signals::new()?;
        let hang_up = signal(SignalKind::hangup())
            .map_err(|err| Error::failed("cannot catch signals").caused_by(err))?;
        let attached = Attached::attach_unless_told(server, order, log, &mut signals).await?;
        let hang_ups = HangUps { signal: hang_up, log: own_log };
        attached.serve(housekeeper, signals, hang_ups, background).await
    })
}

async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(job).await;
    done.map_err(|err| Error::failed("attaching failed").caused_by(err))?
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

/// What hangs up ends nothing: whoever has started us is gone, who uses the disk is not. Or somebody has moved the log.
struct HangUps {
    signal: Signal,
    log: Option<Arc<Log>>,
}

impl HangUps {
    async fn next(&mut self) {
        if self.signal.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        if let Some(log) = &self.log {
            log.reopen();
        }
        tracing::info!("SIGHUP ignored");
    }
}

/// What a daemon hears while it serves, and what has come of that so far.
struct Heard {
    signals: Signals,
    hang_ups: HangUps,
    /// Who wants it to be detached.
    asked: mpsc::Receiver<Reply>,
    follow: Follow,
    state: State,
    /// It was told to end, and could not: its device is in use.
    refused: mpsc::Receiver<()>,
    refuse: mpsc::Sender<()>,
    /// Once it was told to end: how long the service manager is asked to wait for that.
    leaving: Option<MoreTime>,
    handing_over: HandingOver,
    /// Tells the kernel whether the disk is read-only.
    telling: Option<JoinHandle<()>>,
}

impl Heard {
    fn new(
        signals: Signals,
        hang_ups: HangUps,
        asked: mpsc::Receiver<Reply>,
        (follow, state): (Follow, State),
    ) -> Self {
        let (refuse, refused) = mpsc::channel(1);
        let (leaving, handing_over, telling) = (None, HandingOver::default(), None);
        Self {
            signals,
            hang_ups,
            asked,
            follow,
            state,
            refused,
            refuse,
            leaving,
            handing_over,
            telling,
        }
    }
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
    /// Gives a disk to the kernel, unless a signal stops that. What is asked again of a device that is recovered must not fail: a
    /// signal is heard once that is served.
    async fn attach_unless_told(
        server: Server,
        order: Order,
        log: Option<PathBuf>,
        signals: &mut Signals,
    ) -> Result<Self> {
        let is_new = matches!(order, Order::Attach(_));
        let given_up = GivenUp::new(Arc::clone(&server.open));
        let attaching = blocking(move || Self::attach(server, order, log));
        if !is_new {
            return attaching.await;
        }
        let (attached, told) = unless_told(attaching, signals.next(), || given_up.abandon()).await;
        if !told {
            return attached;
        }
        if let Ok(mut attached) = attached {
            match while_abandoning(attached.detach(), || given_up.abandon()).await {
                Ok(()) => attached.store.forget_notes(attached.record.mark),
                Err(err) => {
                    tracing::warn!(error = %err, "cannot remove the remains of the device");
                    // The note that it was begun stays, for whoever looks for what was left behind.
                    std::mem::forget(attached);
                }
            }
        }
        Err(Error::failed("stopped by a signal before the disk was attached"))
    }

    /// Gives a disk to the kernel.
    fn attach(server: Server, order: Order, log: Option<PathBuf>) -> Result<Self> {
        let store = Store::open()?;
        let mode =
            if server.disk().is_read_only() { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
        let bdev = server
            .disk()
            .open(None, mode)
            .map_err(|err| Error::failed("cannot open the disk").caused_by(err))?;
        let below = Below {
            bdev: Arc::new(bdev),
            threads: server.yard.threads(),
            server: server.yard.nbd(),
            export: EXPORT,
            outlives_us: !server.identity.is_volatile(),
            fence: server.fence,
        };
        let size = server.disk().size_bytes();
        let failed =
            |uri: &str, err: Error| Error::failed(format!("cannot attach {uri}")).caused_by(err);
        let identity = server.identity.clone();
        let (attachment, mut record, begun) = match &order {
            Order::Attach(wish) => {
                let mark = new_mark();
                let wanted = Wanted::new(wish, &identity);
                let begun = wanted.begin(&store, mark, on_record);
                let begun = begun.map_err(|err| failed(&wish.uri, err))?;
                note_failed_flushes(server.disk(), store.failed_flush_of(mark));
                note_unflushed(&server.open, &store.unflushed_of(mark))?;
                let attachment = Attachment::attach(wish, mark, &below).map_err(|err| {
                    store.forget_notes(mark);
                    failed(&wish.uri, err)
                })?;
                let (via, number) = (attachment.via(), attachment.number());
                let record = Record::new(via, number, mark, wish.clone(), identity);
                (attachment, record, Some(begun))
            }
            Order::Recover(before) => {
                check_size(before, size)?;
                inherit_failed_flushes(server.disk(), store.failed_flush_of(before.mark), before);
                inherit_unflushed(&server.open, &store.unflushed_of(before.mark), before)?;
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
        Ok(Self { server, attachment: Some(attachment), record, store, begun, recovered })
    }

    /// Listens to who asks, and puts it on record: in this order, as who finds it on record asks.
    async fn announce(&mut self, ask: mpsc::Sender<Reply>) -> Result<api::Server> {
        let control = api::Server::bind(Arc::clone(&self.server.yard), Some(self.device(ask)))?;
        self.save().await?;
        self.begun = None;
        if let Some(before) = self.recovered.take() {
            forget_log_of(&before);
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
                mark: DeviceReport::told_mark(record.mark),
            },
            detach,
        }
    }

    async fn serve(
        mut self,
        housekeeper: tokio::task::JoinHandle<()>,
        signals: Signals,
        hang_ups: HangUps,
        background: bool,
    ) -> Result<u8> {
        let (ask, asked) = mpsc::channel(1);
        // Before anybody can ask for a change.
        let mut follow = Follow::of(self.server.disk());
        let state = follow.now();
        self.record.size = state.size;
        let control = match self.announce(ask).await {
            Ok(control) => control,
            Err(err) => {
                // Nobody could ever detach it; what was recovered stays for the next one.
                if self.recovered.is_none() {
                    let _ = self.detach().await;
                    self.store.forget_notes(self.record.mark);
                } else {
                    std::mem::forget(self);
                }
                return Err(err);
            }
        };
        let ready = |(this, _): &(Self, Heard)| {
            let let_go = || if background { launch::let_go() } else { Ok(()) };
            tell_ready(|| term::say(this.record.path()), let_go);
        };
        let until = async |(this, heard): &mut (Self, Heard)| loop {
            let end = this.until_the_end(heard).await;
            if end == End::Detached || this.hand_over(heard).await {
                break end;
            }
        };
        let heard = Heard::new(signals, hang_ups, asked, (follow, state));
        crate::daemon::serve(housekeeper, control, (self, heard), ready, until, Self::ended).await
    }

    /// What comes behind its end, and the exit code.
    async fn ended((this, heard): (Self, Heard), end: End) -> Result<u8> {
        if end == End::HandedOver {
            // Taking it down in order would wait for the kernel's requests. All of them are asked again. Who asks to detach it is
            // not told that it is.
            std::mem::forget((this, heard));
            return Ok(0);
        }
        // Who asks now has what it wants.
        drop(heard);
        let (store, mark) = (this.store.clone(), this.record.mark);
        let ended = this.server.yard.end(this.server.grace).await.into_result();
        // The last flush may have failed, too, and nobody goes on with the device.
        store.forget_notes(mark);
        ended.map(|()| 0)
    }

    /// Leaves the device to the next daemon; says no if it stays.
    async fn hand_over(&self, heard: &mut Heard) -> bool {
        let path = self.record.path();
        let more_time = *heard.leaving.get_or_insert_with(MoreTime::from_now);
        let handing = more_time.during(hand_over(&self.server.open, &path, self.server.grace));
        let left = while_refusing(handing, &mut heard.asked, &path).await;
        if left {
            note_handed_over(&self.server.open, &self.store, &self.record);
            term::tell(format_args!(
                "{path} is left without a daemon; its I/O waits until you run: blockyard recover {path}"
            ));
        } else {
            heard.handing_over.begin(self.server.disk(), more_time, self.server.grace, RETRY);
        }
        left
    }

    async fn until_the_end(&mut self, heard: &mut Heard) -> End {
        loop {
            tokio::select! {
                () = heard.signals.next() => {
                    if heard.leaving.is_none() {
                        let more_time = *heard.leaving.insert(MoreTime::from_now());
                        leave(self.record.path(), more_time, heard.refuse.clone());
                    } else {
                        self.tell_who_uses_it();
                    }
                }
                () = heard.hang_ups.next() => {}
                Some(answer) = heard.asked.recv() => {
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
                        tracing::warn!(error = %err, "cannot remove the remains of the device");
                    }
                    return End::Detached;
                }
                Some(()) = heard.refused.recv() => {
                    let recoverable = self.attachment.as_ref().is_some_and(Attachment::is_recoverable);
                    if recoverable && self.record.wish.hand_over {
                        let more_time = *heard.leaving.get_or_insert_with(MoreTime::from_now);
                        let (disk, grace) = (self.server.disk(), self.server.grace);
                        heard.handing_over.begin(disk, more_time, grace, Duration::ZERO);
                    } else {
                        term::tell("serving it until it is unused");
                    }
                }
                () = heard.handing_over.is_due() => return End::HandedOver,
                now = heard.follow.changed() => {
                    let before = std::mem::replace(&mut heard.state, now);
                    self.record.note(before, now);
                    if let Err(err) = self.save().await {
                        tracing::warn!(error = %err, "cannot update the attach record");
                    }
                    if before.read_only != now.read_only {
                        self.tell_read_only(heard, now.read_only);
                    }
                }
            }
        }
    }

    /// Tells why the device stays, if anybody uses it. All processes are looked at for that: who serves the disk does not wait.
    fn tell_who_uses_it(&self) {
        let (path, pid) = (self.record.path(), self.record.pid);
        tokio::task::spawn_blocking(move || {
            if let Err(err) = usage::check_unused(&path, pid) {
                tell_that_it_stays(&err);
            }
        });
    }

    /// Has the kernel refuse writes, or take them again: one after the other.
    fn tell_read_only(&self, heard: &mut Heard, read_only: bool) {
        let (path, before) = (self.record.path(), heard.telling.take());
        heard.telling = Some(std::thread::spawn(move || {
            // One that has panicked has said so.
            let _ = before.map(JoinHandle::join);
            helper::set_read_only(&path, read_only);
        }));
    }

    /// Takes the disk from the kernel. Whoever asks for it has seen to it that nobody uses it, and that all is
    /// flushed: for us to do that would be to wait for ourselves.
    async fn detach(&mut self) -> Result<()> {
        let runtime = self.server.yard.threads()[0].clone();
        // The kernel, and whoever looks for partitions, gives it up once it has been answered.
        let _no_waits = self.server.open.disk().limit_waits(Duration::ZERO);
        take_away(&mut self.attachment, move |attachment| attachment.remove(&runtime)).await?;
        self.begun = None;
        if let Some(held) = self.server.held.take() {
            let (store, record) = (self.store.clone(), self.record.clone());
            if let Err(err) = blocking(move || store.forget(&record, &held)).await {
                // The device is gone: whoever looks next takes it off.
                tracing::warn!(error = %err, "cannot remove the attach record");
            }
        }
        Ok(())
    }
}

/// The kernel looks for partitions itself, and does not say why it finds none.
fn warn_of_partitions(disk: &Arc<Disk>) {
    let Ok(bdev) = disk.open(None, OpenMode::ReadOnly) else { return };
    let warnings = read_table(&bdev).map(|table| table.warnings).unwrap_or_default();
    for warning in warnings.iter().filter(|it| matches!(it, Warning::OtherBlockSize { .. })) {
        term::tell(warning);
    }
}

/// Tells whoever has started us, and lets go of it. The kernel has its disk by now, and it is on record: what fails here is no
/// reason to leave that alone.
fn tell_ready(say: impl FnOnce() -> Result<()>, let_go: impl FnOnce() -> io::Result<()>) {
    if let Err(err) = say() {
        tracing::warn!(error = %err, "cannot report that the disk is attached");
    }
    if let Err(err) = let_go() {
        tracing::warn!(error = %err, "cannot detach from the starting process");
    }
}

/// Hands over: who wants the device to be detached meanwhile is told that it stays.
async fn while_refusing<T>(
    handing: impl Future<Output = T>,
    asked: &mut mpsc::Receiver<Reply>,
    path: &str,
) -> T {
    let mut handing = pin!(handing);
    loop {
        tokio::select! {
            handed = &mut handing => return handed,
            Some(answer) = asked.recv() => {
                let what = format!("{path} is being handed over to the next daemon");
                let help = format!("run: blockyard recover {path}");
                // Who asked may have left.
                let _ = answer.send(Err(Error::new(ErrorKind::Busy, what).help(help)));
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

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
    async fn who_asks_to_detach_what_is_handed_over_is_told_so() {
        let (ask, mut asked) = mpsc::channel(1);
        let asks = async {
            let (tell, told) = tokio::sync::oneshot::channel::<Result<()>>();
            ask.send(tell).await.unwrap();
            let refused = told.await.unwrap().unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Busy);
            assert!(refused.to_string().contains("/dev/nbd0 is being handed over"), "{refused}");
            assert_eq!(refused.remedy().unwrap(), "run: blockyard recover /dev/nbd0");
        };
        while_refusing(asks, &mut asked, "/dev/nbd0").await;
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
}
