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

use crate::MAX_QUEUES;
use crate::backend::Backend;
use crate::channel::Close;
use crate::device::Device;
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

/// Serves a device to one front-end at a time, until [`Server::shutdown`].
pub struct Server {
    backend: Arc<Backend>,
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
    /// Prepares one for a device whose [`Backend`] was made for that listener.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for what cannot be, [`ErrorKind::Io`] if there is no room for a thread.
    pub fn prepare<D: Device>(device: Arc<D>, listener: Listener) -> Result<Prepared, Error> {
        let queues = device.queues();
        if queues == 0 || queues > MAX_QUEUES {
            let what = format!("{queues} queues; use 1 to {MAX_QUEUES}");
            return Err(Error::new(ErrorKind::Config, what));
        }
        let backend = Arc::clone(device.backend());
        let ended = Arc::new(tokio::sync::Notify::new());
        let tell = Arc::clone(&ended);
        let (go, told) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("vhost-user".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                if told.recv().is_ok() {
                    serve(&device, listener);
                }
                tell.notify_one();
            })
            .map_err(|err| Error::new(ErrorKind::Io, "cannot start serving").caused_by(err))?;
        let server = Self { backend, thread: Mutex::new(Some(thread)), ended };
        Ok(Prepared { server, go })
    }

    /// Where it listens, if that is a path.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.backend.path()
    }

    /// What it is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            connected: self.backend.connected.load(Ordering::Relaxed),
            queues: self.backend.queues.load(Ordering::Relaxed),
            requests: self.backend.requests(),
        }
    }

    /// The configuration space is another: a front-end that is connected is told. It does not wait.
    pub fn follow(&self) {
        self.backend.tell_config_changed();
    }

    /// Waits until there is nobody more to serve: the one front-end of a connected socket has left, or the server was shut
    /// down.
    pub async fn ended(&self) {
        self.ended.notified().await;
        self.ended.notify_one();
    }

    /// Takes no request any more. [`Server::shutdown`] waits for those that were taken.
    pub fn stop(&self) {
        self.backend.stop();
    }

    /// Ends it: no request is taken any more, those that were are finished, and the front-end is hung up on. What takes
    /// longer than `grace` is left to the queue threads.
    pub async fn shutdown(&self, grace: std::time::Duration) {
        self.stop();
        if tokio::time::timeout(grace, self.ended()).await.is_err() {
            tracing::warn!(
                socket = self.backend.name(),
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

fn serve<D: Device>(device: &Arc<D>, mut listener: Listener) {
    let backend = &**device.backend();
    loop {
        let socket = match accept(backend, &mut listener.source) {
            Ok(Some(socket)) => socket,
            Ok(None) => return,
            Err(err) => {
                tracing::error!(socket = backend.name(), error = %err, "stopped accepting front-ends");
                return;
            }
        };
        backend.connected.store(true, Ordering::Relaxed);
        tracing::info!(socket = backend.name(), "front-end connected");
        let close = Session::new(device, socket).run();
        backend.connected.store(false, Ordering::Relaxed);
        match close {
            Close::Left | Close::Stopped => {
                tracing::info!(socket = backend.name(), reason = %close, "front-end disconnected");
            }
            Close::Io(_)
            | Close::Wire(_)
            | Close::Refused(_)
            | Close::Hangs(_)
            | Close::MemoryLost => {
                tracing::warn!(socket = backend.name(), reason = %close, "front-end disconnected");
            }
        }
    }
}

/// The next front-end; none once there can be none any more.
fn accept(backend: &Backend, source: &mut Source) -> io::Result<Option<UnixStream>> {
    let listener = match source {
        Source::Connected(socket) => {
            return Ok(socket.take().filter(|_| !backend.is_stopping()));
        }
        Source::Listening(listener) => listener,
    };
    listener.set_nonblocking(true)?;
    loop {
        if backend.is_stopping() {
            return Ok(None);
        }
        match listener.accept() {
            Ok((socket, _)) => return Ok(Some(socket)),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [
                    PollFd::new(&*listener, PollFlags::IN),
                    PollFd::from_borrowed_fd(backend.wake(), PollFlags::IN),
                ];
                poll_until(&mut fds, None)?;
                backend.awoke();
            }
            // Errors of a connection that was in the queue, not of the socket (accept(2), "Error handling").
            Err(err)
                if matches!(
                    err.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                ) => {}
            Err(err) => {
                tracing::warn!(socket = backend.name(), error = %err, "cannot accept a front-end, retrying");
                let mut fds = [PollFd::from_borrowed_fd(backend.wake(), PollFlags::IN)];
                poll_until(&mut fds, Some(&ACCEPT_PAUSE))?;
                backend.awoke();
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
