//! What a server's thread, its session and its queues share.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use blockyard_sys::{Event, PeerEvent, Signaller};
use parking_lot::Mutex;

use crate::listener::Listener;

/// What is to be done, and what was. A device has one.
pub struct Backend {
    /// Where it is served, for the log.
    name: String,
    path: Option<std::path::PathBuf>,
    /// Wakes the server's thread.
    wake: Event,
    /// The server is to end.
    stop: AtomicBool,
    /// The guest has to look at the configuration space again.
    config_changed: AtomicBool,
    /// The memory of a guest is not what it was: its session has to look.
    memory_lost: AtomicBool,
    /// A front-end is connected.
    pub(crate) connected: AtomicBool,
    /// Queues that are served.
    pub(crate) queues: AtomicU64,
    /// Requests so far.
    requests: AtomicU64,
    /// Of the server's thread.
    signaller: Arc<Signaller>,
    late_signals: LateSignals,
}

/// Events that the kernel has refused to signal, for lack of memory: the session tries again.
#[derive(Default)]
struct LateSignals(Mutex<Vec<Arc<PeerEvent>>>);

impl LateSignals {
    /// Each event is there once: there are no more than queues have.
    fn add(&self, event: &Arc<PeerEvent>) {
        let mut list = self.0.lock();
        if !list.iter().any(|known| Arc::ptr_eq(known, event)) {
            list.push(Arc::clone(event));
        }
    }

    fn any(&self) -> bool {
        !self.0.lock().is_empty()
    }

    /// Tries each again; those that `signal` refuses stay.
    fn retry(&self, signal: impl Fn(&PeerEvent) -> bool) {
        self.0.lock().retain(|event| !signal(event));
    }
}

impl Backend {
    /// That of a device which is to be served at `listener`.
    ///
    /// # Errors
    /// The system has no room for an event or for signals.
    pub fn new(listener: &Listener) -> io::Result<Arc<Self>> {
        let path = listener.path.clone();
        let name = path.as_deref().map_or("fd".into(), |path| path.display().to_string());
        Ok(Arc::new(Self {
            name,
            path,
            wake: Event::new()?,
            stop: AtomicBool::new(false),
            config_changed: AtomicBool::new(false),
            memory_lost: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            queues: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            signaller: Signaller::of_thread(None)?,
            late_signals: LateSignals::default(),
        }))
    }

    /// Where it is served, for the log.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// So many requests more were taken.
    #[inline]
    pub fn count_requests(&self, count: usize) {
        self.requests.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake.signal();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// What wakes the server's thread.
    pub(crate) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// It has woken.
    pub(crate) fn awoke(&self) {
        self.wake.clear();
    }

    /// The configuration space has changed: the session tells its front-end.
    pub(crate) fn tell_config_changed(&self) {
        self.config_changed.store(true, Ordering::SeqCst);
        self.wake.signal();
    }

    /// Whether the configuration space has changed since it was last asked for by this.
    pub(crate) fn take_config_changed(&self) -> bool {
        self.config_changed.swap(false, Ordering::SeqCst)
    }

    /// Signals a front-end or its guest by the signaller of the calling thread.
    #[inline]
    pub fn signal(&self, by: &Signaller, event: &Arc<PeerEvent>) {
        if !by.signal(event) {
            self.late_signals.add(event);
            self.wake.signal();
        }
    }

    /// Signals a front-end or its guest, on the server's thread.
    pub(crate) fn signal_from_session(&self, event: &Arc<PeerEvent>) {
        self.signal(&self.signaller, event);
    }

    /// Tries again what was refused, on the server's thread.
    pub(crate) fn signal_late(&self) {
        self.late_signals.retry(|event| self.signaller.signal(event));
    }

    pub(crate) fn has_late_signals(&self) -> bool {
        self.late_signals.any()
    }

    /// Has the session look whether the memory of its guest is lost.
    pub fn tell_memory_lost(&self) {
        self.memory_lost.store(true, Ordering::SeqCst);
        self.wake.signal();
    }

    /// Whether somebody has told so since this was last asked.
    pub(crate) fn take_memory_lost(&self) -> bool {
        self.memory_lost.swap(false, Ordering::SeqCst)
    }

    /// What was told of an earlier front-end is not of the next one.
    pub(crate) fn begin(&self) {
        self.take_memory_lost();
        self.late_signals.0.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn a_signal_that_was_refused_is_not_lost() {
        let event = || eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let theirs = [event(), event()];
        let [first, second] = theirs
            .each_ref()
            .map(|fd| Arc::new(PeerEvent::from_fd(fd.try_clone().unwrap()).unwrap()));
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let backend = Backend::new(&Listener::from_fd(socket.into()).unwrap()).unwrap();
        [&first, &second, &first].iter().for_each(|event| backend.late_signals.add(event));
        backend.late_signals.retry(|_| false);
        assert_eq!(backend.late_signals.0.lock().len(), 2, "each once");
        backend.signal_late();
        assert!(!backend.has_late_signals());
        for fd in &theirs {
            let mut count = [0; 8];
            rustix::io::read(fd, &mut count).unwrap();
            assert_eq!(u64::from_ne_bytes(count), 1);
        }
    }
}
