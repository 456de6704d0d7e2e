//! A disk that keeps its requests until it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blockyard_blkmq::{Busy, Disk, Driver, HctxHandle, Limits, Op, Request, Result, Status};
use blockyard_buf::Segment;
use parking_lot::Mutex;

use super::disk_of;

#[derive(Default)]
pub struct Held(Mutex<Vec<Request<Held>>>, AtomicBool);

impl Driver for Held {
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
        if self.1.load(Ordering::SeqCst) {
            rq.end(Status::Io);
        } else {
            self.0.lock().push(rq);
        }
        Ok(())
    }
}

/// The disk and its requests.
pub struct HeldDisk {
    pub driver: Arc<Held>,
    pub disk: Arc<Disk>,
}

impl HeldDisk {
    pub fn new(bytes: u64, limits: Limits) -> Self {
        let driver = Arc::<Held>::default();
        let disk = disk_of(Arc::clone(&driver), (), bytes, limits);
        Self { driver, disk }
    }

    /// How many requests it has.
    pub fn held(&self) -> usize {
        self.driver.0.lock().len()
    }

    /// Lets all go, from the calling thread, and says how many those were.
    pub fn release(&self, status: Status) -> usize {
        let requests = std::mem::take(&mut *self.driver.0.lock());
        let count = requests.len();
        for mut rq in requests {
            if rq.op() == Op::Read && status.is_ok() {
                rq.deliver(Segment::from_vec(vec![7; rq.len() as usize]));
            }
            rq.end(status);
        }
        count
    }
}

/// A test that fails does not hang.
impl Drop for HeldDisk {
    fn drop(&mut self) {
        self.driver.1.store(true, Ordering::SeqCst);
        self.release(Status::Io);
    }
}

/// A driver with a bug.
pub struct Panics;

impl Driver for Panics {
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
        rq.end(Status::Io);
        panic!("as a test wants it");
    }
}
