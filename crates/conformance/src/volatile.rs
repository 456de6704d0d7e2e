//! A disk that forgets in a power cut what was neither flushed nor written through. It carries requests out at once and in order,
//! or late and in any.

use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use blockyard_blkmq::{
    BlockDeviceOps, BlockSize, Busy, Driver, Features, Flags, HctxHandle, Limits, Op, Request,
    Result,
};
use blockyard_buf::Segment;

use crate::cases::Random;

/// Bytes in memory, and which of them would be left.
pub struct Volatile {
    bytes: Mutex<Bytes>,
    late: Option<Arc<Late>>,
}

struct Bytes {
    now: Vec<u8>,
    durable: Vec<u8>,
}

/// Requests that have not been carried out.
#[derive(Default)]
struct Late {
    state: Mutex<Waiting>,
    came: Condvar,
}

#[derive(Default)]
struct Waiting {
    requests: Vec<Request<Volatile>>,
    is_over: bool,
}

/// Carries requests out as long as it lives, each after some that came later, or before some that came sooner.
pub struct Carrier {
    late: Arc<Late>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.late.state.lock().unwrap().is_over = true;
        self.late.came.notify_all();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the thread of a late disk");
        }
    }
}

impl Volatile {
    /// A disk of so many bytes, all zeroes.
    #[must_use]
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { bytes: Self::zeroes(bytes), late: None })
    }

    /// The same, late and in an order that a seed makes. What carries requests out is to be dropped after the disk.
    #[must_use]
    pub fn late(bytes: u64, seed: u64) -> (Arc<Self>, Carrier) {
        let late = Arc::<Late>::default();
        let volatile = Arc::new(Self { bytes: Self::zeroes(bytes), late: Some(Arc::clone(&late)) });
        let (own, disk) = (Arc::clone(&late), Arc::clone(&volatile));
        let thread = std::thread::spawn(move || disk.carry_out(&own, Random::new(seed)));
        (volatile, Carrier { late, thread: Some(thread) })
    }

    fn zeroes(bytes: u64) -> Mutex<Bytes> {
        let now = vec![0; usize::try_from(bytes).unwrap()];
        Mutex::new(Bytes { durable: now.clone(), now })
    }

    fn carry_out(&self, late: &Late, mut random: Random) {
        loop {
            let waiting = late.state.lock().unwrap();
            let none = |state: &mut Waiting| state.requests.is_empty() && !state.is_over;
            let mut waiting = late.came.wait_while(waiting, none).unwrap();
            if waiting.requests.is_empty() {
                return;
            }
            let at = random.below(waiting.requests.len() as u64);
            let rq = waiting.requests.swap_remove(at.try_into().unwrap());
            drop(waiting);
            // Others may come before it is done, and before it is known to be.
            std::thread::yield_now();
            self.run(rq);
        }
    }

    fn run(&self, mut rq: Request<Self>) {
        let mut bytes = self.bytes.lock().unwrap();
        let from = usize::try_from(rq.offset()).unwrap();
        let range = from..from + usize::try_from(rq.len()).unwrap();
        match rq.op() {
            Op::Read => rq.deliver(Segment::from_vec(bytes.now[range].to_vec())),
            Op::Write => {
                let mut at = from;
                for segment in rq.segments() {
                    segment.copy_to(&mut bytes.now[at..at + segment.len()]);
                    at += segment.len();
                }
                if rq.flags().contains(Flags::FUA) {
                    let Bytes { now, durable } = &mut *bytes;
                    durable[range.clone()].copy_from_slice(&now[range]);
                }
            }
            Op::Flush => {
                let Bytes { now, durable } = &mut *bytes;
                durable.copy_from_slice(now);
            }
            _ => {}
        }
        drop(bytes);
        rq.end(blockyard_blkmq::Status::Ok);
    }

    /// What it can take.
    #[must_use]
    pub fn limits(block: BlockSize, fua: bool) -> Limits {
        let mut features = Features::WRITE_CACHE;
        features.set(Features::FUA, fua);
        Limits { logical_block_size: block, features, ..Limits::default() }
    }

    /// What a power cut would leave of a range.
    #[must_use]
    pub fn survivors(&self, at: u64, len: u64) -> Vec<u8> {
        let at = usize::try_from(at).unwrap();
        self.bytes.lock().unwrap().durable[at..at + usize::try_from(len).unwrap()].to_vec()
    }
}

impl Driver for Volatile {
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
        if let Some(late) = &self.late {
            late.state.lock().unwrap().requests.push(rq);
            late.came.notify_all();
        } else {
            self.run(rq);
        }
        Ok(())
    }
}

impl BlockDeviceOps for Volatile {}
