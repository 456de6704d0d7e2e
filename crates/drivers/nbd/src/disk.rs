//! The disk as its owner sees it: connect, reconfigure, disconnect.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use blockyard_blkmq::{FailedFlush, Features, HctxHandle, Status};
use blockyard_buf::{Pool, PoolLimits};
use blockyard_nbd::uri::Uri;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::config::{MAX_CONNECTIONS, NbdConfig};
use crate::connect::{Dialer, Opened, Sockets, Target};
use crate::driver::Nbd;
use crate::error::{Error, ErrorKind};
use crate::export::Export;
use crate::job::Within;
use crate::queue::Policy;
use crate::recovery::{Common, Made};
use crate::unflushed::{Ledger, Unflushed};

/// Bytes of free buffers that a hardware queue keeps.
const KEPT_BYTES: usize = 8 << 20;

/// What the queues, their tasks and the owner share.
pub(crate) struct Inner {
    pub(crate) common: Arc<Common<Within<Nbd>>>,
    pub(crate) policy: Policy,
    pub(crate) backoff: Backoff,
    pub(crate) queues: Box<[QueueSlot]>,
    read_only: bool,
    /// The server does not say that its flushes cover several connections: only the first queue has one.
    single: AtomicBool,
    /// Bytes that requests may reach: the size that the disk was told, or is about to be.
    pub(crate) reach: AtomicU64,
    /// Bytes of the largest export that any connection was made to.
    largest: AtomicU64,
    target: Mutex<Arc<Target>>,
    /// One move at a time.
    moves: Mutex<()>,
    /// Not all connections to the former server are out of use.
    moving: AtomicBool,
    /// How many connections are being made.
    making: AtomicUsize,
    export: watch::Sender<Export>,
    /// Told when requests end while the disk is being disconnected.
    pub(crate) drained: Notify,
    start: Instant,
}

/// What is known of a queue from outside.
pub(crate) struct QueueSlot {
    pub(crate) runtime: Handle,
    /// Wakes the task that keeps it connected.
    pub(crate) kick: Notify,
    /// A connection that is ready for it.
    pub(crate) parked: Mutex<Option<Parked>>,
    /// For which size its connection was last made anew.
    renewed_for: AtomicU64,
    /// The block layer has taken it down.
    pub(crate) gone: AtomicBool,
    handle: OnceLock<HctxHandle<Nbd>>,
    pool: Pool,
}

/// A connection that waits to be put in use.
pub(crate) struct Parked {
    pub(crate) target: Arc<Target>,
    pub(crate) opened: Opened,
    pub(crate) made: Made,
}

/// A connection that is being made or left, and no queue knows of yet: the end of the disk waits for it.
pub(crate) struct Making(Arc<Inner>);

impl Drop for Making {
    fn drop(&mut self) {
        self.0.making.fetch_sub(1, Ordering::AcqRel);
        self.0.drained.notify_waiters();
    }
}

impl Inner {
    /// A connection is about to be made.
    pub(crate) fn making(self: &Arc<Self>) -> Making {
        self.making.fetch_add(1, Ordering::AcqRel);
        Making(Arc::clone(self))
    }

    /// Says goodbye on the connection that waits for a queue.
    pub(crate) async fn leave_parked(&self, index: usize) {
        let parked = self.queues.get(index).and_then(|slot| slot.parked.lock().take());
        if let Some(parked) = parked {
            parked.opened.leave().await;
        }
    }

    /// Whether another connection is of use: the disk lives, or has requests from when it did; and it does not move just
    /// now. Connections to two servers are never in use at a time, as a flush of one does not cover the other, and what one
    /// still has in its cache could undo what the other writes.
    pub(crate) fn may_attach(&self) -> bool {
        let has_ended = self.common.is_closed() && self.common.waiting() == 0;
        !has_ended && !self.moving.load(Ordering::Acquire) && !self.common.has_to_move()
    }

    /// The time since the disk was made.
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn uri(&self) -> Uri {
        self.target.lock().uri.clone()
    }

    pub(crate) fn target(&self) -> Arc<Target> {
        Arc::clone(&self.target.lock())
    }

    pub(crate) fn pool(&self, index: usize) -> &Pool {
        &self.queues[index].pool
    }

    /// Lets the tasks of all queues look again.
    pub(crate) fn kick_all(&self) {
        self.queues.iter().for_each(|queue| queue.kick.notify_one());
    }

