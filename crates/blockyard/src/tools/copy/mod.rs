//! Copying a disk onto another.

mod checkpoint;
mod direct;
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
use self::direct::{Direct, Disks};
use self::verify::verified;
use self::work::{Done, Piece, Shared};
use super::interrupt::Interrupt;
use super::journal::{Job, Journal, Place};
use super::lanes::{self, Ended, Pieces, Work};
use super::ranges::Ranges;
use super::sums::Sums;
use crate::disks::DiskPlan;
use crate::disks::identity::DiskIdentity;
use crate::error::{Error, Result, quoted};
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
    /// The copy of a file may share blocks with it, where the target has no space of its own.
    pub shares_blocks: bool,
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
    /// Bytes that were copied.
    pub copied: u64,
    /// Of these, bytes that the kernel has moved or shared: from file to file, or from a file to a server.
    pub direct: u64,
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
        refuse_same(&self.source, &self.target)?;
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
        let disks = [(&source, &self.source), (&target, &self.target)];
        let block = check_fit(disks)?;
        let ways = Ways {
            detects_zeroes: self.detect_zeroes,
            writes_down: place.is_some(),
            disks: Disks::Own { shares_blocks: self.shares_blocks },
        };
        let shared = shared(disks, ways, earlier.ranges())?;
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
        let range = (size, block);
        let kept = (journal.as_mut(), self.checkpoint);
        move_all(&session, &shared, range, &resumed, kept, interrupt)?;
        session.close()?;
        if let Some(journal) = journal {
            journal.remove()?;
        }
        Ok(copied(&shared, size, resumed.bytes(), begun))
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

    /// A file that is not there is made, as large as the source.
    fn make_target(&mut self, size: u64) {
        self.target.source.make_if_absent(size);
    }
}

/// How data is to be copied.
#[derive(Clone, Copy)]
struct Ways {
    detects_zeroes: bool,
    writes_down: bool,
    disks: Disks,
}

/// Copies between disks that are open, one called by its plan's URI as the other. Nothing is written down, so that what was
/// interrupted is begun anew; and no blocks are shared, as both disks are in use, and keep the space that they have.
///
/// # Errors
/// Those of [`Copy::run`].
pub fn between(
    session: &Session,
    [source, target]: [(&Arc<Disk>, &DiskPlan); 2],
    detect_zeroes: bool,
    interrupt: &Interrupt,
) -> Result<Copied> {
    let begun = Instant::now();
    let size = source.0.size_bytes();
    let block = check_fit([source, target])?;
    let ways = Ways { detects_zeroes: detect_zeroes, writes_down: false, disks: Disks::InUse };
    let shared = shared([source, target], ways, Ranges::default())?;
    let range = (size, block);
    move_all(session, &shared, range, &Ranges::default(), (None, CHECKPOINT), interrupt)?;
    Ok(copied(&shared, size, 0, begun))
}

/// Nobody copies a disk onto itself, or onto a part of it.
///
/// # Errors
/// They are the same.
pub fn refuse_same(source: &DiskPlan, target: &DiskPlan) -> Result<()> {
    let (from, to) = (&source.uri, &target.uri);
    let (Ok(source), Ok(target)) = (DiskIdentity::of(source), DiskIdentity::of(target)) else {
        // Opening it says what is wrong.
        return Ok(());
    };
    let what = if source.same_disk(&target) {
        format!("{from} and {to} are the same disk")
    } else if source.overlaps(&target) {
        format!("{from} and {to} overlap: writing to one changes the other")
    } else {
        return Ok(());
    };
    Err(Error::usage(what).help("name another target"))
}

/// The blocks in which both can be used.
fn check_fit([(source, from), (target, to)]: [(&Arc<Disk>, &DiskPlan); 2]) -> Result<u64> {
    let (size, room) = (source.size_bytes(), target.size_bytes());
    let file = to.source.file();
    let (from, to) = (&from.uri, &to.uri);
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
        let help = match file {
            Some(path) => format!(
                "run: truncate -s {size} {}; or copy a part, with size={room} in the URI of the source",
                quoted(path)
            ),
            None => {
                format!(
                    "enlarge the target, or copy a part, with size={room} in the URI of the source"
                )
            }
        };
        return Err(Error::failed(what).help(help));
    }
    let block = |disk: &Disk| u64::from(disk.limits().logical_block_size.bytes());
    Ok(block(source).max(block(target)))
}

/// What the lanes have of both disks.
fn shared(
    [source, target]: [(&Arc<Disk>, &DiskPlan); 2],
    Ways { detects_zeroes, writes_down, disks }: Ways,
    earlier: Ranges,
) -> Result<Arc<Shared>> {
    let open = |(disk, plan): (&Arc<Disk>, &DiskPlan), mode| {
        let failed = |err| Error::failed(format!("cannot open {}", plan.uri)).caused_by(err);
        disk.open(None, mode).map_err(failed)
    };
    let is_file = target.1.source.file().is_some();
    let uris = (source.1.uri.clone(), target.1.uri.clone());
    let [source, target] = [open(source, OpenMode::ReadOnly)?, open(target, OpenMode::ReadWrite)?];
    Ok(Arc::new(Shared {
        // The sums of a journal are those of the data.
        direct: Direct::new(&target, is_file, disks, detects_zeroes || writes_down),
        source,
        target,
        uris,
        detect_zeroes: detects_zeroes,
        writes_down,
        done: Mutex::new(Done { ranges: earlier, ..Done::default() }),
    }))
}

/// Copies what is not done yet, and makes it durable.
fn move_all(
    session: &Session,
    shared: &Arc<Shared>,
    range: (u64, u64),
    earlier: &Ranges,
    (journal, checkpoint): (Option<&mut Journal>, Duration),
    interrupt: &Interrupt,
) -> Result<()> {
    let _heeding = interrupt.heed();
    let can_go_on = journal.is_some();
    let mut checkpoints = Checkpoints::new(shared, journal, checkpoint);
    let moved = move_bytes(session, shared, range, earlier, &mut checkpoints, interrupt);
    // What was done is kept, however the rest ended.
    let flushed = checkpoints.finish(session, interrupt);
    let interrupted = |cause| Err(interrupted(shared, range.0, can_go_on, cause));
    match (moved?, flushed) {
        (Ended::Early(cause), flushed) => interrupted(cause.or(flushed.err())),
        (Ended::Whole, Err(err)) if interrupt.is_wanted() => interrupted(Some(err)),
        (Ended::Whole, Err(err)) => Err(err),
        (Ended::Whole, Ok(Flushed::Unknown)) => Err(unknown(&shared.uris.1)),
        (Ended::Whole, Ok(Flushed::Durable | Flushed::Never)) => Ok(()),
    }
}

/// What was done since then.
fn copied(shared: &Shared, size: u64, resumed: u64, begun: Instant) -> Copied {
    let done = shared.done.lock();
    let seconds = begun.elapsed().as_secs_f64().max(1e-9);
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let bytes_per_second = size as f64 / seconds;
    Copied {
        source: shared.uris.0.clone(),
        target: shared.uris.1.clone(),
        size,
        copied: done.copied,
        direct: done.direct,
        zeroed: done.zeroed,
        skipped: done.skipped,
        resumed,
        seconds,
        bytes_per_second,
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
    let mut progress = session.progress("copying", size);
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
    lanes::run((session, &shared.disks()), interrupt, &work, plan, look)
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
