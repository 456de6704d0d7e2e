//! The driver, as the block layer sees it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use blockyard_blkmq::{
    BlockDeviceOps, Busy, Driver, HctxHandle, InFlight, Request, Result, Status, TagSetConfig,
    Timeout,
};

use crate::disk::Inner;
use crate::hctx::Hctx;
use crate::task;

/// A disk that an NBD server keeps: see [`Nbd::connect`].
pub struct Nbd {
    pub(crate) inner: Arc<Inner>,
}

impl Nbd {
    /// The tag set of the disk for so many submitting threads: a hardware queue for each connection.
    #[must_use]
    pub fn tag_set_config(&self, cpus: usize) -> TagSetConfig {
        TagSetConfig {
            cpus,
            hw_queues: [self.inner.queues.len().min(cpus), 0, 0],
            timeout: self.inner.policy.timeout,
            ..TagSetConfig::default()
        }
    }
}

impl Driver for Nbd {
    type Disk = ();
    type Hctx = Hctx;
    type Cmd = ();

    fn init_hctx(&self, _disk: &(), handle: HctxHandle<Self>) -> Result<Hctx> {
        let index = handle.index();
        let depth = usize::try_from(handle.depth()).unwrap_or(usize::MAX);
        self.inner.take_queue(index, handle.clone())?;
        task::start(&self.inner, index, handle);
        Ok(Hctx::new(Arc::clone(&self.inner), index, depth))
    }

    fn exit_hctx(&self, _disk: &(), mut hctx: Hctx) {
        hctx.disconnect(Status::Offline);
        // Its tasks find it gone.
        self.inner.queues[hctx.index()].gone.store(true, Ordering::Release);
        self.inner.kick_all();
    }

    fn queue_rq(
        &self,
        hctx: &mut Hctx,
        rq: Request<Self>,
        last: bool,
    ) -> std::result::Result<(), Busy<Self>> {
        hctx.submit(rq);
        if last {
            hctx.send();
        }
        Ok(())
    }

    fn commit_rqs(&self, hctx: &mut Hctx) {
        hctx.send();
    }

    fn timeout(&self, hctx: &mut Hctx, _rq: &InFlight) -> Timeout {
        hctx.lose_dead();
        // It moves to another connection, or fails after dead_conn_timeout: that has its own timers.
        Timeout::ResetTimer
    }

    /// One that was given up while no server answered is still to be done, and what is lost meanwhile is
    /// [told](crate::Nbd::on_failed_flush).
    fn loses_by_flush(&self, status: Status) -> bool {
        !matches!(status, Status::Ok | Status::Transport)
    }

    fn poll(&self, hctx: &mut Hctx) -> usize {
        hctx.queue.live().map(|conn| conn.id).map_or(0, |id| {
            let before = hctx.queue.in_flight();
            hctx.turn(id);
            before.saturating_sub(hctx.queue.in_flight())
        })
    }
}

impl BlockDeviceOps for Nbd {}