    /// A hardware queue is set up.
    pub(crate) fn take_queue(
        &self,
        index: usize,
        handle: HctxHandle<Nbd>,
    ) -> blockyard_blkmq::Result<()> {
        let slot = self.queues.get(index);
        if slot.is_some_and(|slot| slot.handle.set(handle).is_ok()) {
            return Ok(());
        }
        let what = format!("hardware queue {index} of {} is in use or does not exist", self.uri());
        Err(blockyard_blkmq::Error::new(blockyard_blkmq::ErrorKind::Busy, what))
    }

    /// Checks that a connection that was made anew is to the same disk, and notes what is new.
    pub(crate) fn check(&self, target: &Target, opened: &Opened) -> Result<(), Error> {
        let found = Export::new(&opened.negotiated, self.read_only);
        self.export.borrow().accepts(&found).map_err(|err| {
            let what = format!("{} cannot replace the attached disk", target.uri);
            Error::new(err.kind(), what).caused_by(err)
        })?;
        self.largest.fetch_max(found.size, Ordering::AcqRel);
        if !found.multi_conn && self.queues.len() > 1 && !self.single.swap(true, Ordering::AcqRel) {
            tracing::warn!(
                server = %target.uri,
                "the server no longer offers multi-conn; using one connection from now on"
            );
            self.common.covers_one();
            self.kick_all();
        }
        Ok(())
    }

    /// Whether a queue may have a connection of its own.
    pub(crate) fn may_connect(&self, index: usize) -> bool {
        index == 0 || !self.single.load(Ordering::Acquire)
    }

    /// Tells that the export has grown, as soon as every connection knows of it: those that were made to a smaller
    /// one are made anew, once.
    pub(crate) fn follow_growth(&self) {
        let largest = self.largest.load(Ordering::Acquire);
        if largest == self.export.borrow().size {
            return;
        }
        let mut smallest = largest;
        for (slot, index) in self.queues.iter().zip(0..) {
            if !self.may_connect(index) {
                continue;
            }
            let Some(handle) = slot.handle.get() else { return };
            let size = handle.with(|hctx| {
                let size = hctx.queue.live().map_or(0, |conn| conn.link.size());
                let renew = size > 0
                    && size < largest
                    && slot.renewed_for.swap(largest, Ordering::AcqRel) != largest;
                if renew {
                    hctx.replace();
                }
                if renew { 0 } else { size }
            });
            smallest = smallest.min(size.unwrap_or(0));
        }
        self.export.send_if_modified(|known| {
            let grown = known.of_size(smallest);
            let has_grown = grown.bytes() > known.bytes();
            if has_grown {
                self.reach.store(grown.bytes(), Ordering::Release);
                *known = grown;
            }
            has_grown
        });
    }

    /// Makes another server the disk's, the connections to which are left. Gives those that nobody will use any more.
    fn move_to(&self, parked: Parked) -> Vec<Parked> {
        let _one_at_a_time = self.moves.lock();
        self.moving.store(true, Ordering::Release);
        self.common.moved();
        *self.target.lock() = Arc::clone(&parked.target);
        for handle in self.handles() {
            handle.with(crate::hctx::Hctx::replace);
        }
        self.moving.store(false, Ordering::Release);
        let mut unused: Vec<_> =
            self.queues.iter().filter_map(|queue| queue.parked.lock().take()).collect();
        match self.queues.first() {
            Some(first) => *first.parked.lock() = Some(parked),
            None => unused.push(parked),
        }
        unused
    }

    pub(crate) fn handles(&self) -> impl Iterator<Item = &HctxHandle<Nbd>> {
        self.queues.iter().filter_map(|queue| queue.handle.get())
    }
}

/// Another connection to the disk that the first one is to.
async fn another(target: &Target, first: &Export, read_only: bool) -> Result<Opened, Error> {
    let opened = target.open().await?;
    let other = Export::new(&opened.negotiated, read_only);
    let same = first.accepts(&other).and_then(|()| {
        if other.multi_conn && other.size == first.size {
            return Ok(());
        }
        let what = "the export differs between connections in size, or lacks multi-conn";
        Err(Error::new(ErrorKind::Changed, what))
    });
    match same {
        Ok(()) => Ok(opened),
        Err(err) => {
            opened.leave().await;
            Err(err)
        }
    }
}

impl Nbd {
    /// Connects to an export. The connections live on `queue_threads` (hardware queue `i` on the one at `i`
    /// modulo their number), which must have I/O and time enabled. The disk is made from what comes with it.
    ///
    /// # Errors
    /// Whatever keeps the first connection from being made.
    pub async fn connect(
        config: NbdConfig,
        queue_threads: &[Handle],
    ) -> Result<(Arc<Self>, Export), Error> {
        let sockets = Sockets { given_up_after: Some(config.fence_timeout / 2) };
        Self::connect_by(Arc::new(sockets), config, queue_threads).await
    }

