//! The driver: it opens a file and gives each hardware queue its share of it.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use blockyard_blkmq::{
    Busy, Driver, Error as BlkError, ErrorKind as BlkErrorKind, FailedFlush, HctxHandle, InFlight,
    Request, Timeout,
};
use blockyard_buf::PagePool;
use blockyard_sys::lock::Lock;
use blockyard_sys::{Files, IoEngine, Pool as Threads, Writer, page_cache, uring};
use tokio::runtime::Handle;

use crate::config::{Engine, FileConfig};
use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::limits::{Info, limits};
use crate::open::open;
use crate::queue::{Owner, Queue};

/// A file that is a disk's driver. Hardware queue `i` completes on queue thread `i`, modulo how many there are.
pub struct File {
    pub(crate) files: Files,
    /// Held as long as the driver lives.
    _lock: Option<Lock>,
    engine: IoEngine,
    /// Whether threads will do where io_uring turns out not to.
    may_fall_back: bool,
    threads: Threads,
    writer: Option<Writer<Owner>>,
    runtimes: Vec<Handle>,
    pub(crate) context: Arc<Context>,
}

impl File {
    /// Opens a file, and says what a disk in it is. `queue_threads` are the runtimes that completions come by;
    /// each must be driven, and have I/O enabled.
    ///
    /// # Errors
    /// [`Error`] says what is wrong with the file, and what to do.
    pub fn open(config: &FileConfig, queue_threads: &[Handle]) -> Result<(Arc<Self>, Info), Error> {
        if queue_threads.is_empty() {
            let what = format!("{}: a disk needs a queue thread", config.path.display());
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let opened = open(config)?;
        let can_try = opened.is_block_device || page_cache::can_try(opened.files.data.as_fd());
        let engine = engine(config, can_try, uring::available)?;
        let limits = limits(config, &opened)?;
        let block = if opened.is_block_device { limits.logical_block_size.bytes() } else { 1 };
        let info = Info {
            size: opened.size,
            capacity: limits.logical_block_size.padded(opened.size).0,
            limits,
            read_only: config.read_only,
            is_block_device: opened.is_block_device,
            direct: config.direct,
            engine,
        };
        let align = |pick: fn(&blockyard_sys::direct::Alignment) -> u32| {
            opened.alignment.as_ref().map_or(1, pick) as usize
        };
        let has_pages = !config.direct && page_cache::is_known(opened.files.data.as_fd());
        let context = Context {
            is_block_device: opened.is_block_device,
            block: block.into(),
            memory_align: align(|alignment| alignment.memory),
            offset_align: align(|alignment| alignment.offset),
            page: (rustix::param::page_size() as u64)
                .max(align(|alignment| alignment.offset) as u64),
            file: Some(Arc::clone(&opened.files.data)),
            buffered: opened.buffered,
            gives_ranges: !config.direct && can_try,
            pages: has_pages.then(PagePool::of_process),
            ..Context::of(config.path.clone(), opened.size)
        };
        let writer = Writer::of(&opened.files);
        let file = Self {
            files: opened.files,
            _lock: opened.lock,
            engine,
            may_fall_back: config.engine == Engine::Auto,
            threads: Threads::new(threads(config, can_try)),
            writer,
            runtimes: queue_threads.to_vec(),
            context: Arc::new(context),
        };
        if let Some(made) = opened.made {
            made.keep();
        }
        Ok((Arc::new(file), info))
    }

    /// The disk is smaller than the file, and has so many bytes of it. To be called before it is used.
    pub fn show(&self, bytes: u64) {
        self.context.size.fetch_min(bytes, Ordering::AcqRel);
    }

    /// Has `told` called as soon as flushes fail for good, also if it was a write that found that out. It is called on a queue
    /// thread, or by whoever resizes the disk, and must not block. Once for a disk.
    pub fn on_failed_flush(&self, told: FailedFlush) {
        self.context.health.on_failed_flush(told);
    }

    fn queue(
        &self,
        handle: HctxHandle<Self>,
        engine: IoEngine,
    ) -> Result<Queue, uring::Unavailable> {
        let runtime = &self.runtimes[handle.index() % self.runtimes.len()];
        let context = Arc::clone(&self.context);
        let workers = (&self.threads, self.writer.clone());
        Queue::new(handle, engine, &self.files, workers, runtime, context)
    }
}

fn threads(config: &FileConfig, can_try: bool) -> usize {
    if can_try { config.threads } else { config.threads.max(FileConfig::THREADS_OF_SERVERS) }
}

fn engine(
    config: &FileConfig,
    can_try: bool,
    available: impl FnOnce() -> Result<(), uring::Unavailable>,
) -> Result<IoEngine, Error> {
    if config.engine == Engine::Threads {
        return Ok(IoEngine::Threads);
    }
    match available() {
        Ok(()) if config.engine == Engine::Auto && !can_try => {
            let file = config.path.display();
            tracing::info!(%file, "cannot be read without waiting; io_uring not used, using a thread pool of its own");
            Ok(IoEngine::Threads)
        }
        Ok(()) => Ok(IoEngine::Uring),
        Err(why) if config.engine == Engine::Auto => {
            tracing::info!(file = %config.path.display(), error = %why, "io_uring not used; using a thread pool");
            Ok(IoEngine::Threads)
        }
        Err(why) => {
            let what = format!("{}: engine=uring is not available", config.path.display());
            Err(Error::new(ErrorKind::NotSupported, what).help("use engine=threads").caused_by(why))
        }
    }
}

impl Driver for File {
    type Disk = ();
    type Hctx = Queue;
    type Cmd = ();

