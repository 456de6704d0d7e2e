//! Data of a file that goes to the target without passing through this process: within the kernel to another file, or from the
//! page cache to a socket.
//!
//! The source answers a read with the range of its file, and the target writes that ([`Flags::RANGE`], [`Bio::write_range`]):
//! both as requests of their disks, so that whatever holds of these holds of such a copy, a flush at its end and at each
//! checkpoint among it. What does not go that way, or fails, is read and written as everything else, which says precisely what
//! is wrong. A file whose server may not answer (NFS, FUSE) gives no ranges: who waits for it is a request of the source, and the
//! target has none that cannot end.
//!
//! XFS and btrfs can have the same blocks in both files, which takes no time and no space, until either is overwritten: that
//! takes new blocks then, and fails on a full file system. A target that has its space (written or preallocated) keeps it, and
//! so do both disks of a copy that a daemon makes while they are served. Else it is as with `cp`, whose user knows of that.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use blockyard_blkmq::{Bdev, Bio, Features, Flags, Op, Status};
use blockyard_buf::{FileRange, Segments};
use blockyard_sys::page_cache;
use tokio::sync::Semaphore;

use super::work::Shared;

/// Pieces that are on their way to a file at a time. One thread writes them, one after the other: a few are enough to keep it busy,
/// and leave the tags of the queue to others.
const MOST_TO_FILE: usize = 4;
/// Pieces after one that was not in the page cache, of which it is not asked whether they are. The question is a read of the source,
/// which its limits count, and so is the read that comes then.
const NOT_ASKED: u32 = 16;

/// Whether data goes that way, and how.
pub(super) struct Direct {
    /// It does, as far as is known.
    works: AtomicBool,
    /// The target is a file.
    to_file: bool,
    /// Which may share blocks with the source.
    shares_blocks: bool,
    /// Who may write to a file now.
    turns: Semaphore,
    /// Pieces that are to be read without a question.
    not_asked: AtomicU32,
}

/// What has become of a piece.
pub(super) enum Moved {
    /// It is on the target.
    Yes,
    /// It was read.
    Read(Segments),
    /// It is to be read and written.
    No,
}

impl Direct {
    /// To a target, which may be a file, and share blocks. `sees_data`: somebody wants to look at the data.
    pub(super) fn new(
        target: &Bdev,
        (is_file, shares_blocks): (bool, bool),
        sees_data: bool,
    ) -> Self {
        let can = target.limits().features.contains(Features::FILE_RANGES);
        Self {
            works: AtomicBool::new(can && !sees_data),
            to_file: is_file,
            shares_blocks,
            turns: Semaphore::new(MOST_TO_FILE),
            not_asked: AtomicU32::new(0),
        }
    }

    fn works(&self) -> bool {
        self.works.load(Ordering::Relaxed)
    }

    /// Whether a piece that may be in the page cache is worth the question.
    fn asks(&self) -> bool {
        let left = |left: u32| left.checked_sub(1);
        self.not_asked.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_err()
    }

    /// It was not there. Where that is never told, nobody asks again.
    fn is_not_cached(&self, range: &FileRange) -> Moved {
        if !page_cache::is_known(range.file().as_fd()) {
            return self.does_not();
        }
        self.not_asked.store(NOT_ASKED, Ordering::Relaxed);
        Moved::No
    }

    fn does_not(&self) -> Moved {
        self.works.store(false, Ordering::Relaxed);
        Moved::No
    }
}

impl Shared {
    /// Copies a piece that way, if it goes.
    pub(super) async fn move_directly(&self, cpu: usize, start: u64, len: u64) -> Moved {
        let direct = &self.direct;
        if !direct.works() || !direct.to_file && !direct.asks() {
            return Moved::No;
        }
        let read = Bio::at_bytes(Op::Read, start, len).with_flags(Flags::RANGE | Flags::NOMERGE);
        let mut read = self.source.submit_async(cpu, read).await;
        if !read.status().is_ok() {
            return Moved::No;
        }
        let Some(range) = read.take_range() else { return Moved::Read(read.take_data()) };
        if !direct.to_file && !page_cache::has(range.file().as_fd(), range.offset(), range.len()) {
            // Storage would be waited for by the socket's thread.
            return direct.is_not_cached(&range);
        }
        let mut write = Bio::write_range(start, range.clone());
        write.flags.set(Flags::SHARE, direct.shares_blocks);
        let status = if direct.to_file {
            // A file system lets one write to a file at a time, and whoever else wants to spins: one queue does all.
            let _turn = direct.turns.acquire().await;
            self.target.submit_async(0, write).await.status()
        } else {
            self.target.submit_async(cpu, write).await.status()
        };
        match status {
            // Of a file that became shorter meanwhile there is no telling what was copied.
            Status::Ok if range.is_there() => Moved::Yes,
            // The end of a disk may be no whole block.
            Status::NotSupported if self.is_aligned(start, len) => direct.does_not(),
            _ => Moved::No,
        }
    }