    pub(crate) async fn connect_by(
        dialer: Arc<dyn Dialer>,
        config: NbdConfig,
        queue_threads: &[Handle],
    ) -> Result<(Arc<Self>, Export), Error> {
        config.check()?;
        if queue_threads.is_empty() {
            return Err(Error::new(ErrorKind::Config, "an NBD disk needs a queue thread"));
        }
        let (uri, files) = (config.uri.clone(), config.tls_files.clone());
        let limit = config.connect_limit();
        let target = Target::new(dialer, uri, files, config.best_style, limit);
        let first = target.open().await?;
        let export = Export::new(&first.negotiated, config.read_only);
        let target = Arc::new(target);
        if let Err(err) = export.limits.clone().validate() {
            first.leave().await;
            let what = format!("{} has unsupported block sizes", config.uri);
            return Err(Error::new(ErrorKind::Protocol, what).caused_by(err));
        }
        let wanted = config.connections.unwrap_or(queue_threads.len()).min(MAX_CONNECTIONS);
        if config.connections.is_some_and(|count| count > 1) && !export.multi_conn {
            tracing::warn!(
                server = %config.uri,
                "the server does not offer multi-conn; using one connection"
            );
        }
        let mut opened = vec![first];
        while export.multi_conn && opened.len() < wanted {
            match another(&target, &export, config.read_only).await {
                Ok(another) => opened.push(another),
                Err(err) => {
                    let (server, have) = (&config.uri, opened.len());
                    tracing::warn!(%server, have, wanted, error = err.chain(), "fewer NBD connections than configured");
                    break;
                }
            }
        }
        let slot = |(index, opened): (usize, Opened)| QueueSlot {
            runtime: queue_threads[index % queue_threads.len()].clone(),
            kick: Notify::new(),
            parked: Mutex::new(Some(Parked {
                target: Arc::clone(&target),
                opened,
                made: Made::AtTheStart,
            })),
            renewed_for: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            handle: OnceLock::new(),
            pool: Pool::new(PoolLimits { kept_bytes: KEPT_BYTES }),
        };
        let has_cache = export.limits.features.contains(Features::WRITE_CACHE);
        let tracks = has_cache && !export.read_only;
        let unflushed = tracks.then(|| Unflushed::new(export.size));
        let largest = AtomicU64::new(export.size);
        let inner = Inner {
            common: Arc::new(Common::new(unflushed, config.trust_server)),
            policy: config.policy(),
            backoff: config.backoff,
            queues: opened.into_iter().enumerate().map(slot).collect(),
            read_only: config.read_only,
            single: AtomicBool::new(false),
            reach: AtomicU64::new(export.bytes()),
            largest,
            target: Mutex::new(Arc::clone(&target)),
            moves: Mutex::new(()),
            moving: AtomicBool::new(false),
            making: AtomicUsize::new(0),
            export: watch::Sender::new(export.clone()),
            drained: Notify::new(),
            start: Instant::now(),
        };
        Ok((Arc::new(Self { inner: Arc::new(inner) }), export))
    }

