//! A disk that forgets in a power cut what was neither flushed nor written through.

use std::sync::{Arc, Mutex};

use blockyard_blkmq::{
    BlockDeviceOps, BlockSize, Busy, Driver, Features, Flags, HctxHandle, Limits, Op, Request,
    Result,
};
use blockyard_buf::Segment;

/// Bytes in memory, and which of them would be left.
pub struct Volatile(Mutex<Bytes>);

struct Bytes {
    now: Vec<u8>,
    durable: Vec<u8>,
}

impl Volatile {
    /// A disk of so many bytes, all zeroes.
    #[must_use]
    pub fn new(bytes: u64) -> Arc<Self> {
        let now = vec![0; usize::try_from(bytes).unwrap()];
        Arc::new(Self(Mutex::new(Bytes { durable: now.clone(), now })))
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
        self.0.lock().unwrap().durable[at..at + usize::try_from(len).unwrap()].to_vec()
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
        mut rq: Request<Self>,
        _last: bool,
    ) -> std::result::Result<(), Busy<Self>> {
        let mut bytes = self.0.lock().unwrap();
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
        Ok(())
    }
}

impl BlockDeviceOps for Volatile {}