    fn init_hctx(&self, _disk: &(), handle: HctxHandle<Self>) -> Result<Queue, BlkError> {
        let made = match self.queue(handle.clone(), self.engine) {
            Err(why) if self.engine == IoEngine::Uring && self.may_fall_back => {
                tracing::warn!(queue = handle.index(), error = %why, "io_uring not used for this queue; using a thread pool");
                self.queue(handle, IoEngine::Threads)
            }
            made => made,
        };
        made.map_err(|why| {
            BlkError::new(BlkErrorKind::Resource, "cannot set up a queue of a file").caused_by(why)
        })
    }

    fn queue_rq(&self, queue: &mut Queue, rq: Request<Self>, last: bool) -> Result<(), Busy<Self>> {
        queue.take(rq)?;
        if last {
            queue.turn();
        }
        Ok(())
    }

    fn commit_rqs(&self, queue: &mut Queue) {
        queue.turn();
    }

    /// Storage is slow, not lost: the kernel answers each operation once. Looking again costs nothing.
    fn timeout(&self, queue: &mut Queue, _rq: &InFlight) -> Timeout {
        queue.turn();
        Timeout::ResetTimer
    }

    fn poll(&self, queue: &mut Queue) -> usize {
        queue.turn()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_kernel_refuses_io_uring_threads_do_unless_it_was_asked_for() {
        let refuse = || Err(uring::Unavailable::Sysctl("2".into()));
        let config = |engine| FileConfig { engine, ..FileConfig::new("/disk") };
        assert_eq!(engine(&config(Engine::Auto), true, refuse).unwrap(), IoEngine::Threads);
        assert_eq!(engine(&config(Engine::Auto), true, || Ok(())).unwrap(), IoEngine::Uring);
        // Where it would have others wait for a server, it is not used unless it was asked for.
        assert_eq!(engine(&config(Engine::Auto), false, || Ok(())).unwrap(), IoEngine::Threads);
        assert_eq!(engine(&config(Engine::Uring), false, || Ok(())).unwrap(), IoEngine::Uring);
        assert_eq!(engine(&config(Engine::Threads), true, || Ok(())).unwrap(), IoEngine::Threads);
        let err = engine(&config(Engine::Uring), true, refuse).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::NotSupported);
        assert!(err.chain().starts_with("/disk: "), "{}", err.chain());
        assert!(err.chain().contains("kernel.io_uring_disabled = 2"), "{}", err.chain());
        assert_eq!(err.remedy(), Some("use engine=threads"));
    }
}
