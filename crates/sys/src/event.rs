//! A descriptor that becomes readable when something happened (eventfd(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::OFlags;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;

/// Something to wait on: each [`Event::signal`] is an edge for an edge-triggered epoll, whether or not it was
/// read before.
#[derive(Debug)]
pub struct Event {
    fd: OwnedFd,
    /// Whoever shares it with us has not made it non-blocking.
    may_block: AtomicBool,
}

impl Event {
    /// An event that has not happened.
    ///
    /// # Errors
    /// What eventfd(2) says: descriptors are used up.
    pub fn new() -> io::Result<Self> {
        Ok(Self::owned(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    const fn owned(fd: OwnedFd) -> Self {
        Self { fd, may_block: AtomicBool::new(false) }
    }

    /// One that another process has made and passed to us. Its flags, which that process shares, are left as they are.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a descriptor that is no eventfd: writing to it might block, or mean anything.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let kind = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
        if kind.to_bytes() != b"anon_inode:[eventfd]" {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no eventfd"));
        }
        let may_block = AtomicBool::new(!rustix::fs::fcntl_getfl(&fd)?.contains(OFlags::NONBLOCK));
        Ok(Self { fd, may_block })
    }

    /// Makes it happen.
    pub fn signal(&self) {
        // It fails only at 2^64 - 2 signals that nobody read, and is readable then in any case. One that would block then
        // is looked at first: others may have counted it up to there.
        if self.may_block() && !self.has_room() {
            return;
        }
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// It has not happened, for those who poll(2) it.
    pub fn clear(&self) {
        // Nothing to read is what is wanted. One of ours does not block.
        if !self.may_block() {
            let _ = rustix::io::read(&self.fd, &mut [0; 8]);
        }
    }

    /// Whether writing or reading it may block. The flags are shared, and many a program makes its end non-blocking only after
    /// it has passed the other on.
    fn may_block(&self) -> bool {
        if !self.may_block.load(Ordering::Relaxed) {
            return false;
        }
        let flags = rustix::fs::fcntl_getfl(&self.fd);
        let may_block = !flags.is_ok_and(|flags| flags.contains(OFlags::NONBLOCK));
        self.may_block.store(may_block, Ordering::Relaxed);
        may_block
    }

    fn has_room(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Event {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
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
        Ok(Self(Arc::new(Event::owned(timerfd_create(TimerfdClockId::Monotonic, flags)?))))
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

    /// Waits until it has happened since the last time, or ever. One that happens while nobody waits is not
    /// missed.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn happened(&self) -> io::Result<()> {
        // Edges count, not the value: it is never read. An edge that comes after this is seen by the next wait.
        self.0.readable().await?.clear_ready();
        Ok(())
    }

    /// Whether that is the event it watches.
    #[must_use]
    pub fn is_of(&self, event: &Arc<Event>) -> bool {
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
    fn an_event_of_another_is_signalled_but_never_waited_for() {
        for flags in [EventfdFlags::empty(), EventfdFlags::NONBLOCK] {
            let theirs = eventfd(0, flags).unwrap();
            let ours = Event::from_fd(theirs.try_clone().unwrap()).unwrap();
            ours.signal();
            let mut count = [0; 8];
            rustix::io::read(&theirs, &mut count).unwrap();
            assert_eq!(u64::from_ne_bytes(count), 1);
            rustix::io::write(&theirs, &(u64::MAX - 1).to_ne_bytes()).unwrap();
            ours.signal();
        }
    }

    #[test]
    fn one_that_is_made_non_blocking_after_it_was_passed_is_not_looked_at_any_more() {
        let theirs = eventfd(0, EventfdFlags::empty()).unwrap();
        let ours = Event::from_fd(theirs.try_clone().unwrap()).unwrap();
        ours.signal();
        assert!(ours.may_block());
        rustix::fs::fcntl_setfl(&theirs, OFlags::NONBLOCK).unwrap();
        ours.signal();
        assert!(!ours.may_block());
        let mut count = [0; 8];
        rustix::io::read(&theirs, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 2);
    }

    #[test]
    fn what_is_no_eventfd_is_refused() {
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        let error = Event::from_fd(writer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
