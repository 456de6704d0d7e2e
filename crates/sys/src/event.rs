//! A descriptor that becomes readable when something happened (eventfd(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;

/// Something to wait on: each [`Event::signal`] is an edge for an edge-triggered epoll, whether or not it was read before.
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// An event that has not happened.
    ///
    /// # Errors
    /// What eventfd(2) says: descriptors are used up.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes it happen.
    pub fn signal(&self) {
        // It fails only at 2^64 - 2 signals that nobody read, and is readable then in any case.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Event {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Waits for an [`Event`] on a runtime.
#[derive(Debug)]
pub struct EventWatch(AsyncFd<Arc<Event>>);

impl EventWatch {
    /// Has the runtime watch `event`.
    ///
    /// # Errors
    /// What epoll_ctl(2) says: its watches are used up.
    ///
    /// # Panics
    /// If the runtime has no I/O enabled.
    pub fn new(event: Arc<Event>, runtime: &Handle) -> io::Result<Self> {
        let _entered = runtime.enter();
        // SAFETY: an Event owns its descriptor and never changes it, and the AsyncFd holds the Event.
        let watched = unsafe { AsyncFd::register_with_interest(event, Interest::READABLE) };
        Ok(Self(watched?))
    }

    /// Waits until it has happened since the last time, or ever. One that happens while nobody waits is not missed.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn happened(&self) -> io::Result<()> {
        // Edges count, not the value: it is never read. An edge that comes after this is seen by the next wait.
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}
