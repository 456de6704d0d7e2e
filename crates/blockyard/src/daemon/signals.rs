//! Signals: SIGINT and SIGTERM ask for an end, SIGHUP for nothing. A thread of its own hears them, so that they are
//! heard whatever the other threads are waiting for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::runtime::Builder;
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::{Notify, mpsc};

use crate::error::{Error, ErrorKind, Result};
use crate::text::term;

/// The same signal within this time is one that was sent twice: timeout(1) tells its child, and then the whole group.
const BURST: Duration = Duration::from_millis(500);
/// How long the process has after a second signal to end by itself.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Signals that nobody has taken yet. More are not told apart from these.
const UNTAKEN: usize = 8;

/// The signals that ask for an end.
pub(crate) struct Signals {
    heard: mpsc::Receiver<Signal>,
    hung_up: Arc<Notify>,
    /// SIGINT is somebody else's.
    left: Arc<AtomicBool>,
    count: usize,
}

/// SIGINT is left to somebody else.
#[must_use]
pub(crate) struct LeftInterrupts(Arc<AtomicBool>);

impl Drop for LeftInterrupts {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Signals {
    /// From now on they end nothing by themselves.
    pub(crate) fn new() -> Result<Self> {
        Self::listen(false)
    }

    /// From now on the first one ends nothing by itself. A second one ends the process soon, whether anybody takes it or
    /// not.
    pub(crate) fn with_a_last_word() -> Result<Self> {
        Self::listen(true)
    }

    fn listen(second_ends: bool) -> Result<Self> {
        let failed = |err: std::io::Error| Error::failed("cannot catch signals").caused_by(err);
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let caught = {
            let _inside = runtime.enter();
            Caught::new().map_err(failed)?
        };
        let (tell, heard) = mpsc::channel(UNTAKEN);
        let (hung_up, left) = (Arc::clone(&caught.hung_up), Arc::clone(&caught.left));
        let thread = std::thread::Builder::new().name("signals".into());
        thread.spawn(move || runtime.block_on(hear(caught, tell, second_ends))).map_err(failed)?;
        Ok(Self { heard, hung_up, left, count: 0 })
    }

    /// The next one.
    pub(crate) async fn next(&mut self) {
        match self.heard.recv().await {
            Some(_) => self.count += 1,
            // The thread lives as long as this does.
            None => std::future::pending().await,
        }
    }

    /// The next one, or SIGHUP, and which it was: for those who pass it on.
    pub(crate) async fn next_of_all(&mut self) -> Signal {
        tokio::select! {
            Some(signal) = self.heard.recv() => {
                self.count += 1;
                signal
            }
            () = self.hung_up.notified() => Signal::HUP,
        }
    }

    /// Waits until two have been taken.
    pub(crate) async fn second(&mut self) {
        while self.count < 2 {
            self.next().await;
        }
    }

    /// Until what this returns is dropped, SIGINT asks for nothing: it is a Ctrl-C at a terminal, meant for a command there that
    /// gets it, too, and does with it what it likes.
    pub(crate) fn leave_interrupts(&self) -> LeftInterrupts {
        self.left.store(true, Ordering::Release);
        LeftInterrupts(Arc::clone(&self.left))
    }

    /// How many were taken, SIGHUP aside.
    pub(crate) fn count(&self) -> usize {
        self.count
    }
}

/// What a second signal is answered with.
pub(crate) fn ended_at_once() -> Error {
    Error::failed("forced exit by a second signal").help("unflushed writes may be lost")
}

struct Caught {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hang_up: unix::Signal,
    hung_up: Arc<Notify>,
    left: Arc<AtomicBool>,
}

impl Caught {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: unix::signal(SignalKind::interrupt())?,
            terminate: unix::signal(SignalKind::terminate())?,
            hang_up: unix::signal(SignalKind::hangup())?,
            hung_up: Arc::default(),
            left: Arc::default(),
        })
    }

    /// The next that asks for an end.
    async fn next(&mut self) -> Signal {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => {
                    if !self.left.load(Ordering::Acquire) {
                        return Signal::INT;
                    }
                }
                _ = self.terminate.recv() => return Signal::TERM,
                _ = self.hang_up.recv() => {
                    tracing::info!("SIGHUP ignored: nothing to reload");
                    self.hung_up.notify_one();
                }
            }
        }
    }
}

async fn hear(mut caught: Caught, tell: mpsc::Sender<Signal>, second_ends: bool) {
    let mut bursts = Bursts::default();
    let mut count = 0;
    loop {
        let signal = tokio::select! {
            signal = caught.next() => signal,
            () = tell.closed() => return,
        };
        if bursts.is_repeated(signal, Instant::now()) {
            continue;
        }
        // If there is no room, as many wait to be taken as anybody could want.
        let _ = tell.try_send(signal);
        count += 1;
        if second_ends && count > 1 {
            tokio::time::sleep(LAST_WORD).await;
            term::tell_error(&ended_at_once());
            std::process::exit(ErrorKind::Failed.exit_code().into());
        }
    }
}

/// Tells a signal that was sent twice from two.
#[derive(Default)]
struct Bursts {
    last: Option<(Signal, Instant)>,
}

impl Bursts {
    fn is_repeated(&mut self, signal: Signal, now: Instant) -> bool {
        let same = |&(last, at): &(Signal, Instant)| last == signal && now < at + BURST;
        if self.last.as_ref().is_some_and(same) {
            return true;
        }
        self.last = Some((signal, now));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_a_kind_in_a_burst_are_one() {
        let start = Instant::now();
        let mut bursts = Bursts::default();
        assert!(!bursts.is_repeated(Signal::TERM, start));
        assert!(bursts.is_repeated(Signal::TERM, start + BURST / 2));
        // A burst begins with its first signal: who goes on sending is heard.
        assert!(!bursts.is_repeated(Signal::TERM, start + BURST));
        assert!(!bursts.is_repeated(Signal::INT, start + BURST));
    }
}
