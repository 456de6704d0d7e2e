//! A disk of a driver with a bug.

use blockyard_blkmq::{Busy, Driver, HctxHandle, Request, Result, Status};

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
