//! A descriptor that becomes readable when something happened (eventfd(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;

/// Something to wait on: each [`Event::signal`] is an edge for an edge-triggered epoll, whether or not it was
/// read before.
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

    /// It has not happened, for those who poll(2) it.
    pub fn clear(&self) {
        // Nothing to read is what is wanted.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

/// An event that another process has made and passed to us. It can be waited for, and signalled only by a
/// [`Signaller`](crate::Signaller): whether writing to it blocks is up to that process, at any moment, since it shares the
/// flags and the count.
#[derive(Debug)]
pub struct PeerEvent(OwnedFd);

impl PeerEvent {
    /// An event that was passed. Its flags are left as they are.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a descriptor that is no eventfd: signalling it might mean anything.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let kind = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
        if kind.to_bytes() != b"anon_inode:[eventfd]" {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no eventfd"));
        }
        Ok(Self(fd))
    }
}

impl AsFd for PeerEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for PeerEvent {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
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

/// An [`Event`] that time makes happen, to the resolution of the kernel's high resolution timers
/// (timerfd_create(2)).
#[derive(Debug)]
pub struct Timer(Arc<Event>);

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// What timerfd_create(2) says: descriptors are used up.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self(Arc::new(Event(timerfd_create(TimerfdClockId::Monotonic, flags)?))))
    }

    /// Makes its event happen once, after a while; forgets what it was set to before.
    pub fn set(&self, after: Duration) {
        // A timer of zero is one that is off.
        let after = after.max(Duration::from_nanos(1));
        let it_value =
            Timespec::try_from(after).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Itimerspec { it_interval, it_value };
        // It fails only for a descriptor that is no timer, or a time that is none.
        let _ = timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once);
    }

    /// What happens.
    #[must_use]
    pub fn event(&self) -> Arc<Event> {
        Arc::clone(&self.0)
    }
}

/// What an [`EventWatch`] can wait for: it has one descriptor for as long as it lives.
pub trait Waitable: AsRawFd + sealed::Sealed {}

impl Waitable for Event {}
impl Waitable for PeerEvent {}
impl Waitable for crate::fuse::Channel {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Event {}
    impl Sealed for super::PeerEvent {}
    impl Sealed for crate::fuse::Channel {}
}

/// What is watched for. A queue of a file system that is not mounted any more is nothing but an error.
const INTEREST: Interest = Interest::READABLE.add(Interest::ERROR);

/// Waits for an event on a runtime.
#[derive(Debug)]
pub struct EventWatch<E: Waitable = Event>(AsyncFd<Arc<E>>);

impl<E: Waitable> EventWatch<E> {
    /// Has the runtime watch `event`.
    ///
    /// # Errors
    /// What epoll_ctl(2) says: its watches are used up.
    ///
    /// # Panics
    /// If the runtime has no I/O enabled.
    pub fn new(event: Arc<E>, runtime: &Handle) -> io::Result<Self> {
        let _entered = runtime.enter();
        // SAFETY: what is waitable owns its descriptor and never changes it, and the AsyncFd holds it.
        let watched = unsafe { AsyncFd::register_with_interest(event, INTEREST) };
        Ok(Self(watched?))
    }

    /// Waits until it has happened since the last time, or ever. One that happens while nobody waits is not
    /// missed.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn happened(&self) -> io::Result<()> {
        // Edges count, not the value: it is never read. An edge that comes after this is seen by the next wait.
        self.0.ready(INTEREST).await?.clear_ready();
        Ok(())
    }

    /// Whether that is the event it watches.
    #[must_use]
    pub fn is_of(&self, event: &Arc<E>) -> bool {
        Arc::ptr_eq(self.0.get_ref(), event)
    }

    /// As [`EventWatch::happened`], for those who wait for several things. Wakes the task that called it last.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub fn poll_happened(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.0.poll_read_ready(cx))?.clear_ready();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_eventfd_is_refused() {
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        let error = PeerEvent::from_fd(writer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
