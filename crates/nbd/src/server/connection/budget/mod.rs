//! Memory that all connections of a server share.

mod lease;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use super::queue::{Queue, Turn};
pub use lease::Lease;

/// The part of a budget that is set apart for small requests: each connection has its share of that, whatever
/// the others hold.
const SET_APART: usize = 8;
/// The part of a budget for what has come of requests that cannot begin.
const WAITING: usize = 16;
/// The part of what can be leased that shares may have for themselves: one in so many.
const RESERVED: usize = 2;
/// The least and the most that a connection has for itself, in bytes.
const OWN: (usize, usize) = (4 << 10, 64 << 10);
/// What leases grow by, in bytes.
const STEP: usize = 64 << 10;

/// Bytes that the requests and replies of all connections together may occupy.
///
/// Each connection has some bytes [for itself](Self::own), so that small requests always pass. For more it takes a
/// [`Lease`] out of the [share](MemoryShare) of its export; who finds no room waits. Those who wait are served so that
/// all of them get as many bytes, however long their requests are.
#[derive(Clone, Debug)]
pub struct MemoryBudget(Arc<Shared>);

/// What the connections of one export may lease.
///
/// A share has a reserve, which nobody else takes: as much as [the largest request](MemoryBudget::new) needs, or an equal part
/// of half of all memory, if that is less. Beyond that it takes no more than half of what the others do not claim, or what
/// [it was made for](MemoryBudget::share) if that is more and there. So however many exports have a disk that does not answer,
/// the others go on within their reserves. A share that is made when the others have all gets its reserve as soon as they
/// give some back.
#[derive(Clone, Debug)]
pub struct MemoryShare {
    part: Arc<Part>,
}

#[derive(Debug)]
struct Shared {
    /// Bytes that can be leased.
    total: usize,
    /// Bytes that a connection has without a lease.
    own: usize,
    /// Bytes of the largest request.
    largest: usize,
    /// Bytes that may wait in connections, and that do.
    room_to_wait: usize,
    stashed: AtomicUsize,
    taken: AtomicUsize,
    /// Bytes of all reserves.
    reserved: AtomicUsize,
    /// How many wait: whoever gives back looks at it without the lock.
    waiting: AtomicUsize,
    /// One of them waits for what connections of any share have.
    is_short: AtomicBool,
    /// A share has come or gone, or there was not enough for every reserve: they are to be dealt out anew.
    is_uneven: AtomicBool,
    /// How many shares there are, and how many there have been.
    shares: AtomicUsize,
    numbers: AtomicUsize,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    queue: Queue<Waiter>,
    accounts: Vec<Arc<Account>>,
}

/// What a share has.
#[derive(Debug)]
pub(super) struct Account {
    /// What it may take if there is as much, whatever the others have.
    floor: usize,
    /// Its reserve, with what it has taken of that. Changes with the lock held only.
    reserve: AtomicUsize,
    taken: AtomicUsize,
    is_closed: AtomicBool,
}

/// A share, as the budget sees it: until the last of its leases has gone.
#[derive(Debug)]
pub(super) struct Part {
    shared: Arc<Shared>,
    /// No other has had it.
    number: usize,
    account: Arc<Account>,
    /// How many of its connections wait, and how many of these for no more than a reserve has.
    waiting: AtomicUsize,
    modest: AtomicUsize,
}

#[derive(Debug)]
struct Waiter {
    /// How much more it waits for.
    bytes: usize,
    /// How much it has with that.
    total: usize,
    /// It is counted among those that a reserve is enough for.
    is_modest: bool,
    seat: Arc<Seat>,
}

/// Where a lease is told that it has grown.
struct Seat {
    part: Arc<Part>,
    granted: AtomicUsize,
    waker: Waker,
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("granted", &self.granted).finish_non_exhaustive()
    }
}

impl MemoryBudget {
    /// `bytes` for up to `connections` of them, whose requests need `largest` bytes at most.
    #[must_use]
    pub fn new(bytes: usize, connections: usize, largest: usize) -> Self {
        let connections = connections.max(1);
        let own = (bytes / SET_APART / connections).clamp(OWN.0, OWN.1);
        let common = bytes.saturating_sub(own.saturating_mul(connections).min(bytes / 2));
        let room_to_wait = (bytes / WAITING).min(common.saturating_sub(largest));
        Self(Arc::new(Shared {
            total: common - room_to_wait,
            own,
            largest,
            room_to_wait,
            stashed: AtomicUsize::new(0),
            taken: AtomicUsize::new(0),
            reserved: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            is_short: AtomicBool::new(false),
            is_uneven: AtomicBool::new(false),
            shares: AtomicUsize::new(0),
            numbers: AtomicUsize::new(0),
            books: Mutex::default(),
        }))
    }

