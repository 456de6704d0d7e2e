//! The driver: a request becomes a task, which asks the image.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use blockyard_blkmq::{Busy, Driver, Error, HctxHandle, InFlight, Op, Request, Status, Timeout};
use blockyard_rbd::store::ObjectStore;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::opened::Opened;

/// An image that is a disk's driver. Hardware queue `i` is served on queue thread `i`, modulo how many there are.
pub struct Rbd<S: ObjectStore> {
    pub(crate) shared: Arc<Shared<S>>,
    runtimes: Vec<Handle>,
}

/// What requests share.
pub(crate) struct Shared<S: ObjectStore> {
    /// What it is called in messages.
    pub(crate) name: String,
    pub(crate) image: Opened<S>,
    /// Bytes of the image that the disk shows; they change while nothing is out.
    pub(crate) size: AtomicU64,
    /// Wakes all that is out: it fails.
    pub(crate) cleared: Notify,
    /// So does all that comes.
    pub(crate) is_over: AtomicBool,
    /// A failure was logged: the next ones are details.
    has_failed: AtomicBool,
    /// Held as long as the image is used: what keeps others from writing it.
    _guard: Box<dyn Any + Send + Sync>,
}

impl<S: ObjectStore> Rbd<S> {
    /// A driver of an image that was opened. One that is not [live](Opened::Live) is owned, if it is to be written. `name` is for
    /// messages; `guard` is dropped with the driver. `queue_threads` are the runtimes that requests are served on; each must be
    /// driven.
    ///
    /// # Panics
    /// If there are no queue threads.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        image: impl Into<Opened<S>>,
        guard: impl Any + Send + Sync,
        queue_threads: &[Handle],
    ) -> Arc<Self> {
        assert!(!queue_threads.is_empty(), "a disk needs a queue thread");
        let image = image.into();
        let shared = Shared {
            name: name.into(),
            size: AtomicU64::new(image.size()),
            image,
            cleared: Notify::new(),
            is_over: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            _guard: Box::new(guard),
        };
        Arc::new(Self { shared: Arc::new(shared), runtimes: queue_threads.to_vec() })
    }

    /// Fails all that is out. What the store was asked for it may do all the same, and the image is not closed before.
    pub fn clear_queue(&self) {
        self.shared.cleared.notify_waiters();
    }

    /// Fails all that is out, and all that comes: nobody waits for the store any more.
    pub fn end(&self) {
        self.shared.is_over.store(true, Ordering::Release);
        self.clear_queue();
    }

    /// Makes what was written durable, and gives the lock of the image back. The disk is not used after that.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn close(&self) -> Result<(), blockyard_rbd::Error> {
        self.shared.image.close().await
    }

    /// Calls `tell` with each size that others give the image from now on, until that says that nobody listens any more. It may
    /// wait until nothing is out. A client that the cluster keeps out is logged.
    pub fn sizes<T>(&self, tell: T) -> impl Future<Output = ()> + Send + use<S, T>
    where
        T: FnMut(u64) -> bool + Send + 'static,
    {
        let (status, shown) =
            (self.shared.image.status(), self.shared.size.load(Ordering::Acquire));
        let name = self.shared.name.clone();
        async move {
            let Some(mut status) = status else { return };
            let (mut told, mut tell, mut was_fenced) = (shown, tell, false);
            loop {
                let blockyard_rbd::live::Status { size, is_fenced, .. } =
                    *status.borrow_and_update();
                if is_fenced && !was_fenced {
                    was_fenced = true;
                    tracing::warn!(
                        image = name,
                        "client blocklisted by the cluster; all requests fail until the disk is removed and added again"
                    );
                }
                if size != told {
                    told = size;
                    let telling = move || {
                        let goes_on = tell(size);
                        (tell, goes_on)
                    };
                    tell = match tokio::task::spawn_blocking(telling).await {
                        Ok((tell, true)) => tell,
                        _ => return,
                    };
                }
                if status.changed().await.is_err() {
                    return;
                }
            }
        }
    }

    /// The disk is smaller than the image, and has so many bytes of it. To be called before it is used.
    pub fn show(&self, bytes: u64) {
        self.shared.size.fetch_min(bytes, Ordering::AcqRel);
    }
}

impl<S: ObjectStore> Shared<S> {
    /// How an operation ended.
    pub(crate) fn status(&self, done: &Result<(), blockyard_rbd::Error>, op: Op) -> Status {
        let Err(error) = done else { return Status::Ok };
        if self.has_failed.swap(true, Ordering::AcqRel) {
            tracing::debug!(image = self.name, ?op, %error, "operation failed");
        } else {
            tracing::warn!(image = self.name, ?op, %error, "operation failed (further ones at -vv)");
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

    /// A store is slow, not lost: it answers each operation once, or fails it in its own time. Who does not wait so long
    /// [clears the queue](Rbd::clear_queue).
    fn timeout(&self, _runtime: &mut Handle, _rq: &InFlight) -> Timeout {
        Timeout::ResetTimer
    }
}
