//! A disk in memory that answers later, in any order, and fails where it is told to.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockyard_blkmq::{Busy, Driver, Extent, HctxHandle, Op, Request, Result, Status};
use blockyard_buf::{Segment, copy_segments};
use parking_lot::Mutex;

use super::rng::Rng;
use super::{CLIENTS, REGION};

/// Requests whose range begins in the last part of a region fail, whatever they are.
pub const BAD: u64 = REGION - (64 << 10);

/// How late it may be.
pub const LONGEST: Duration = Duration::from_secs(600);
/// For how long one that hangs does.
pub const HANG: Duration = Duration::from_secs(2 * 3600);

pub struct Late(Mutex<State>);

struct State {
    /// It answers nothing before.
    thaw: Instant,
    bytes: Vec<u8>,
    held: Vec<(Instant, Request<Late>)>,
    /// Came since the last look.
    new: Vec<Request<Late>>,
    rng: Rng,
}

impl Late {
    /// One that answers nothing before `thaw`.
    pub fn new(seed: u64, thaw: Instant) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            thaw,
            bytes: vec![0; (CLIENTS * REGION) as usize],
            held: Vec::new(),
            new: Vec::new(),
            rng: Rng::new(seed),
        })))
    }

    /// Ends what is due; says whether that was anything.
    pub fn work(&self, now: Instant) -> bool {
        let mut due = Vec::new();
        {
            let state = &mut *self.0.lock();
            for rq in std::mem::take(&mut state.new) {
                let delay = match state.rng.below(40) {
                    0 => LONGEST,
                    1..10 => Duration::from_millis(state.rng.below(2000)),
                    _ => Duration::ZERO,
                };
                state.held.push((state.thaw.max(now + delay), rq));
            }
            let order = state.rng.shuffled(state.held.len());
            let mut held: Vec<_> = std::mem::take(&mut state.held).into_iter().map(Some).collect();
            for at in order {
                let Some((when, rq)) = held[at].take() else { continue };
                if when <= now {
                    due.push(rq);
                } else {
                    state.held.push((when, rq));
                }
            }
        }
        let any = !due.is_empty();
        for mut rq in due {
            let status = self.carry_out(&mut rq);
            rq.end(status);
        }
        any
    }

    fn carry_out(&self, rq: &mut Request<Self>) -> Status {
        let start = rq.sector().bytes();
        if start % REGION >= BAD && rq.op() != Op::Flush {
            return Status::Medium;
        }
        let bytes = &mut self.0.lock().bytes;
        let range = start as usize..(start + rq.len()) as usize;
        match rq.op() {
            Op::Read => {
                let data = Segment::from_vec(bytes[range].to_vec());
                if rq.wants_supply() {
                    rq.deliver(data);
                } else {
                    let places: Vec<_> = rq.segments().collect();
                    copy_segments(&places, &[data]);
                }
            }
            Op::Write => {
                let mut at = range.start;
                for segment in rq.segments() {
                    segment.copy_to(&mut bytes[at..at + segment.len()]);
                    at += segment.len();
                }
            }
            Op::WriteZeroes | Op::Discard => bytes[range].fill(0),
            Op::BlockStatus => rq.push_extent(Extent::data(rq.len())),
            _ => {}
        }
        Status::Ok
    }

    /// What is there now.
    pub fn content(&self, range: Range<u64>) -> Vec<u8> {
        self.0.lock().bytes[range.start as usize..range.end as usize].to_vec()
    }

    /// When something is due next.
    pub fn wakes(&self) -> Option<Instant> {
        self.0.lock().held.iter().map(|held| held.0).min()
    }
}

impl Driver for Late {
    type Disk = ();
    type Hctx = ();
    type Cmd = ();

    fn init_hctx(&self, _disk: &(), _queue: HctxHandle<Self>) -> Result<()> {
        Ok(())
    }

    fn queue_rq(
        &self,
        _hctx: &mut (),
        rq: Request<Self>,
        _last: bool,
    ) -> std::result::Result<(), Busy<Self>> {
        self.0.lock().new.push(rq);
        Ok(())
    }
}
