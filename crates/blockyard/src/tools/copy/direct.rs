//! Data of a file that goes to the target without passing through this process: within the kernel to another file, or from the
//! page cache to a socket.
//!
//! The source answers a read with the range of its file, and the target writes that ([`Flags::RANGE`], [`Bio::write_range`]):
//! both as requests of their disks, so that whatever holds of these holds of such a copy, a flush at its end and at each
//! checkpoint among it. What does not go that way, or fails, is read and written as everything else, which says precisely what
//! is wrong.
//!
//! Whoever writes a range waits for its storage, in a request of the target. A file whose server may not answer (NFS, FUSE) gives
//! no ranges, and of a source that others use along with the target, as a daemon copies it, only what is in the page cache goes
//! that way: its storage may hang, and what waits for it then is a request of its own. The target's clients, its flushes and its
//! changes wait for nothing but the target.
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

/// Pieces that are on their way to a file at a time. One thread writes them, one after the other: a few are enough to keep it
/// busy, and leave the tags of the queue to others.
const MOST_TO_FILE: usize = 4;
/// Pieces after one that was not in the page cache, of which it is not asked whether they are. The question is a read of the
/// source, which its limits count, and so is the read that comes then.
const NOT_ASKED: u32 = 16;

/// Whose the disks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disks {
    /// This copy's alone. A file may share blocks with its source.
    Own {
        /// It does, where it has none.
        shares_blocks: bool,
    },
    /// Others use them. They keep the space that they have, and neither waits for the other.
    InUse,
}

/// Whether data goes that way, and how.
pub(super) struct Direct {
    /// It does, as far as is known.
    works: AtomicBool,
    /// The target is a file.
    to_file: bool,
    /// Which may share blocks with the source.
    shares_blocks: bool,
    /// Only what is in the page cache goes that way.
    only_cached: bool,
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
    /// To a target, which may be a file. `sees_data`: somebody wants to look at the data.
    pub(super) fn new(target: &Bdev, is_file: bool, disks: Disks, sees_data: bool) -> Self {
        let can = target.limits().features.contains(Features::FILE_RANGES);
        Self {
            works: AtomicBool::new(can && !sees_data),
            to_file: is_file,
            shares_blocks: disks == Disks::Own { shares_blocks: true },
            // A socket's thread waits for no storage.
            only_cached: !is_file || disks == Disks::InUse,
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
        if !direct.works() || direct.only_cached && !direct.asks() {
            return Moved::No;
        }
        let read = Bio::at_bytes(Op::Read, start, len).with_flags(Flags::RANGE | Flags::NOMERGE);
        let mut read = self.source.submit_async(cpu, read).await;
        if !read.status().is_ok() {
            return Moved::No;
        }
        let Some(range) = read.take_range() else { return Moved::Read(read.take_data()) };
        let is_there = || page_cache::has(range.file().as_fd(), range.offset(), range.len());
        if direct.only_cached && !is_there() {
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
        /// Writes of ranges.
        ranges: AtomicU32,
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
            if rq.file_range().is_some() {
                self.ranges.fetch_add(1, Ordering::Relaxed);
            }
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
        fn new(source: &Path, keeps: bool, to_file: bool, disks: Disks) -> Self {
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
                direct: Direct::new(&to, to_file, disks, false),
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

    fn source() -> tempfile::NamedTempFile {
        let source = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(source.path(), vec![7; usize::try_from(LEN).unwrap()]).unwrap();
        source.as_file().sync_all().unwrap();
        source
    }

    /// Copies a source that is dropped from the page cache before each piece.
    fn copy_uncached(to_file: bool, disks: Disks) -> Rig {
        let source = source();
        let rig = Rig::new(source.path(), false, to_file, disks);
        runtime().block_on(async {
            for at in 0..PIECES {
                // Whatever was read ahead.
                fadvise(&source, 0, None, Advice::DontNeed).unwrap();
                let (start, len, zero) = (at * PIECE, PIECE, false);
                rig.shared.work(0, Piece { start, len, zero }).await.unwrap();
            }
        });
        assert_eq!(rig.shared.done.lock().copied, LEN);
        rig
    }

    /// Storage that is slow, or hangs, is waited for by a request of the source.
    #[test]
    fn a_target_that_others_use_waits_for_no_storage_of_its_source() {
        let ranges = |disks| {
            let rig = copy_uncached(true, disks);
            u64::from(rig.target.ranges.load(Ordering::Relaxed))
        };
        assert_eq!(ranges(Disks::Own { shares_blocks: false }), PIECES);
        // What the kernel is reading ahead just then may have come.
        let in_use = ranges(Disks::InUse);
        assert!(in_use < PIECES / 2, "{in_use} of {PIECES} pieces");
    }

    /// Its bytes are counted by its limits.
    #[test]
    fn a_source_that_is_not_cached_is_read_little_more_than_once() {
        let rig = copy_uncached(false, Disks::InUse);
        let read = rig.source.stats().0.counters(StatGroup::Read).sectors * 512;
        let questions = LEN / u64::from(NOT_ASKED);
        assert!((LEN..=LEN + questions).contains(&read), "{read} bytes of {LEN} were read");
    }

    #[test]
    fn a_file_is_written_to_by_a_few_at_a_time() {
        let source = source();
        let rig = Rig::new(source.path(), true, true, Disks::Own { shares_blocks: false });
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
