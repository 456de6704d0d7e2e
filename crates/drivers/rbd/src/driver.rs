//! The driver: a request becomes a task, which asks the image.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use blockyard_blkmq::{Busy, Driver, Error, HctxHandle, InFlight, Op, Request, Status, Timeout};
use blockyard_rbd::image::Image;
use blockyard_rbd::store::ObjectStore;
use tokio::runtime::Handle;
use tokio::sync::RwLock;

/// Locks that all objects of a disk share: it is by chance that two have the same.
const LOCKS: u64 = 64;

/// An image that is a disk's driver. Hardware queue `i` is served on queue thread `i`, modulo how many there are.
pub struct Rbd<S: ObjectStore> {
    pub(crate) shared: Arc<Shared<S>>,
    runtimes: Vec<Handle>,
}

/// What requests share.
pub(crate) struct Shared<S: ObjectStore> {
    /// What it is called in messages.
    pub(crate) name: String,
    pub(crate) image: RwLock<Image<S>>,
    /// Bytes of the image that the disk shows.
    pub(crate) size: AtomicU64,
    /// An object's lock: shared by those who write to it, and had alone by the one who may remove it.
    locks: Vec<RwLock<()>>,
    /// A failure was logged: the next ones are details.
    has_failed: AtomicBool,
    /// Held as long as the image is used: what keeps others from writing it.
    _guard: Box<dyn Any + Send + Sync>,
}

impl<S: ObjectStore> Rbd<S> {
    /// A driver of an image that was opened, and is [owned](Image::own) if it is to be written. `name` is for messages; `guard`
    /// is dropped with the driver. `queue_threads` are the runtimes that requests are served on; each must be driven.
    ///
    /// # Panics
    /// If there are no queue threads.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        image: Image<S>,
        guard: impl Any + Send + Sync,
        queue_threads: &[Handle],
    ) -> Arc<Self> {
        assert!(!queue_threads.is_empty(), "a disk needs a queue thread");
        let shared = Shared {
            name: name.into(),
            size: AtomicU64::new(image.size()),
            image: RwLock::new(image),
            locks: (0..LOCKS).map(|_| RwLock::new(())).collect(),
            has_failed: AtomicBool::new(false),
            _guard: Box::new(guard),
        };
        Arc::new(Self { shared: Arc::new(shared), runtimes: queue_threads.to_vec() })
    }

    /// The disk is smaller than the image, and has so many bytes of it. To be called before it is used.
    pub fn show(&self, bytes: u64) {
        self.shared.size.fetch_min(bytes, Ordering::AcqRel);
    }
}

impl<S: ObjectStore> Shared<S> {
    /// The lock of an object.
    pub(crate) fn lock(&self, object: u64) -> &RwLock<()> {
        // There are LOCKS of them.
        &self.locks[usize::try_from(object % LOCKS).unwrap_or_default()]
    }

    /// How an operation ended.
    pub(crate) fn status(&self, done: &Result<(), blockyard_rbd::Error>, op: Op) -> Status {
        let Err(error) = done else { return Status::Ok };
        if self.has_failed.swap(true, Ordering::AcqRel) {
            tracing::debug!(image = self.name, ?op, %error, "an operation has failed");
        } else {
            tracing::warn!(image = self.name, ?op, %error, "an operation has failed; the next ones are told with -vv");
        }
        match error.errno().map(|errno| errno.raw_os_error()) {
            // An object that is not there is no disk that is gone.
            Some(errno) => Status::from_errno(errno),
            None => Status::Io,
        }
    }
}

impl<S: ObjectStore> Driver for Rbd<S> {
    type Disk = ();
    type Hctx = Handle;
    type Cmd = ();

    fn init_hctx(&self, _disk: &(), queue: HctxHandle<Self>) -> Result<Handle, Error> {
        Ok(self.runtimes[queue.index() % self.runtimes.len()].clone())
    }

    fn queue_rq(
        &self,
        runtime: &mut Handle,
        rq: Request<Self>,
        _last: bool,
    ) -> Result<(), Busy<Self>> {
        // A runtime that has ended drops the task, and with it the request, which fails.
        runtime.spawn(crate::data::serve(Arc::clone(&self.shared), rq));
        Ok(())
    }

    /// A store is slow, not lost: it answers each operation once, or fails it in its own time.
    fn timeout(&self, _runtime: &mut Handle, _rq: &InFlight) -> Timeout {
        Timeout::ResetTimer
    }
}