    fn is_aligned(&self, start: u64, len: u64) -> bool {
        self.target.limits().logical_block_size.divides(start | len)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use blockyard_blkmq::{
        BlockDeviceOps, Busy, Disk, DiskConfig, DiskFlags, Driver, Error, HctxHandle, Limits,
        MonotonicClock, OpenMode, Request, Sector, StatGroup, TagSet, TagSetConfig,
    };
    use parking_lot::Mutex;
    use rustix::fs::{Advice, fadvise};

    use super::super::work::Piece;
    use super::*;
    use crate::disks::DiskPlan;
    use crate::tools::session::Session;

    const PIECE: u64 = 64 << 10;
    const PIECES: u64 = 64;
    const LEN: u64 = PIECES * PIECE;
    /// No wait takes longer.
    const LIMIT: Duration = Duration::from_secs(60);

    /// It takes ranges of files, and may keep what is to be written.
    #[derive(Default)]
    struct Target {
        keeps: bool,
        kept: Mutex<Vec<Request<Self>>>,
    }

    impl BlockDeviceOps for Target {}

    impl Driver for Target {
        type Disk = ();
        type Hctx = ();
        type Cmd = ();

        fn init_hctx(&self, _: &(), _: HctxHandle<Self>) -> Result<(), Error> {
            Ok(())
        }

        fn queue_rq(&self, _: &mut (), rq: Request<Self>, _: bool) -> Result<(), Busy<Self>> {
            if self.keeps {
                self.kept.lock().push(rq);
            } else {
                rq.end(Status::Ok);
            }
            Ok(())
        }
    }

    /// Copies from a file to such a target.
    struct Rig {
        shared: Arc<Shared>,
        source: Arc<Disk>,
        target: Arc<Target>,
        _session: Session,
    }

    impl Rig {
        fn new(source: &Path, keeps: bool, to_file: bool) -> Self {
            let plan: DiskPlan = format!("file:{}?ro", source.display()).parse().unwrap();
            let mut session = Session::start(1).unwrap();
            let source = session.open(&plan, DiskFlags::NO_PART_SCAN).unwrap();
            let target = Arc::new(Target { keeps, ..Target::default() });
            let set = TagSetConfig { cpus: 1, ..TagSetConfig::default() };
            let set = TagSet::new(Arc::clone(&target), set).unwrap();
            let features = Features::FILE_RANGES;
            let limits = Limits { features, max_hw_sectors: u32::MAX, ..Limits::default() };
            let config = DiskConfig::new("target", Sector(LEN / 512), limits);
            let (ops, clock) = (Arc::clone(&target), Arc::new(MonotonicClock::new()));
            let disk = Disk::alloc(&set, (), config, ops, clock).unwrap();
            let to = disk.open(None, OpenMode::ReadWrite).unwrap();
            let shared = Shared {
                source: source.open(None, OpenMode::ReadOnly).unwrap(),
                direct: Direct::new(&to, (to_file, false), false),
                target: to,
                uris: ("source".into(), "target".into()),
                detect_zeroes: false,
                writes_down: false,
                done: Mutex::default(),
            };
            Self { shared: Arc::new(shared), source, target, _session: session }
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    /// Its bytes are counted by its limits.
    #[test]
    fn a_source_that_is_not_cached_is_read_little_more_than_once() {
        let source = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(source.path(), vec![7; LEN as usize]).unwrap();
        source.as_file().sync_all().unwrap();
        let rig = Rig::new(source.path(), false, false);
        runtime().block_on(async {
            for at in 0..PIECES {
                // Whatever was read ahead.
                fadvise(&source, 0, None, Advice::DontNeed).unwrap();
                let (start, len, zero) = (at * PIECE, PIECE, false);
                rig.shared.work(0, Piece { start, len, zero }).await.unwrap();
            }
        });
        assert_eq!(rig.shared.done.lock().copied, LEN);
        let read = rig.source.stats().0.counters(StatGroup::Read).sectors * 512;
        let questions = LEN / u64::from(NOT_ASKED);
        assert!((LEN..=LEN + questions).contains(&read), "{read} bytes of {LEN} were read");
    }

    #[test]
    fn a_file_is_written_to_by_a_few_at_a_time() {
        let source = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(source.path(), vec![7; LEN as usize]).unwrap();
        let rig = Rig::new(source.path(), true, true);
        runtime().block_on(async {
            let pieces = (0..PIECES).map(|at| {
                let shared = Arc::clone(&rig.shared);
                tokio::spawn(async move { shared.move_directly(0, at * PIECE, PIECE).await })
            });
            let mut pieces: Vec<_> = pieces.collect();
            let (begun, mut left, mut most) = (Instant::now(), pieces.len(), 0);
            while left > 0 && begun.elapsed() < LIMIT {
                tokio::task::yield_now().await;
                let kept = std::mem::take(&mut *rig.target.kept.lock());
                if kept.len() < left.min(MOST_TO_FILE) {
                    rig.target.kept.lock().extend(kept);
                    continue;
                }
                (left, most) = (left - kept.len(), most.max(kept.len()));
                kept.into_iter().for_each(|rq| rq.end(Status::Ok));
            }
            assert_eq!((left, most), (0, MOST_TO_FILE));
            for piece in pieces.drain(..) {
                assert!(matches!(piece.await.unwrap(), Moved::Yes));
            }
        });
    }
}