    /// How many connections there are, one for each hardware queue.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.inner.queues.len()
    }

    /// How many of them are up now.
    #[must_use]
    pub fn connected(&self) -> usize {
        let live = |handle: &HctxHandle<Self>| handle.with(|hctx| hctx.queue.live().is_some());
        self.inner.handles().filter(|handle| live(handle) == Some(true)).count()
    }

    /// The export, and how it changes: whoever owns the disk sets its capacity when that has grown.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Export> {
        self.inner.export.subscribe()
    }

    /// Moves the disk to another server, while it is used: new requests go there, what is out is finished where
    /// it is. Nothing is sent there before all that the old server has is answered and flushed; if it falls silent,
    /// that is given up as a lost connection is.
    ///
    /// # Errors
    /// Whatever keeps a connection from being made, or [`ErrorKind::Changed`] if the export there cannot stand
    /// for this one. Nothing has changed then.
    pub async fn reconfigure(&self, uri: Uri) -> Result<(), Error> {
        if self.inner.common.is_closed() {
            return Err(Error::new(ErrorKind::Closed, "the disk was disconnected"));
        }
        let target = Arc::new(self.inner.target().to(uri));
        let opened = target.open().await?;
        if let Err(err) = self.inner.check(&target, &opened) {
            opened.leave().await;
            return Err(err);
        }
        let parked = Parked { target, opened, made: Made::Later };
        let unused = self.inner.move_to(parked);
        self.inner.kick_all();
        for parked in unused {
            parked.opened.leave().await;
        }
        if self.inner.common.is_closed() {
            self.leave_unused().await;
        }
        Ok(())
    }

    /// Says goodbye on connections that no queue has put in use.
    async fn leave_unused(&self) {
        for index in 0..self.inner.queues.len() {
            self.inner.leave_parked(index).await;
        }
    }

    /// Has `told` called as soon as flushes fail for good, which may be long before anybody asks for one: what was written on a
    /// lost connection may be lost. It may be called twice, is called on a queue thread, and must not block. Once for a disk.
    pub fn on_failed_flush(&self, told: FailedFlush) {
        self.inner.common.on_failed_flush(told);
    }

    /// Whether the server may have something that was written and not flushed.
    #[must_use]
    pub fn tracks_unflushed(&self) -> bool {
        self.inner.common.unflushed().is_some()
    }

    /// Has `ledger` told of what is written and not flushed, from now on. Once for a disk.
    pub fn keep_ledger(&self, ledger: Arc<dyn Ledger>) {
        if let Some(unflushed) = self.inner.common.unflushed() {
            unflushed.keep_ledger(ledger);
        }
    }

    /// Another process has served this disk before, and has died: the server has answered some of its writes, and not flushed
    /// them. As for a connection that is lost, flushes fail from now on, unless the server is trusted; says whether they do.
    #[must_use]
    pub fn inherit_unflushed(&self) -> bool {
        let common = &self.inner.common;
        if common.is_trusting() {
            common.keep();
        } else {
            common.fail_flushes();
        }
        common.has_flush_failed()
    }

    /// Another process has served this disk before, and has died: the server may still carry out what it has sent, which
    /// must not undo what is written from now on. Nothing is changed for `fence_timeout` from now; reads go on
    /// (`docs/nbd-fencing.md`).
    pub fn hold_writes(&self) {
        let inner = &self.inner;
        inner.common.inherit(inner.now() + inner.policy.fence_timeout);
        inner.kick_all();
    }

    /// Requests that are out on any connection, or wait for one.
    fn in_flight(&self) -> usize {
        let out = |handle: &HctxHandle<Self>| handle.with(|hctx| hctx.queue.in_flight());
        self.inner.handles().filter_map(out).sum::<usize>() + self.inner.common.waiting()
    }

    /// Whether the server may have something to carry out, on whatever connection. Asked for while nothing can be submitted.
    #[must_use]
    pub fn may_change_late(&self) -> bool {
        self.in_flight() > 0 || self.inner.common.is_fenced()
    }

    /// Ends the disk: new requests fail, what is out is finished, within the timeout, and the server is told
    /// goodbye.
    pub async fn disconnect(&self) {
        self.inner.common.close();
        self.inner.kick_all();
        let drain = async {
            loop {
                let drained = self.inner.drained.notified();
                if self.in_flight() == 0 {
                    return;
                }
                drained.await;
            }
        };
        if tokio::time::timeout(self.inner.policy.timeout, drain).await.is_err() {
            tracing::warn!(server = %self.inner.uri(), "NBD disk disconnected; failing requests in flight");
        }
        self.leave().await;
        let made = async {
            loop {
                let drained = self.inner.drained.notified();
                if self.inner.making.load(Ordering::Acquire) == 0 {
                    return;
                }
                drained.await;
            }
        };
        if tokio::time::timeout(self.inner.policy.timeout, made).await.is_err() {
            tracing::warn!(server = %self.inner.uri(), "NBD disk disconnected while connecting");
        }
    }

    /// As [`Nbd::disconnect`], of a server that nobody waits for any more: what is out fails. A connection that is being made is
    /// left once it is, by its queue.
    pub async fn give_up(&self) {
        self.inner.common.close();
        self.clear_queue();
        self.leave().await;
    }

    /// Leaves all connections, with what is out on them.
    async fn leave(&self) {
        for handle in self.inner.handles() {
            handle.with(|hctx| hctx.disconnect(Status::Offline));
        }
        self.leave_unused().await;
        self.inner.kick_all();
    }

    /// Fails all that is left, whether it waits or is out, as the kernel's `NBD_CLEAR_QUE`.
    pub fn clear_queue(&self) {
        for handle in self.inner.handles() {
            handle.with(|hctx| hctx.clear(Status::Io));
        }
        self.inner.drained.notify_waiters();
    }
}
