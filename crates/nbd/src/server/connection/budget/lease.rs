//! What one connection has of the memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::queue::Ticket;
use super::{STEP, Seat, Shared, Waiter};

/// The most bytes that are received at a time when much waits already: some requests without their payloads.
const SHORT_WINDOW: usize = 4 << 10;

/// What one connection has of a [`MemoryShare`](super::MemoryShare). Dropping it gives all back.
#[derive(Debug)]
pub struct Lease {
    shared: Arc<Shared>,
    pub(super) seat: Arc<Seat>,
    pub(super) bytes: usize,
    /// Bytes that wait in the connection.
    stash: usize,
    /// Its place in the queue, while it waits or has not looked at what it was granted.
    ticket: Option<Ticket>,
    /// What it was granted while memory was short, in the queue's time.
    served_until: u64,
}

impl Lease {
    pub(super) fn new(shared: Arc<Shared>, seat: Arc<Seat>) -> Self {
        Self { shared, seat, bytes: 0, stash: 0, ticket: None, served_until: 0 }
    }

    /// Bytes that the connection has without it.
    pub(in super::super) fn own(&self) -> usize {
        self.shared.own
    }

    /// The most bytes that the connection may have, whatever others have, when there are as many.
    pub(in super::super) fn most(&self) -> usize {
        self.shared.own + self.shared.most_of(&self.seat.part.account)
    }

    /// Whether the connection may hold `bytes`, its own included: the lease grows for it, if there is room and
    /// nobody waits.
    pub(in super::super) fn covers(&mut self, bytes: usize) -> bool {
        let leased = bytes.saturating_sub(self.shared.own);
        self.collect();
        if leased <= self.bytes {
            // What it waited for is not needed any more.
            self.leave_queue();
            return true;
        }
        if self.is_waiting() {
            return false;
        }
        let more = self.step_to(leased);
        let took = self.shared.take_at_once(&self.seat.part, more);
        self.bytes += if took { more } else { 0 };
        took
    }

    /// As [`Lease::covers`], and waits for its turn if there is no room.
    pub(in super::super) fn covers_soon(&mut self, bytes: usize) -> bool {
        if self.covers(bytes) {
            return true;
        }
        let leased = bytes - self.shared.own;
        assert!(leased <= self.shared.total, "{bytes} bytes are never to be had");
        let more = self.step_to(leased);
        let shared = Arc::clone(&self.shared);
        let mut books = shared.lock();
        let waiter = self.waiter(more);
        match self.ticket {
            Some(ticket) => {
                if let Some(before) = books.queue.waiter(ticket) {
                    // It may have become less meanwhile.
                    self.served_until = ticket.end(more);
                    shared.count_in(&waiter);
                    shared.count_out(&std::mem::replace(before, waiter));
                }
            }
            None => {
                shared.count_in(&waiter);
                let ticket = books.queue.join(self.seat.part.number, self.served_until, waiter);
                self.served_until = ticket.end(more);
                self.ticket = Some(ticket);
            }
        }
        // What was given back meanwhile was given before this one was counted.
        shared.serve(&mut books);
        drop(books);
        self.collect();
        leased <= self.bytes
    }

    fn waiter(&self, bytes: usize) -> Waiter {
        let (total, seat) = (self.bytes + bytes, Arc::clone(&self.seat));
        let is_modest = total <= seat.part.account.reserve();
        Waiter { bytes, total, is_modest, seat }
    }

    /// How much more it takes to lease `bytes`, in whole steps as far as the budget has them.
    fn step_to(&self, bytes: usize) -> usize {
        let most = self.shared.most_of(&self.seat.part.account);
        let stepped = bytes.next_multiple_of(STEP).min(most).max(bytes);
        stepped - self.bytes
    }

    /// Gives back what `bytes`, the connection's own included, do not need. Who waits for more keeps its place, and
    /// nothing but what it uses: else those who wait would wait for each other.
    pub(in super::super) fn shrink_to(&mut self, bytes: usize) {
        let leased = bytes.saturating_sub(self.shared.own).next_multiple_of(STEP);
        let Some(spare) = self.bytes.checked_sub(leased).filter(|&spare| spare > 0) else { return };
        let shared = Arc::clone(&self.shared);
        let account = &self.seat.part.account;
        if let Some(ticket) = self.ticket {
            let mut books = shared.lock();
            // What was granted has its use.
            let Some(waiter) = books.queue.waiter(ticket) else { return };
            waiter.bytes += spare;
            shared.release(account, spare);
            shared.serve(&mut books);
        } else {
            shared.give_back(account, spare);
        }
        self.bytes = leased;
    }

    /// So many bytes wait in the connection now.
    pub(in super::super) fn stash(&mut self, bytes: usize) {
        if bytes != self.stash {
            self.shared.stashed.fetch_add(bytes, Ordering::Relaxed);
            self.shared.stashed.fetch_sub(self.stash, Ordering::Relaxed);
            self.stash = bytes;
        }
    }

    /// How many bytes may be received at a time, of `most`: all of them may have to wait.
    pub(in super::super) fn window(&self, most: usize) -> usize {
        let left =
            self.shared.room_to_wait.saturating_sub(self.shared.stashed.load(Ordering::Relaxed));
        most.min(left.max(SHORT_WINDOW))
    }

    /// Whether it is of any bytes, or waits for some.
    pub(in super::super) fn is_any(&self) -> bool {
        self.bytes > 0 || self.is_waiting()
    }

    /// Whether it waits for more, as far as it has looked.
    pub(in super::super) fn is_waiting(&self) -> bool {
        self.ticket.is_some()
    }

    /// Whether others wait for memory that this one has some of: those of its own share, or, where that has more than its
    /// reserve, those of any. Those of another share that has all it may have wait for each other.
    pub(in super::super) fn is_wanted(&self) -> bool {
        if self.bytes == 0 {
            return false;
        }
        let part = &self.seat.part;
        part.waiting.load(Ordering::SeqCst) > 0
            || self.shared.is_short.load(Ordering::SeqCst)
                && (self.shared.has_one_share() || !part.account.has_reserved(0))
    }

    /// Takes what was granted.
    fn collect(&mut self) {
        if self.is_waiting() {
            let granted = self.seat.granted.swap(0, Ordering::SeqCst);
            if granted > 0 {
                self.bytes += granted;
                self.ticket = None;
            }
        }
    }

    /// Waits for no more memory.
    pub(in super::super) fn leave_queue(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let shared = Arc::clone(&self.shared);
        let mut books = shared.lock();
        if let Some(waiter) = books.queue.leave(ticket) {
            self.served_until = ticket.end(0);
            shared.count_out(&waiter);
        }
        // Those behind it may fit where it did not.
        shared.serve(&mut books);
        drop(books);
        self.collect();
        self.ticket = None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leave_queue();
        self.stash(0);
        if self.bytes > 0 {
            self.shared.give_back(&self.seat.part.account, self.bytes);
        }
    }
}
