//! Copying a disk onto another.

mod checkpoint;
mod verify;
mod work;
mod zeroes;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockyard_blkmq::{Disk, DiskFlags, OpenMode};
use parking_lot::Mutex;
use serde::Serialize;

pub(super) use zeroes::is_zero;

use self::checkpoint::{Checkpoints, Flushed};
use self::verify::verified;
use self::work::{Done, Piece, Shared};
use super::interrupt::Interrupt;
use super::journal::{Job, Journal, Place};
use super::lanes::{self, Ended, Pieces, Work};
use super::progress::Progress;
use super::ranges::Ranges;
use super::sums::Sums;
use crate::disks::DiskPlan;
use crate::disks::identity::DiskIdentity;
use crate::error::{Error, Result};
use crate::tools::session::Session;

/// How often what is done is made durable and written down, unless told otherwise.
pub const CHECKPOINT: Duration = Duration::from_secs(1);

/// A copy, checked as far as it does not depend on the disks.
#[derive(Clone, Debug)]
pub struct Copy {
    /// From there.
    pub source: DiskPlan,
    /// To there.
    pub target: DiskPlan,
    /// Look for zeroes in the data, and write them as holes.
    pub detect_zeroes: bool,
    /// Queue threads.
    pub threads: usize,
    /// Where to write down what is done.
    pub journal: Option<PathBuf>,
    /// How often what is done is made durable and written down.
    pub checkpoint: Duration,
}

/// What a copy did.
#[derive(Clone, Debug, Serialize)]
pub struct Copied {
    /// The source's URI.
    pub source: String,
    /// The target's URI.
    pub target: String,
    /// Bytes of the source.
    pub size: u64,
    /// Bytes that were read and written.
    pub copied: u64,
    /// Bytes that were made zeroes without being read, or were found to be zeroes.
    pub zeroed: u64,
    /// Bytes that were zeroes on both sides already.
    pub skipped: u64,
    /// Bytes that an earlier run had done.
    pub resumed: u64,
    /// How long it took.
    pub seconds: f64,
    /// Bytes of the source a second.
    pub bytes_per_second: f64,
}

impl Copy {
    /// Copies. `interrupt` ends it early, with an error that says how to go on.
    ///
    /// # Errors
    /// The disks do not go together, or cannot be read or written; the error says where.
    pub fn run(mut self, interrupt: &Interrupt) -> Result<Copied> {
        let begun = Instant::now();
        self.refuse_itself()?;
        let place = self.journal.take().map(|path| self.place(&path)).transpose()?;
        let mut session = Session::start(self.threads)?;
        self.source.options.read_only = true;
        self.source.never_make();
        let source = session.open(&self.source, DiskFlags::NO_PART_SCAN)?;
        let size = source.size_bytes();
        let earlier = match &place {
            Some(place) => place.done(&self.job(size)?)?,
            None => Sums::new(size),
        };
        self.make_target(size);
        let target = session.open(&self.target, DiskFlags::NO_PART_SCAN)?;
        let block = self.check_fit(&source, &target)?;
        let open = |disk: &Arc<Disk>, mode, uri: &str| {
            let failed = |err| Error::failed(format!("cannot open {uri}")).caused_by(err);
            disk.open(None, mode).map_err(failed)
        };
        let shared = Arc::new(Shared {
            source: open(&source, OpenMode::ReadOnly, &self.source.uri)?,
            target: open(&target, OpenMode::ReadWrite, &self.target.uri)?,
            uris: (self.source.uri.clone(), self.target.uri.clone()),
            detect_zeroes: self.detect_zeroes,
            writes_down: place.is_some(),
            done: Mutex::new(Done { ranges: earlier.ranges(), ..Done::default() }),
        });
        let earlier = {
            let _heeding = interrupt.heed();
            verified(&session, &shared, (size, block), earlier, interrupt)?
                .ok_or_else(|| interrupted(&shared, size, true, None))?
        };
        let mut journal = match place {
            Some(place) => Some(self.begin_journal(place, size, &earlier)?),
            None => None,
        };
        let resumed = earlier.ranges();
        {
            let mut done = shared.done.lock();
            done.ranges = resumed.clone();
            done.sums = journal.is_some().then_some(earlier);
        }
        {
            let _heeding = interrupt.heed();
            let mut checkpoints = Checkpoints::new(&shared, journal.as_mut(), self.checkpoint);
            let range = (size, block);
            let moved = move_bytes(&session, &shared, range, &resumed, &mut checkpoints, interrupt);
            // What was done is kept, however the rest ended.
            let flushed = checkpoints.finish(&session, interrupt);
            let can_go_on = journal.is_some();
            let interrupted = |cause| Err(interrupted(&shared, size, can_go_on, cause));
            match (moved?, flushed) {
                (Ended::Early(cause), flushed) => return interrupted(cause.or(flushed.err())),
                (Ended::Whole, Err(err)) if interrupt.is_wanted() => return interrupted(Some(err)),
                (Ended::Whole, Err(err)) => return Err(err),
                (Ended::Whole, Ok(Flushed::Unknown)) => return Err(unknown(&self.target.uri)),
                (Ended::Whole, Ok(Flushed::Durable | Flushed::Never)) => {}
            }
        }
        session.close()?;
        if let Some(journal) = journal {
            journal.remove()?;
        }
        let done = shared.done.lock();
        let seconds = begun.elapsed().as_secs_f64().max(1e-9);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let bytes_per_second = size as f64 / seconds;
        Ok(Copied {
            source: self.source.uri,
            target: self.target.uri,
            size,
            copied: done.copied,
            zeroed: done.zeroed,
            skipped: done.skipped,
            resumed: resumed.bytes(),
            seconds,
            bytes_per_second,
        })
    }

