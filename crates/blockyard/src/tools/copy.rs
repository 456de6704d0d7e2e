//! Copying a disk onto another.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blockyard_blkmq::{Bdev, Bio, DiskFlags, Op, OpenMode, Sector, Status};
use blockyard_buf::{Segment, Segments};
use parking_lot::Mutex;
use serde::Serialize;

use super::cut::{cut, parts, pieces};
use super::extents::{Extents, Zeroes};
use super::journal::{Job, Journal};
use super::lanes::{self, Pieces, Work};
use super::progress::Progress;
use super::ranges::Ranges;
use super::{DEPTH, io_error, read};
use crate::error::{Error, Result};
use crate::identity::DiskIdentity;
use crate::session::Session;
use crate::uri::{DiskPlan, DriverPlan};

/// Bytes that are zeroed with one request: it can be told how far it is.
const ZERO_PIECE: u64 = 128 << 20;
/// How often what is done is made durable and written down, if there is a journal.
const CHECKPOINT: Duration = Duration::from_secs(1);
/// Zeroes within data are looked for in blocks of so many bytes.
const ZERO_BLOCK: usize = 32 << 10;

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

#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u64,
    len: u64,
    zero: bool,
}

#[derive(Default)]
struct Done {
    ranges: Ranges,
    copied: u64,
    zeroed: u64,
    skipped: u64,
}

/// What the lanes share.
struct Shared {
    source: Bdev,
    target: Bdev,
    uris: (String, String),
    detect_zeroes: bool,
    done: Mutex<Done>,
}

impl Copy {
    /// Copies. `interrupted` ends it early, with an error that says how to go on.
    ///
    /// # Errors
    /// The disks do not go together, or cannot be read or written; the error says where.
    pub fn run(mut self, interrupted: &Arc<AtomicBool>) -> Result<Copied> {
        let begun = Instant::now();
        self.refuse_itself()?;
        let mut session = Session::start(self.threads)?;
        self.source.options.read_only = true;
        if let DriverPlan::File(file) = &mut self.source.driver {
            file.create = None;
        }
        let source = session.open(&self.source, DiskFlags::NO_PART_SCAN)?;
        let size = source.capacity().bytes();
        let job = Job { source: self.source.uri.clone(), target: self.target.uri.clone(), size };
        let journal = self.journal.take().map(|path| Journal::open(&path, job)).transpose()?;
        let (journal, earlier) =
            journal.map_or((None, Ranges::default()), |(journal, done)| (Some(journal), done));
        self.make_target(size, !earlier.is_empty())?;
        let target = session.open(&self.target, DiskFlags::NO_PART_SCAN)?;
        let block = self.check_fit(&source, &target)?;
        let open = |disk: &Arc<blockyard_blkmq::Disk>, mode, uri: &str| {
            let failed = |err| Error::failed(format!("cannot open {uri}")).caused_by(err);
            disk.open(None, mode).map_err(failed)
        };
        let shared = Arc::new(Shared {
            source: open(&source, OpenMode::ReadOnly, &self.source.uri)?,
            target: open(&target, OpenMode::ReadWrite, &self.target.uri)?,
            uris: (self.source.uri.clone(), self.target.uri.clone()),
            detect_zeroes: self.detect_zeroes,
            done: Mutex::new(Done { ranges: earlier.clone(), ..Done::default() }),
        });
        let ended = self.move_bytes(
            &session,
            &shared,
            (size, block),
            &earlier,
            journal.as_ref(),
            interrupted,
        );
        // What was done is kept, however the rest ended.
        let flushed = shared.checkpoint(journal.as_ref());
        ended.and(flushed)?;
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
            resumed: earlier.bytes(),
            seconds,
            bytes_per_second,
        })
    }

    fn move_bytes(
        &self,
        session: &Session,
        shared: &Arc<Shared>,
        (size, block): (u64, u64),
        earlier: &Ranges,
        journal: Option<&Journal>,
        interrupted: &Arc<AtomicBool>,
    ) -> Result<()> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut progress = Progress::new("copying", size);
        let lanes = Arc::clone(shared);
        let work: Arc<Work<Piece>> = Arc::new(move |cpu, piece| {
            let lane = Arc::clone(&lanes);
            Box::pin(async move { lane.work(cpu, piece).await })
        });
        let mut saved = Instant::now();
        let look = || {
            progress.set(shared.done.lock().ranges.bytes());
            if interrupted.load(Ordering::Acquire) {
                stop.store(true, Ordering::Release);
            }
            if journal.is_some() && saved.elapsed() >= CHECKPOINT {
                shared.checkpoint(journal)?;
                saved = Instant::now();
            }
            Ok(())
        };
        let plan = |pieces: &Pieces<Piece>| shared.plan((size, block), earlier, pieces);
        lanes::run(session.threads(), DEPTH, &stop, &work, plan, look)?;
        let done = shared.done.lock().ranges.bytes();
        if done < size {
            let error = Error::failed(format!("interrupted after {done} of {size} bytes"));
            return Err(match journal {
                Some(_) => error.help("run the same command again to go on"),
                None => error.help("with --resume FILE it could be gone on with"),
            });
        }
        Ok(())
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
            format!("{from} and {to} have bytes in common: writing to one changes the other")
        } else {
            return Ok(());
        };
        Err(Error::usage(what).help("name another target"))
    }

    /// A file that is not there is made, as large as the source.
    fn make_target(&mut self, size: u64, resumes: bool) -> Result<()> {
        let DriverPlan::File(file) = &mut self.target.driver else { return Ok(()) };
        if file.path.exists() {
            return Ok(());
        }
        if resumes {
            let what = format!(
                "{} is not there, but the journal says that a part is copied",
                self.target.uri
            );
            return Err(Error::failed(what).help("remove the journal to copy from the start"));
        }
        file.create.get_or_insert(size);
        Ok(())
    }

    /// The blocks in which both can be used.
    fn check_fit(
        &self,
        source: &blockyard_blkmq::Disk,
        target: &blockyard_blkmq::Disk,
    ) -> Result<u64> {
        let (size, room) = (source.capacity().bytes(), target.capacity().bytes());
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
                "cannot copy {from} ({size} bytes) to {to} ({room} bytes): {missing} bytes of it have no room"
            );
            let help = match &self.target.driver {
                DriverPlan::File(file) => format!(
                    "make the target larger: truncate -s {size} {}; or copy a part: size={room} in the source's URI",
                    file.path.display()
                ),
                _ => format!(
                    "make the target larger, or copy a part: size={room} in the source's URI"
                ),
            };
            return Err(Error::failed(what).help(help));
        }
        let block =
            |disk: &blockyard_blkmq::Disk| u64::from(disk.limits().logical_block_size.bytes());
        let block = block(source).max(block(target));
        if !size.is_multiple_of(block) {
            let what = format!(
                "cannot copy {from} to {to}: {size} bytes are no multiple of the target's block size {block}"
            );
            let whole = size / block * block;
            return Err(Error::failed(what)
                .help(format!("copy whole blocks: size={whole} in the source's URI")));
        }
        Ok(block)
    }
}

