//! The tasks of a hardware queue: one keeps it connected, one for each connection waits for its socket.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use blockyard_blkmq::HctxHandle;
use blockyard_sys::net::Watch;
use tokio::io::unix::AsyncFdReadyGuard;
use tokio::sync::Notify;

use crate::commands::Dialect;
use crate::connect::{Opened, Target};
use crate::disk::{Inner, Making, Parked};
use crate::driver::Nbd;
use crate::error::{Error, ErrorKind};
use crate::fence::LinkId;
use crate::hctx::{Dry, Turn};
use crate::recovery::Made;
use crate::socket::{Channel, Socket};
use crate::sources::Sources;
use crate::spin::{MAX_SPIN, Spin};
use crate::wire::BOTH_WAYS;

/// Looks at a socket that brings bytes each time, before other tasks of the thread have a turn.
const TURNS: usize = 16;

/// Starts the task that keeps a queue connected, on the queue's thread.
pub(crate) fn start(inner: &Arc<Inner>, index: usize, handle: HctxHandle<Nbd>) {
    let keeper = Keeper {
        inner: Arc::clone(inner),
        index,
        handle,
        target: inner.target(),
        opening: None,
        failures: 0,
        retry_at: Duration::ZERO,
        attached_at: None,
        is_explained: false,
    };
    inner.queues[index].runtime.spawn(keeper.run());
}

type Opening = Pin<Box<dyn Future<Output = Result<(Opened, Made), Error>> + Send>>;

struct Keeper {
    inner: Arc<Inner>,
    index: usize,
    handle: HctxHandle<Nbd>,
    target: Arc<Target>,
    /// A connection that is being made.
    opening: Option<(Opening, Making)>,
    /// Attempts that failed in a row, and connections that were soon lost.
    failures: u32,
    /// When to try again.
    retry_at: Duration,
    /// When the connection in use was made.
    attached_at: Option<Duration>,
    /// It was told why there is none.
    is_explained: bool,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            self.inner.follow_growth();
            let may_connect = self.inner.may_connect(self.index);
            let live = self.handle.with(|hctx| {
                if !may_connect || hctx.queue.is_leaving() {
                    hctx.replace();
                }
                hctx.expire();
                hctx.adopt();
                (hctx.queue.live().is_some(), hctx.queue.deadline())
            });
            let Some((live, deadline)) = live else {
                if self.inner.queues[self.index].gone.load(Ordering::Acquire) {
                    self.give_up();
                    self.inner.leave_parked(self.index).await;
                    return;
                }
                // The block layer is still setting the queue up.
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            };
            self.inner.drained.notify_waiters();
            let common = &self.inner.common;
            // After the disk was disconnected, only for what was there before.
            let has_ended = common.is_closed() && common.waiting() == 0;
            let idle = live || has_ended || !may_connect || common.has_to_move();
            let retry_at = if idle { None } else { self.connect() };
            self.wait(deadline.into_iter().chain(retry_at).min()).await;
        }
    }

    /// Sees to it that a connection is being made. Or says when the next attempt is due.
    fn connect(&mut self) -> Option<Duration> {
        let now = self.inner.now();
        if let Some(since) = self.attached_at.take() {
            // One that lived long is made again at once.
            let soon = now.saturating_sub(since) < self.inner.backoff.most;
            self.failures = if soon { self.failures + 1 } else { 0 };
            self.retry_at = if soon { now + self.pause() } else { now };
        }
        let target = self.inner.target();
        if !Arc::ptr_eq(&target, &self.target) {
            self.give_up();
            (self.target, self.failures, self.is_explained) = (target, 0, false);
            self.retry_at = now;
        }
        if self.opening.is_none() && now >= self.retry_at {
            let making = self.inner.making();
            self.opening = Some((self.open(), making));
        }
        self.opening.is_none().then_some(self.retry_at)
    }

    /// Has a connection left that is being made and that nobody wants any more: as soon as it is made, within the time
    /// that this may take.
    fn give_up(&mut self) {
        let Some((opening, making)) = self.opening.take() else { return };
        tokio::spawn(async move {
            if let Ok((opened, _)) = opening.await {
                opened.leave().await;
            }
            drop(making);
        });
    }

    fn pause(&self) -> Duration {
        let chance = u64::from(self.inner.now().subsec_nanos()) ^ self.index as u64;
        self.inner.backoff.after(self.failures, chance)
    }

    /// Waits for a connection that is being made, for somebody who wants a look, or until a time.
    async fn wait(&mut self, until: Option<Duration>) {
        let inner = Arc::clone(&self.inner);
        let left = until.map(|until| until.saturating_sub(inner.now()));
        let sleep = async {
            match left {
                Some(left) => tokio::time::sleep(left + Duration::from_millis(1)).await,
                None => std::future::pending().await,
            }
        };
        let opening = async {
            match &mut self.opening {
                Some((opening, _)) => opening.await,
                None => std::future::pending().await,
            }
        };
        let opened = tokio::select! {
            biased;
            opened = opening => opened,
            () = inner.queues[self.index].kick.notified() => return,
            () = sleep => return,
        };
        let attached = match opened {
            Ok((opened, made)) => self.attach(opened, made).await,
            Err(err) => Err(err),
        };
        self.opening = None;
        match attached {
            Ok(true) => {
                self.attached_at = Some(inner.now());
                self.is_explained = false;
            }
            Ok(false) => {}
            Err(err) => self.failed(&err),
        }
    }

    fn failed(&mut self, err: &Error) {
        self.failures += 1;
        if !std::mem::replace(&mut self.is_explained, true) || err.kind() == ErrorKind::Changed {
            let (server, queue) = (self.inner.uri(), self.index);
            tracing::warn!(%server, queue, error = err.chain(), "NBD reconnect failed, retrying");
        }
        self.retry_at = self.inner.now() + self.pause();
    }

    fn open(&self) -> Opening {
        let parked = &self.inner.queues[self.index].parked;
        let fits = |parked: &mut Parked| Arc::ptr_eq(&parked.target, &self.target);
        if let Some(Parked { opened, made, .. }) = parked.lock().take_if(fits) {
            return Box::pin(std::future::ready(Ok((opened, made))));
        }
        let (target, inner) = (Arc::clone(&self.target), Arc::clone(&self.inner));
        Box::pin(async move {
            let opened = target.open().await?;
            match inner.check(&target, &opened) {
                Ok(()) => Ok((opened, Made::Later)),
                Err(err) => {
                    opened.leave().await;
                    Err(err)
                }
            }
        })
    }

    /// Puts a connection in use, or leaves it; says which.
    async fn attach(&mut self, opened: Opened, made: Made) -> Result<bool, Error> {
        let dialect = Dialect::from(&opened.negotiated);
        if !self.is_wanted() {
            opened.leave().await;
            return Ok(false);
        }
        let fd = Watch::new(opened.fd, BOTH_WAYS).map_err(|err| {
            Error::new(ErrorKind::Connect, "cannot wait for a socket").caused_by(err)
        })?;
        let socket = Arc::new(Socket { fd, kick: Notify::new() });
        let target = Arc::clone(&self.target);
        let channel = Channel {
            socket: Arc::clone(&socket),
            tls: opened.tls,
            sources: Sources::default(),
            target,
        };
        let mut unused = Some(channel);
        // Whoever moves the disk, or ends it, says so, and then asks each queue to leave its connection: so that either
        // this sees that, or that sees this connection.
        let attached = self.handle.with(|hctx| {
            let moves = self.inner.common.moves();
            let channel = unused.take_if(|_| self.is_wanted())?;
            Some(hctx.attach(dialect, channel, made, moves))
        });
        if let Some(channel) = unused {
            channel.leave(dialect.style);
        }
        let Some(Some(id)) = attached else { return Ok(false) };
        if made == Made::Later {
            let (server, queue) = (&self.target.uri, self.index);
            tracing::info!(%server, queue, "NBD connection restored");
        }
        let (inner, handle) = (Arc::clone(&self.inner), self.handle.clone());
        tokio::spawn(Server { inner, handle, socket, id, spin: Spin::default() }.run());
        Ok(true)
    }

    /// Whether a connection to the target that was opened is still to be used.
    fn is_wanted(&self) -> bool {
        Arc::ptr_eq(&self.inner.target(), &self.target)
            && self.inner.may_connect(self.index)
            && self.inner.may_attach()
    }
}

