//! Memory of ours that data goes through, where the disk cannot use the guest's: how much of it the queues of a disk have.
//!
//! A guest names how much is needed, by descriptors of memory that may be the same again and again, on each of its queues. So
//! there is a bound for all of them together. A queue that finds too little left puts its request back, and waits until another
//! one gives some back.

use std::sync::Arc;

use blockyard_buf::{Buffer, PAGE_SIZE, Pool, PoolLimits};
use parking_lot::Mutex;

use super::io::Ends;

/// The longest read or write whose data goes through memory of ours. Guests ask for a tenth of it, and align what they ask for.
pub(super) const MAX_BOUNCE: usize = 16 << 20;
/// Bytes of such memory that all queues of a disk have.
const ALL_BOUNCED: usize = 64 << 20;
/// Bytes of free memory that are kept for the next.
const KEPT_BYTES: usize = 4 << 20;

const _: () = assert!(MAX_BOUNCE <= ALL_BOUNCED, "the longest could never begin");

/// The memory of the queues of one disk.
pub(crate) struct BounceMemory {
    pool: Pool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    taken: usize,
    /// Queues that found too little left, each once.
    waiting: Vec<Arc<Ends>>,
}

impl BounceMemory {
    pub(crate) fn new() -> Self {
        let pool = Pool::new(PoolLimits { kept_bytes: KEPT_BYTES });
        Self { pool, state: Mutex::default() }
    }

    /// Memory of `len` bytes, and what it counts for. If there is not so much left, the queue is kicked when there is more.
    pub(super) fn take(&self, len: usize, queue: &Arc<Ends>) -> Option<(Buffer, usize)> {
        // Memory comes in powers of two from a page on.
        let charge = len.max(PAGE_SIZE).next_power_of_two();
        {
            let mut state = self.state.lock();
            if state.taken + charge > ALL_BOUNCED {
                if !is_in(&state.waiting, queue) {
                    state.waiting.push(Arc::clone(queue));
                }
                return None;
            }
            state.taken += charge;
        }
        Some((self.pool.get(len), charge))
    }

    /// Memory that counted for so much is not needed any more.
    pub(super) fn give_back(&self, charge: usize) {
        let waiting = {
            let mut state = self.state.lock();
            state.taken -= charge;
            std::mem::take(&mut state.waiting)
        };
        waiting.iter().for_each(|queue| queue.0.kick());
    }

    /// Whether that queue found too little left, and nothing was given back since.
    pub(super) fn is_waiting(&self, queue: &Arc<Ends>) -> bool {
        is_in(&self.state.lock().waiting, queue)
    }
}

fn is_in(queues: &[Arc<Ends>], queue: &Arc<Ends>) -> bool {
    queues.iter().any(|other| Arc::ptr_eq(other, queue))
}
