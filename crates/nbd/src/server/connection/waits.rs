//! What a connection sleeps for. All who drive one ask here, so that nothing sleeps for what nobody will tell.

use super::{Connection, Memory, Work};

/// What wakes a connection, besides its [deadline](Connection::deadline) and the end of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Bytes from the client.
    pub input: bool,
    /// Room for what is to be sent.
    pub room: bool,
    /// The end of a request at the disk.
    pub disk: bool,
    /// Memory that others give back: the waker of the lease is woken.
    pub memory: bool,
    /// The release of a receive buffer, which nobody tells: the deadline comes soon.
    pub pins: bool,
}

impl Waits {
    /// Whether there is anything that can happen.
    #[must_use]
    pub fn is_any(self) -> bool {
        self != Self::default()
    }
}

impl<W: Work, M: Memory> Connection<W, M> {
    /// What is waited for, or `None` if there is something to do now: requests for the disk, or
    /// [what was received before](Self::has_backlog).
    ///
    /// To be asked after all wakers were set: it may begin to wait for memory.
    pub fn waits_for(&mut self) -> Option<Waits> {
        let may_receive = self.may_receive();
        if !self.ready.is_empty() || (may_receive && self.has_backlog()) {
            return None;
        }
        let waits = Waits {
            input: may_receive,
            room: !self.out.is_empty(),
            disk: self.at_disk > 0,
            memory: self.lease.is_waiting(),
            pins: self.waits_for_pins(),
        };
        let is_over = self.ending().is_some() && self.is_quiet();
        debug_assert!(waits.is_any() || is_over, "a connection sleeps for nothing");
        Some(waits)
    }

    /// Whether receive buffers are kept by what has ended.
    pub(super) fn waits_for_pins(&self) -> bool {
        self.pinned > 0 && self.at_disk == 0
    }
}