    /// A share for connections that may lease `floor` bytes together whatever the others have, if there are as many. The only
    /// share takes all.
    #[must_use]
    pub fn share(&self, floor: usize) -> MemoryShare {
        let account = Arc::new(Account {
            floor: floor.min(self.0.total),
            reserve: AtomicUsize::new(0),
            taken: AtomicUsize::new(0),
            is_closed: AtomicBool::new(false),
        });
        let part = Part {
            shared: Arc::clone(&self.0),
            number: self.0.numbers.fetch_add(1, Ordering::Relaxed),
            account: Arc::clone(&account),
            waiting: AtomicUsize::new(0),
            modest: AtomicUsize::new(0),
        };
        let mut books = self.0.lock();
        self.0.shares.fetch_add(1, Ordering::SeqCst);
        books.accounts.push(account);
        self.0.deal_out(&mut books);
        MemoryShare { part: Arc::new(part) }
    }

    /// Bytes that each connection has for itself.
    #[must_use]
    pub fn own(&self) -> usize {
        self.0.own
    }

    /// The most that one lease can ever be.
    #[must_use]
    pub fn largest_lease(&self) -> usize {
        self.0.total
    }

    /// Bytes that are leased.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Relaxed)
    }

    /// Bytes that wait in connections.
    #[must_use]
    pub fn stashed(&self) -> usize {
        self.0.stashed.load(Ordering::Relaxed)
    }

    /// Whether somebody waits for memory.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        self.0.waiting.load(Ordering::Relaxed) > 0
    }
}

impl MemoryShare {
    /// A lease of nothing. `waker` is woken when one that waits has grown.
    #[must_use]
    pub fn lease(&self, waker: Waker) -> Lease {
        let part = Arc::clone(&self.part);
        let seat = Arc::new(Seat { part, granted: AtomicUsize::new(0), waker });
        Lease::new(Arc::clone(&self.part.shared), seat)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // No look at who waits: this may be where they are served. Whoever may have more now gets it with the next bytes
        // that are given back, or when it asks again.
        self.account.is_closed.store(true, Ordering::SeqCst);
        self.shared.shares.fetch_sub(1, Ordering::SeqCst);
        self.shared.is_uneven.store(true, Ordering::SeqCst);
    }
}

impl Account {
    fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    fn reserve(&self) -> usize {
        self.reserve.load(Ordering::SeqCst)
    }

    /// What nobody else may have: its reserve, or what it has taken.
    fn claim(&self) -> usize {
        self.reserve().max(self.taken())
    }

    /// Whether it may have so many bytes more out of its reserve.
    fn has_reserved(&self, bytes: usize) -> bool {
        self.taken().saturating_add(bytes) <= self.reserve()
    }
}

