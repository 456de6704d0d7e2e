//! A client, as the rest of the server sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use blockyard_blkmq::Outbox;
use blockyard_nbd::wire::HeaderStyle;
use parking_lot::Mutex;

use crate::listener::PeerHost;
use crate::server::Stage;

/// What is known of a client, for lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientInfo {
    /// Its number; no other client of this server has had it.
    pub id: u64,
    /// Who it is.
    pub peer: String,
    /// The queue thread that serves it.
    pub thread: usize,
    /// What it has opened; `None` while it is in its handshake.
    pub session: Option<SessionInfo>,
    /// Requests that are not answered yet.
    pub in_flight: usize,
    /// Requests so far.
    pub requests: u64,
    /// Bytes read so far.
    pub bytes_read: u64,
    /// Bytes written so far.
    pub bytes_written: u64,
}

/// What a client has agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// The name of the export.
    pub export: String,
    /// The headers of its messages.
    pub style: HeaderStyle,
    /// Whether it speaks TLS.
    pub tls: bool,
}

/// How far a client has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// It has not chosen its export yet.
    Handshake,
    /// It is served.
    Serving,
    /// It is gone, and its disk has not done with what it asked for.
    Gone,
}

/// No export has this number.
const NONE: u64 = u64::MAX;

/// A client and its counters. Written by its connection, once a batch.
pub(crate) struct Client {
    pub(crate) id: u64,
    pub(crate) peer: String,
    pub(crate) thread: usize,
    pub(crate) outbox: Arc<Outbox>,
    /// Whose it is, if that can be told.
    pub(crate) host: Option<PeerHost>,
    phase: AtomicU8,
    /// It has to make room for a younger one.
    evicted: AtomicBool,
    /// The number of its export.
    export: AtomicU64,
    session: Mutex<Option<SessionInfo>>,
    stage: AtomicU8,
    /// Milliseconds that it has at its end to flush what it has written.
    flush_grace: AtomicU64,
    /// All others are cut off, and the disk has a flush of its.
    awaits_last_flush: AtomicBool,
    /// It has not got all that it has asked for, as its time was over.
    cut_off: AtomicBool,
    /// Requests whose replies are not sent.
    pub(crate) in_flight: AtomicUsize,
    /// Those of them that the disk has.
    pub(crate) at_disk: AtomicUsize,
    pub(crate) requests: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl Client {
    pub(crate) fn new(id: u64, peer: String, host: Option<PeerHost>, thread: usize) -> Self {
        Self {
            id,
            peer,
            thread,
            outbox: Arc::default(),
            host,
            phase: AtomicU8::new(Phase::Handshake as u8),
            evicted: AtomicBool::new(false),
            export: AtomicU64::new(NONE),
            session: Mutex::default(),
            stage: AtomicU8::new(Stage::Serving as u8),
            flush_grace: AtomicU64::new(0),
            awaits_last_flush: AtomicBool::new(false),
            cut_off: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            at_disk: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Handshake,
            1 => Phase::Serving,
            _ => Phase::Gone,
        }
    }

    /// To be called where clients are counted, as are the next ones.
    pub(crate) fn set_serving(&self, export: u64) {
        self.export.store(export, Ordering::Relaxed);
        self.phase.store(Phase::Serving as u8, Ordering::Relaxed);
    }

    pub(crate) fn set_gone(&self) {
        self.phase.store(Phase::Gone as u8, Ordering::Relaxed);
    }

    /// The number of its export, once it has chosen.
    pub(crate) fn export(&self) -> Option<u64> {
        Some(self.export.load(Ordering::Relaxed)).filter(|&number| number != NONE)
    }

    pub(crate) fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Relaxed)
    }

    pub(crate) fn evict(&self) {
        self.evicted.store(true, Ordering::Relaxed);
        self.outbox.kick();
    }

    pub(crate) fn set_session(&self, session: SessionInfo) {
        *self.session.lock() = Some(session);
    }

    /// How far its end has come, where that is not the end of all.
    pub(crate) fn stage(&self) -> Stage {
        Stage::of(self.stage.load(Ordering::SeqCst))
    }

    pub(crate) fn enter(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Ordering::SeqCst);
        self.outbox.kick();
    }

    /// Whether nobody waits for anything but the answer to its flush.
    pub(crate) fn awaits_last_flush(&self) -> bool {
        self.awaits_last_flush.load(Ordering::SeqCst)
    }

    pub(crate) fn set_awaits_last_flush(&self) {
        self.awaits_last_flush.store(true, Ordering::SeqCst);
    }

    pub(crate) fn was_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::SeqCst)
    }

    pub(crate) fn set_cut_off(&self) {
        self.cut_off.store(true, Ordering::SeqCst);
    }

    /// Whether it has been served, has all that it has asked for, and only has to hang up.
    pub(crate) fn has_all(&self) -> bool {
        self.phase() == Phase::Gone && self.in_flight.load(Ordering::Relaxed) == 0
    }

    /// How long it has at its end to flush what it has written. To be set before its end begins.
    pub(crate) fn set_flush_grace(&self, grace: Duration) {
        let millis = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.flush_grace.store(millis, Ordering::SeqCst);
    }

    pub(crate) fn flush_grace(&self) -> Duration {
        Duration::from_millis(self.flush_grace.load(Ordering::SeqCst))
    }

    /// Adds a batch. Called by one thread only, so that plain additions do.
    pub(crate) fn count(&self, requests: u64, read: u64, written: u64) {
        for (counter, more) in
            [(&self.requests, requests), (&self.bytes_read, read), (&self.bytes_written, written)]
        {
            counter.store(counter.load(Ordering::Relaxed) + more, Ordering::Relaxed);
        }
    }

    pub(crate) fn info(&self) -> ClientInfo {
        ClientInfo {
            id: self.id,
            peer: self.peer.clone(),
            thread: self.thread,
            session: self.session.lock().clone(),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            bytes_written: self.bytes_written.load(Ordering::Relaxed),
        }
    }
}
