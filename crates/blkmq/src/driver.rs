//! What a driver is to the block layer (kernel: `struct blk_mq_ops`).

use std::fmt;

use crate::error::Result;
use crate::hctx::HctxHandle;
use crate::op::{Op, Status};
use crate::queue_map::QueueMaps;
use crate::request::Request;
use crate::units::Sector;

/// A driver: it takes requests, and sees to it that each ends exactly once.
///
/// All that concerns one hardware queue is in its [`Driver::Hctx`], which only one caller at a time holds. A
/// driver completes a request at once, within [`Driver::queue_rq`]; or later, having kept it, through
/// [`HctxHandle::with`] or from anywhere else: the request is its own.
pub trait Driver: Send + Sync + Sized + 'static {
    /// What a disk of this driver has for itself, where several share a tag set (kernel: `queuedata`).
    type Disk: Send + Sync + 'static;
    /// What a hardware queue of a disk has for itself.
    type Hctx: Send + 'static;
    /// What a request has for the driver (kernel: `cmd_size` bytes behind it).
    type Cmd: Send + Default + 'static;

    /// Sets a hardware queue up.
    ///
    /// # Errors
    /// Whatever keeps it from working; the disk is not made then.
    fn init_hctx(&self, disk: &Self::Disk, queue: HctxHandle<Self>) -> Result<Self::Hctx>;

    /// Takes a hardware queue down. No request is out, none will come.
    fn exit_hctx(&self, _disk: &Self::Disk, _hctx: Self::Hctx) {}

    /// Prepares the driver's part of a request, once, before its first use; the flush request too.
    ///
    /// # Errors
    /// Whatever keeps it from working; the disk is not made then.
    fn init_request(&self, _disk: &Self::Disk, _cmd: &mut Self::Cmd, _hctx: usize) -> Result<()> {
        Ok(())
    }

    /// The reverse of [`Driver::init_request`].
    fn exit_request(&self, _disk: &Self::Disk, _cmd: &mut Self::Cmd, _hctx: usize) {}

    /// Takes a request. `last`: none follows at once; before that, the driver may gather, and is told by
    /// [`Driver::commit_rqs`] if nothing follows after all.
    ///
    /// # Errors
    /// [`Busy`] hands the request back, to be tried again.
    fn queue_rq(
        &self,
        hctx: &mut Self::Hctx,
        rq: Request<Self>,
        last: bool,
    ) -> Result<(), Busy<Self>>;

    /// Sends what was gathered.
    fn commit_rqs(&self, _hctx: &mut Self::Hctx) {}

    /// A budget that the driver gives to each request before it is taken from a queue: `get` and `put` come as
    /// a pair or not at all.
    fn budget(&self) -> Option<&dyn Budget> {
        None
    }

    /// A request is out for longer than the queue's timeout.
    fn timeout(&self, _hctx: &mut Self::Hctx, _rq: &InFlight) -> Timeout {
        Timeout::ResetTimer
    }

    /// Whether something may be lost because a flush has ended so, and is so for good, whatever the next one says. A driver that
    /// knows better what is not flushed tells of that by itself ([`Disk::flush_failed`](crate::Disk::flush_failed)), and says
    /// no where a flush was not carried out.
    fn loses_by_flush(&self, status: Status) -> bool {
        !status.is_ok()
    }

    /// Looks for completions, for submitters that poll; says how many it found.
    fn poll(&self, _hctx: &mut Self::Hctx) -> usize {
        0
    }

    /// Ends a request that [`Request::complete`] was called for.
    fn complete(&self, rq: Request<Self>) {
        let status = rq.status();
        rq.end(status);
    }

    /// A request that the driver had begun with was handed back, by [`Busy`] or [`Request::requeue`]: it will
    /// come again as if for the first time. Frees what is held for it.
    fn cleanup_rq(&self, _cmd: &mut Self::Cmd) {}

    /// Says which CPU submits to which hardware queue, for each type of queue; spread evenly unless the driver
    /// knows better.
    fn map_queues(&self, maps: &mut QueueMaps) {
        maps.spread();
    }

    /// What the driver knows of a request, for people who look for one that is stuck.
    fn show_rq(&self, _cmd: &Self::Cmd, _out: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

/// A request that a driver could not take, and why.
pub enum Busy<D: Driver> {
    /// Something that is not the queue's own is short: try again after a while, or when a request ends (kernel:
    /// `BLK_STS_RESOURCE`).
    Resource(Request<D>),
    /// The driver is full, and will call [`HctxHandle::run`] as soon as it is not (kernel:
    /// `BLK_STS_DEV_RESOURCE`).
    Device(Request<D>),
}

impl<D: Driver> fmt::Debug for Busy<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resource(rq) => f.debug_tuple("Resource").field(rq).finish(),
            Self::Device(rq) => f.debug_tuple("Device").field(rq).finish(),
        }
    }
}

/// A bound on what a driver has out, counted across its queues.
pub trait Budget {
    /// Takes a unit, if there is one. A driver without one left calls [`HctxHandle::run`] when there is.
    fn get(&self) -> bool;
    /// Gives one back, unused: the driver itself gives those back that a request took along. Whoever was refused meanwhile is
    /// to be run, as with those; it is called with no lock held that this needs.
    fn put(&self);
}

/// What a driver says of a request that is out for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// It has ended, or is about to: the driver sees to it (kernel: `BLK_EH_DONE`).
    Done,
    /// It is slow, not lost: ask again after another timeout.
    ResetTimer,
}

/// A request that is with the driver, as far as the block layer knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Its tag.
    pub tag: u32,
    /// Its tag and its generation, as [`Request::cookie`].
    pub cookie: u64,
    /// What it does.
    pub op: Op,
    /// Where.
    pub sector: Sector,
    /// To how many bytes.
    pub len: u64,
    /// How long it is out, in nanoseconds.
    pub age_ns: u64,
}

/// What a driver gives to end a request at once: the usual end of a `queue_rq` that is done.
impl<D: Driver> Request<D> {
    /// Ends it with what `result` says: an error of the operating system is mapped to a status.
    pub fn end_io(self, result: &std::io::Result<()>) {
        let status = match result {
            Ok(()) => Status::Ok,
            Err(err) => err.raw_os_error().map_or(Status::Io, Status::from_errno),
        };
        self.end(status);
    }
}