impl Books {
    /// What all shares claim together.
    fn claims(&self) -> usize {
        self.accounts.iter().map(|account| account.claim()).sum()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_one_share(&self) -> bool {
        self.shares.load(Ordering::Relaxed) <= 1
    }

    /// The most that a share can ever have, whatever the others do.
    fn most_of(&self, account: &Account) -> usize {
        if self.has_one_share() {
            return self.total;
        }
        let reserve = account.reserve();
        let of_others = self.reserved.load(Ordering::SeqCst).saturating_sub(reserve);
        account.floor.min(self.total.saturating_sub(of_others)).max(reserve)
    }

    /// Sees to it that each share has its reserve, as far as there are bytes for it that nobody has.
    fn deal_out(&self, books: &mut Books) {
        self.is_uneven.store(false, Ordering::SeqCst);
        let accounts = &mut books.accounts;
        accounts.retain(|account| !account.is_closed.load(Ordering::SeqCst));
        let count = accounts.len().max(1);
        // One of the largest requests has room beside them.
        let most = (self.total / RESERVED).min(self.total.saturating_sub(self.largest));
        let target = if count == 1 { 0 } else { self.largest.min(most / count) };
        for account in accounts.iter().filter(|account| account.reserve() > target) {
            account.reserve.store(target, Ordering::SeqCst);
        }
        let claims = accounts.iter().map(|account| account.claim()).sum();
        let mut left = self.total.saturating_sub(claims);
        let (mut reserved, mut is_uneven) = (0, false);
        for account in accounts.iter() {
            let (before, claim) = (account.reserve(), account.claim());
            let reserve = target.min(claim.saturating_add(left)).max(before);
            account.reserve.store(reserve, Ordering::SeqCst);
            left = left.saturating_sub(reserve.saturating_sub(claim));
            is_uneven |= reserve < target;
            reserved += reserve;
        }
        self.reserved.store(reserved, Ordering::SeqCst);
        if is_uneven {
            self.is_uneven.store(true, Ordering::SeqCst);
        }
    }

    /// Counts bytes that are taken, if there are as many.
    fn count(&self, bytes: usize) -> bool {
        let more = |taken: usize| taken.checked_add(bytes).filter(|&sum| sum <= self.total);
        self.taken.fetch_update(Ordering::SeqCst, Ordering::Relaxed, more).is_ok()
    }

    /// Takes bytes out of the reserve of a share. That takes nothing from others.
    fn take_reserved(&self, account: &Account, bytes: usize) -> bool {
        let reserve = account.reserve();
        let more = |taken: usize| taken.checked_add(bytes).filter(|&sum| sum <= reserve);
        if account.taken.fetch_update(Ordering::SeqCst, Ordering::Relaxed, more).is_err() {
            return false;
        }
        let is_there = self.count(bytes);
        if !is_there {
            account.taken.fetch_sub(bytes, Ordering::SeqCst);
        }
        is_there
    }

    /// Whether a share may have so many bytes more, if they are there, where all together claim so many.
    fn admits(&self, account: &Account, claims: usize, bytes: usize) -> bool {
        let others = claims.saturating_sub(account.claim());
        let fair = self.total.saturating_sub(others) / 2;
        self.has_one_share() || account.taken() + bytes <= fair.max(account.floor)
    }

    /// Takes bytes, of the reserve of a share or of what nobody claims.
    fn take(&self, account: &Account, claims: usize, bytes: usize) -> bool {
        if self.take_reserved(account, bytes) {
            return true;
        }
        if !self.admits(account, claims, bytes) {
            return false;
        }
        let others = claims.saturating_sub(account.claim());
        let is_free = others + account.taken() + bytes <= self.total;
        let took = (is_free || self.has_one_share()) && self.count(bytes);
        if took {
            account.taken.fetch_add(bytes, Ordering::SeqCst);
        }
        took
    }

    /// Takes bytes for somebody who does not wait, if nobody who does comes first.
    fn take_at_once(&self, part: &Part, bytes: usize) -> bool {
        let has_rivals =
            || part.waiting.load(Ordering::SeqCst) > 0 || self.is_short.load(Ordering::SeqCst);
        if self.has_one_share() {
            let took = !has_rivals() && self.count(bytes);
            part.account.taken.fetch_add(if took { bytes } else { 0 }, Ordering::SeqCst);
            return took;
        }
        if part.modest.load(Ordering::SeqCst) == 0 && part.account.has_reserved(bytes) {
            if self.take_reserved(&part.account, bytes) {
                return true;
            }
            // Who began to wait meanwhile may have seen bytes as taken that were not.
            self.serve_if_any();
        }
        if has_rivals() || self.taken.load(Ordering::SeqCst).saturating_add(bytes) > self.total {
            return false;
        }
        let mut books = self.lock();
        if self.is_uneven.load(Ordering::SeqCst) {
            self.deal_out(&mut books);
        }
        self.take(&part.account, books.claims(), bytes)
    }

    /// Without a look at who waits.
    fn release(&self, account: &Account, bytes: usize) {
        account.taken.fetch_sub(bytes, Ordering::SeqCst);
        self.taken.fetch_sub(bytes, Ordering::SeqCst);
    }

    fn give_back(&self, account: &Account, bytes: usize) {
        self.release(account, bytes);
        self.serve_if_any();
    }

    fn serve_if_any(&self) {
        // In this order: who begins to wait is counted before it tries for the last time.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.serve(&mut self.lock());
        }
    }

    /// Grants what there is room for: first to whom has had least. Nobody is kept waiting by others of a share that has all it
    /// may have, nor is who needs no more than its share's reserve by anybody who needs more.
    fn serve(&self, books: &mut Books) {
        if self.is_uneven.load(Ordering::SeqCst) {
            self.deal_out(books);
        }
        let mut is_short = false;
        loop {
            let claims = books.claims();
            let turn = |waiter: &Waiter| self.turn(waiter, claims, is_short);
            let Some((ticket, first)) = books.queue.first(turn) else { break };
            let (bytes, seat) = (first.bytes, Arc::clone(&first.seat));
            if !self.take(&seat.part.account, claims, bytes) {
                if std::mem::replace(&mut is_short, true) {
                    break;
                }
                continue;
            }
            if let Some(waiter) = books.queue.serve(ticket) {
                self.count_out(&waiter);
            }
            seat.granted.fetch_add(bytes, Ordering::SeqCst);
            seat.waker.wake_by_ref();
        }
        self.is_short.store(is_short, Ordering::SeqCst);
    }

    /// What becomes of one who waits, where there may be nothing left but reserves.
    fn turn(&self, waiter: &Waiter, claims: usize, is_short: bool) -> Turn {
        let (account, bytes) = (&waiter.seat.part.account, waiter.bytes);
        if account.has_reserved(bytes) || !is_short && self.admits(account, claims, bytes) {
            Turn::Now
        } else if waiter.total > account.reserve() && account.taken() < account.reserve() {
            Turn::LetsPass
        } else {
            Turn::Waits
        }
    }

    fn count_in(&self, waiter: &Waiter) {
        let part = &waiter.seat.part;
        part.modest.fetch_add(usize::from(waiter.is_modest), Ordering::SeqCst);
        part.waiting.fetch_add(1, Ordering::SeqCst);
        self.waiting.fetch_add(1, Ordering::SeqCst);
    }

    fn count_out(&self, waiter: &Waiter) {
        let part = &waiter.seat.part;
        part.modest.fetch_sub(usize::from(waiter.is_modest), Ordering::SeqCst);
        part.waiting.fetch_sub(1, Ordering::SeqCst);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
