//! A queue thread: what its connections share.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use blockyard_buf::{Buffer, Pool, PoolLimits};
use blockyard_sys::net::IoVecs;
use parking_lot::Mutex;
use tokio::runtime::Handle;

/// Bytes that are received at a time.
pub(crate) const RECEIVE_LEN: usize = 256 << 10;
/// Bytes of free buffers that a queue thread keeps.
const KEPT_BYTES: usize = 8 << 20;

pub(crate) struct QueueThread {
    pub(crate) handle: Handle,
    /// The number that its submissions go by.
    pub(crate) cpu: usize,
    /// Connections that live on it.
    pub(crate) connections: AtomicUsize,
    /// The connection that had requests last.
    last_active: AtomicU64,
    /// Taken for a turn of a connection, and never while one waits: all connections of the thread run on it,
    /// one at a time.
    pub(crate) workspace: Mutex<Workspace>,
}

/// What a connection needs only while it is at work.
pub(crate) struct Workspace {
    pub(crate) pool: Pool,
    /// What is received: writes may use parts of it.
    buffer: Buffer,
    pub(crate) vecs: IoVecs,
}

impl Workspace {
    /// Room to receive into, which nobody else uses: whatever became of the connection that had it before.
    pub(crate) fn buffer(&mut self) -> &mut [u8] {
        self.exchange();
        let Some(bytes) = self.buffer.get_mut() else {
            unreachable!("a buffer that was just made")
        };
        bytes
    }

    /// What was received.
    pub(crate) fn received(&self) -> &Buffer {
        &self.buffer
    }

    /// If writes use the buffer, there is another one now: gives the one that they use.
    pub(crate) fn exchange(&mut self) -> Option<Buffer> {
        if self.buffer.get_mut().is_some() {
            return None;
        }
        let fresh = self.pool.get(RECEIVE_LEN);
        Some(std::mem::replace(&mut self.buffer, fresh))
    }
}

impl QueueThread {
    pub(crate) fn new(handle: Handle, cpu: usize) -> Self {
        let pool = Pool::new(PoolLimits { kept_bytes: KEPT_BYTES });
        let buffer = pool.get(RECEIVE_LEN);
        Self {
            handle,
            cpu,
            connections: AtomicUsize::new(0),
            last_active: AtomicU64::new(0),
            workspace: Mutex::new(Workspace { pool, buffer, vecs: IoVecs::new() }),
        }
    }

    /// `connection` has requests. Says whether it had the ones before, too.
    pub(crate) fn is_active(&self, connection: u64) -> bool {
        // Only this thread writes it.
        let before = self.last_active.load(Ordering::Relaxed);
        self.last_active.store(connection, Ordering::Relaxed);
        before == connection
    }
}