impl Shared {
    /// Hands out what is to be done: not what was done earlier, and not zeroes where there are zeroes.
    fn plan(
        &self,
        (size, block): (u64, u64),
        earlier: &Ranges,
        pieces_to: &Pieces<Piece>,
    ) -> Result<()> {
        let unknown = |status: Status| {
            Error::failed("cannot read the block map of the disks").caused_by(status)
        };
        let mut zeroes = Zeroes::of(&self.target);
        let skip = |start: u64, len: u64| {
            let mut done = self.done.lock();
            done.ranges.insert(start..start + len);
            done.skipped += len;
        };
        let put = |start, len, zero| pieces_to.put(Piece { start, len, zero });
        parts(Extents::of(&self.source), block, size, |part| {
            let mut at = part.start;
            while at < part.end {
                let start = at;
                let (is_done, end) = earlier.at(at, part.end);
                at = end;
                if is_done {
                    continue;
                }
                if !part.zero {
                    if !pieces(start, end).all(|(start, len)| put(start, len, false)) {
                        return Ok(false);
                    }
                    continue;
                }
                let (is_zero, end) = zeroes.blocks_at(start, end, block)?;
                at = end;
                if is_zero {
                    skip(start, end - start);
                } else if !cut(start, end, ZERO_PIECE).all(|(start, len)| put(start, len, true)) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .map_err(unknown)
    }

    async fn work(&self, cpu: usize, piece: Piece) -> Result<()> {
        let Piece { start, len, zero } = piece;
        let mut zeroed = 0;
        if zero {
            self.zero(cpu, start, len).await?;
            zeroed = len;
        } else {
            let read = read(&self.source, cpu, start, len).await;
            let mut bio =
                read.map_err(|status| io_error("read", &self.uris.0, start, len, status))?;
            let data = bio.take_data();
            if self.detect_zeroes {
                zeroed = self.write_without_zeroes(cpu, start, &data).await?;
            } else {
                self.write(cpu, start, data).await?;
            }
        }
        let mut done = self.done.lock();
        done.ranges.insert(start..start + len);
        done.zeroed += zeroed;
        done.copied += len - zeroed;
        Ok(())
    }

    async fn write(&self, cpu: usize, start: u64, data: Segments) -> Result<()> {
        let bio = Bio::with_data(Op::Write, Sector::from_bytes_floor(start), data);
        let len = bio.len();
        self.ended("write", start, len, self.target.submit_async(cpu, bio).await.status())
    }

    async fn zero(&self, cpu: usize, start: u64, len: u64) -> Result<()> {
        let bio = Bio::new(Op::WriteZeroes, Sector::from_bytes_floor(start), len);
        self.ended("zero", start, len, self.target.submit_async(cpu, bio).await.status())
    }

    fn ended(&self, doing: &str, start: u64, len: u64, status: Status) -> Result<()> {
        if status.is_ok() { Ok(()) } else { Err(io_error(doing, &self.uris.1, start, len, status)) }
    }

    /// Writes data, and zeroes as zeroes. Says how many bytes those were.
    async fn write_without_zeroes(&self, cpu: usize, start: u64, data: &[Segment]) -> Result<u64> {
        let mut zeroed = 0;
        let mut at = start;
        for (list, zero) in by_zeroes(data) {
            let len = blockyard_buf::total_len(&list) as u64;
            if zero {
                self.zero(cpu, at, len).await?;
                zeroed += len;
            } else {
                self.write(cpu, at, list).await?;
            }
            at += len;
        }
        Ok(zeroed)
    }

    /// Makes what is done durable, then writes that down.
    fn checkpoint(&self, journal: Option<&Journal>) -> Result<()> {
        // What ends after this is not known to be covered by the flush.
        let done = self.done.lock().ranges.clone();
        let status = self.target.submit_and_wait(0, Bio::flush()).status();
        if !status.is_ok() {
            let what = format!("cannot flush {}: what was written may not be there", self.uris.1);
            return Err(Error::failed(what).caused_by(status));
        }
        journal.map_or(Ok(()), |journal| journal.write(&done))
    }
}

/// Runs of blocks that are all zeroes, or not.
fn by_zeroes(data: &[Segment]) -> Vec<(Segments, bool)> {
    let mut runs: Vec<(Segments, bool)> = Vec::new();
    let mut buffer = vec![0; ZERO_BLOCK];
    // Bytes of the block so far, and whether all of them are zeroes.
    let (mut filled, mut zero) = (0, true);
    let mut block = Segments::new();
    let mut close = |block: &mut Segments, zero: bool| {
        let block = std::mem::take(block);
        match runs.last_mut() {
            Some((list, last)) if *last == zero => list.extend(block),
            _ if block.is_empty() => {}
            _ => runs.push((block, zero)),
        }
    };
    for segment in data {
        let mut at = 0;
        while at < segment.len() {
            let part = segment.slice(at, (segment.len() - at).min(ZERO_BLOCK - filled));
            if zero && !part.is_zero_run() {
                let bytes = &mut buffer[..part.len()];
                part.copy_to(bytes);
                zero = is_zero(bytes);
            }
            at += part.len();
            filled += part.len();
            block.push(part);
            if filled == ZERO_BLOCK {
                close(&mut block, zero);
                (filled, zero) = (0, true);
            }
        }
    }
    close(&mut block, zero);
    runs
}

/// Whether all bytes are zeroes, word by word.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_in_data_are_found_block_by_block() {
        let mut bytes = vec![0; 4 * ZERO_BLOCK + 512];
        bytes[0] = 1;
        bytes[3 * ZERO_BLOCK - 1] = 1;
        // In pieces that are no blocks.
        let data = [
            Segment::from_vec(bytes[..50_000].to_vec()),
            Segment::from_vec(bytes[50_000..].to_vec()),
        ];
        let runs: Vec<_> = by_zeroes(&data)
            .iter()
            .map(|(list, zero)| (blockyard_buf::total_len(list), *zero))
            .collect();
        let expected = [
            (ZERO_BLOCK, false),
            (ZERO_BLOCK, true),
            (ZERO_BLOCK, false),
            (ZERO_BLOCK + 512, true),
        ];
        assert_eq!(runs, expected);
        assert!(by_zeroes(&[]).is_empty());
    }
}