/// Waits for the socket of a connection, and works on what comes.
struct Server {
    inner: Arc<Inner>,
    handle: HctxHandle<Nbd>,
    socket: Arc<Socket>,
    id: LinkId,
    spin: Spin,
}

/// What woke a connection's task up.
enum Woken<'a> {
    Readable(AsyncFdReadyGuard<'a, OwnedFd>),
    Writable(AsyncFdReadyGuard<'a, OwnedFd>),
    Kicked,
}

impl Server {
    async fn run(mut self) {
        let socket = Arc::clone(&self.socket);
        let mut blocked = false;
        loop {
            let asleep = Instant::now();
            let Ok(woken) = wake_up(&socket, blocked).await else { return };
            let Some(dry) = self.drain().await else { break };
            self.spin.slept(asleep.elapsed(), dry.in_flight);
            let Some(dry) = self.look_on(dry).await else { break };
            blocked = dry.blocked;
            if self.inner.common.is_closed() {
                self.inner.drained.notify_waiters();
            }
            match woken {
                Woken::Readable(mut ready) => ready.clear_ready(),
                Woken::Writable(mut ready) if blocked => ready.clear_ready(),
                Woken::Writable(_) | Woken::Kicked => {}
            }
        }
        self.inner.kick_all();
    }

    /// Works until nothing more comes. `None`: the connection is over.
    async fn drain(&self) -> Option<Dry> {
        let mut turns = 0;
        loop {
            match self.handle.with(|hctx| hctx.turn(self.id))? {
                Turn::Over => return None,
                Turn::Dry(dry) => return Some(dry),
                Turn::More => {
                    turns += 1;
                    if turns % TURNS == 0 {
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
    }

    /// Looks for more a little longer, as long as that pays.
    async fn look_on(&mut self, mut dry: Dry) -> Option<Dry> {
        while self.spin.is_worth_while(dry.in_flight) {
            let began = Instant::now();
            let came = loop {
                match self.handle.with(|hctx| hctx.turn(self.id))? {
                    Turn::Over => return None,
                    Turn::More => break true,
                    Turn::Dry(_) if began.elapsed() < MAX_SPIN => std::hint::spin_loop(),
                    Turn::Dry(_) => break false,
                }
            };
            if !came {
                self.spin.missed();
                break;
            }
            self.spin.hit();
            dry = self.drain().await?;
        }
        Some(dry)
    }
}

async fn wake_up(socket: &Socket, blocked: bool) -> io::Result<Woken<'_>> {
    tokio::select! {
        biased;
        ready = socket.fd.readable() => ready.map(Woken::Readable),
        ready = socket.fd.writable(), if blocked => ready.map(Woken::Writable),
        () = socket.kick.notified() => Ok(Woken::Kicked),
    }
}