    /// Where the journal is to be.
    fn place(&self, path: &Path) -> Result<Place> {
        let disks = [&self.source, &self.target].map(|plan| (&plan.uri, DiskIdentity::of(plan)));
        let [(from, source), (to, target)] = disks;
        let (source, target) = (source?, target?);
        if source.is_volatile() || target.is_volatile() {
            let what =
                "a target in memory is lost when this command exits, so the copy cannot be resumed";
            return Err(Error::usage(what).help("omit --resume"));
        }
        Place::of(path, [(from, &source), (to, &target)])
    }

    /// Which copy it is, of the disks that are there now.
    fn job(&self, size: u64) -> Result<Job> {
        let disk = |plan: &DiskPlan| Ok((plan.uri.clone(), DiskIdentity::of(plan)?));
        Ok(Job { source: disk(&self.source)?, target: disk(&self.target)?, size })
    }

    /// The target is there now. That the journal cannot be written is found out before anything is copied.
    fn begin_journal(&self, place: Place, size: u64, earlier: &Sums) -> Result<Journal> {
        let mut journal = place.begin(self.job(size)?);
        journal.write(earlier)?;
        Ok(journal)
    }

    fn refuse_itself(&self) -> Result<()> {
        let (Ok(source), Ok(target)) =
            (DiskIdentity::of(&self.source), DiskIdentity::of(&self.target))
        else {
            // Opening it says what is wrong.
            return Ok(());
        };
        let (from, to) = (&self.source.uri, &self.target.uri);
        let what = if source.same_disk(&target) {
            format!("{from} and {to} are the same disk")
        } else if source.overlaps(&target) {
            format!("{from} and {to} overlap: writing to one changes the other")
        } else {
            return Ok(());
        };
        Err(Error::usage(what).help("name another target"))
    }

    /// A file that is not there is made, as large as the source.
    fn make_target(&mut self, size: u64) {
        self.target.source.make_if_absent(size);
    }

    /// The blocks in which both can be used.
    fn check_fit(&self, source: &Disk, target: &Disk) -> Result<u64> {
        let (size, room) = (source.size_bytes(), target.size_bytes());
        let (from, to) = (&self.source.uri, &self.target.uri);
        if target.is_read_only() {
            let what = format!("cannot copy to {to}: it is read-only");
            return Err(
                Error::new(crate::error::ErrorKind::NotPermitted, what).help("name another target")
            );
        }
        if room < size {
            let missing = size - room;
            let what = format!(
                "cannot copy {from} to {to}: {size} bytes needed, {room} available, {missing} missing"
            );
            let help = match self.target.source.file() {
                Some(path) => format!(
                    "run: truncate -s {size} {}; or copy a part, with size={room} in the URI of the source",
                    path.display()
                ),
                None => format!(
                    "enlarge the target, or copy a part, with size={room} in the URI of the source"
                ),
            };
            return Err(Error::failed(what).help(help));
        }
        let block = |disk: &Disk| u64::from(disk.limits().logical_block_size.bytes());
        Ok(block(source).max(block(target)))
    }
}

/// Hands out pieces and works on them, until all is done or an end is wanted.
fn move_bytes(
    session: &Session,
    shared: &Arc<Shared>,
    (size, block): (u64, u64),
    earlier: &Ranges,
    checkpoints: &mut Checkpoints<'_>,
    interrupt: &Interrupt,
) -> Result<Ended> {
    let mut progress = Progress::new("copying", size);
    let lanes = Arc::clone(shared);
    let work: Arc<Work<Piece>> = Arc::new(move |lane, piece| {
        let shared = Arc::clone(&lanes);
        Box::pin(async move { shared.work(lane.cpu, piece).await })
    });
    let look = || {
        progress.set(shared.done.lock().ranges.bytes());
        checkpoints.look()
    };
    let plan = |pieces: &Pieces<Piece>| shared.plan((size, block), earlier, pieces);
    lanes::run(session, interrupt, &work, plan, look)
}

/// All was written, and nobody has heard what came of the last flush.
fn unknown(target: &str) -> Error {
    let what = format!("interrupted while flushing {target}; the copy may not be durable");
    Error::failed(what).help("run the same command again")
}

fn interrupted(shared: &Shared, size: u64, can_go_on: bool, cause: Option<Error>) -> Error {
    let done = shared.done.lock().ranges.bytes();
    let error = Error::failed(format!("interrupted after {done} of {size} bytes"));
    let error = error.perhaps_caused_by(cause);
    error.help(if can_go_on {
        "run the same command again to resume"
    } else {
        "to make a copy resumable, use --resume FILE"
    })
}
