//! The server: a thread that waits for a front-end, serves it until it leaves, and waits for the next.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::channel::Close;
use crate::device::{Device, Export, MAX_QUEUES};
use crate::error::{Error, ErrorKind};
use crate::listener::{Listener, Source};
use crate::session::Session;

/// Bytes of stack of the server's thread. Nothing on it recurses.
const STACK_BYTES: usize = 256 << 10;
/// How long nothing is accepted when the system is out of file descriptors or memory.
const ACCEPT_PAUSE: rustix::event::Timespec =
    rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// What a server is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// A front-end is connected.
    pub connected: bool,
    /// Queues that are served.
    pub queues: u64,
    /// Requests so far.
    pub requests: u64,
}

/// Serves a disk to one front-end at a time, until [`Server::shutdown`].
pub struct Server {
    device: Arc<Device>,
    path: Option<std::path::PathBuf>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Told when the thread has ended.
    ended: Arc<tokio::sync::Notify>,
}

/// A server that has all it needs, and serves nobody yet: whoever starts several knows that none of them fails.
pub struct Prepared {
    server: Server,
    go: mpsc::Sender<()>,
}

impl Prepared {
    /// From now on front-ends are served.
    #[must_use]
    pub fn start(self) -> Server {
        // Its thread waits for that.
        let _ = self.go.send(());
        self.server
    }
}

impl Server {
    /// Prepares one. Queue number i of the disk lives on `queue_threads[i % n]`; each of these is the runtime of a thread of its
    /// own, with I/O and time enabled, and its place in the list is the number that [`blockyard_blkmq::Bdev::submit`] is
    /// given for it.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for what cannot be, [`ErrorKind::Io`] if there is no room for a thread.
    pub fn prepare(
        export: Export,
        listener: Listener,
        queue_threads: Vec<Handle>,
    ) -> Result<Prepared, Error> {
        let single = |handle: &Handle| handle.runtime_flavor() == RuntimeFlavor::CurrentThread;
        if queue_threads.is_empty() || !queue_threads.iter().all(single) {
            let what =
                "a vhost-user-blk back-end needs queue threads, each a current-thread runtime";
            return Err(Error::new(ErrorKind::Config, what));
        }
        if export.queues == 0 || export.queues > MAX_QUEUES {
            let what = format!("{} queues; use 1 to {MAX_QUEUES}", export.queues);
            return Err(Error::new(ErrorKind::Config, what));
        }
        let failed = |err| Error::new(ErrorKind::Io, "cannot start serving").caused_by(err);
        let path = listener.path.clone();
        let name = path.as_deref().map_or("fd".into(), |path| path.display().to_string());
        let device = Device::new(export, name, queue_threads.len()).map_err(failed)?;
        let ended = Arc::new(tokio::sync::Notify::new());
        let (tell, shared) = (Arc::clone(&ended), Arc::clone(&device));
        let (go, told) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("vhost-user".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                if told.recv().is_ok() {
                    serve(&shared, &queue_threads, listener);
                }
                tell.notify_one();
            })
            .map_err(failed)?;
        let server = Self { device, path, thread: Mutex::new(Some(thread)), ended };
        Ok(Prepared { server, go })
    }

    /// Prepares one, and starts it at once.
    ///
    /// # Errors
    /// As those of [`Server::prepare`].
    pub fn start(
        export: Export,
        listener: Listener,
        queue_threads: Vec<Handle>,
    ) -> Result<Self, Error> {
        Self::prepare(export, listener, queue_threads).map(Prepared::start)
    }

    /// Where it listens, if that is a path.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What it is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            connected: self.device.connected.load(Ordering::Relaxed),
            queues: self.device.queues.load(Ordering::Relaxed),
            requests: self.device.requests.load(Ordering::Relaxed),
        }
    }

    /// Waits until there is nobody more to serve: the one front-end of a connected socket has left, or the server was shut
    /// down.
    pub async fn ended(&self) {
        self.ended.notified().await;
        self.ended.notify_one();
    }

    /// Takes no request any more. [`Server::shutdown`] waits for those that were taken.
    pub fn stop(&self) {
        self.device.stop.store(true, Ordering::SeqCst);
        self.device.wake.signal();
    }

    /// Ends it: no request is taken any more, those that were are finished, and the front-end is hung up on. What takes
    /// longer than `grace` is left to the queue threads.
    pub async fn shutdown(&self, grace: std::time::Duration) {
        self.stop();
        if tokio::time::timeout(grace, self.ended()).await.is_err() {
            tracing::warn!(
                socket = self.device.name,
                ?grace,
                "shutdown grace period expired; requests in flight were dropped"
            );
            return;
        }
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // It has ended, but for its last instructions; a panic has been reported where it happened.
            let _ = thread.join();
        }
    }
}

fn serve(device: &Arc<Device>, threads: &[Handle], mut listener: Listener) {
    loop {
        let socket = match accept(device, &mut listener.source) {
            Ok(Some(socket)) => socket,
            Ok(None) => return,
            Err(err) => {
                tracing::error!(socket = device.name, error = %err, "no more front-ends are accepted");
                return;
            }
        };
        device.connected.store(true, Ordering::Relaxed);
        tracing::info!(socket = device.name, "front-end connected");
        let close = Session::new(device, threads, socket).run();
        device.connected.store(false, Ordering::Relaxed);
        match close {
            Close::Left | Close::Stopped => tracing::info!(socket = device.name, "{close}"),
            Close::Io(_) => tracing::warn!(socket = device.name, "{close}"),
            Close::Wire(_) | Close::Refused(_) | Close::MemoryLost => {
                tracing::warn!(socket = device.name, "front-end disconnected: {close}");
            }
        }
    }
}

/// The next front-end; none once there can be none any more.
fn accept(device: &Device, source: &mut Source) -> io::Result<Option<UnixStream>> {
    let listener = match source {
        Source::Connected(socket) => {
            return Ok(socket.take().filter(|_| !device.is_stopping()));
        }
        Source::Listening(listener) => listener,
    };
    listener.set_nonblocking(true)?;
    loop {
        if device.is_stopping() {
            return Ok(None);
        }
        match listener.accept() {
            Ok((socket, _)) => return Ok(Some(socket)),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [
                    PollFd::new(&*listener, PollFlags::IN),
                    PollFd::new(&device.wake, PollFlags::IN),
                ];
                poll_until(&mut fds, None)?;
                device.wake.clear();
            }
            // Errors of a connection that was in the queue, not of the socket (accept(2), "Error handling").
            Err(err)
                if matches!(
                    err.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                ) => {}
            Err(err) => {
                tracing::warn!(socket = device.name, error = %err, "cannot accept a front-end, retrying");
                let mut fds = [PollFd::new(&device.wake, PollFlags::IN)];
                poll_until(&mut fds, Some(&ACCEPT_PAUSE))?;
                device.wake.clear();
            }
        }
    }
}

fn poll_until(fds: &mut [PollFd<'_>], timeout: Option<&rustix::event::Timespec>) -> io::Result<()> {
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(err) => Err(err.into()),
    }
}
