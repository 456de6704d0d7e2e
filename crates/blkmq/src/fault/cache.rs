//! What was written and not flushed, while power cuts are simulated: it is in memory, and nowhere else.
//!
//! A flush takes all that is there when it comes, and writes it to the driver before the driver flushes; what comes meanwhile is
//! of the next one. So a power cut, which drops what was not taken, leaves exactly what was flushed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::limits::Features;
use crate::units::{SECTOR_SIZE, Sector};

/// Sectors of a page.
const PAGE_SECTORS: u64 = 8;
const SECTOR: usize = 512;
const PAGE_BYTES: usize = 8 * SECTOR;
const _: () =
    assert!(SECTOR as u64 == SECTOR_SIZE && PAGE_BYTES as u64 == PAGE_SECTORS * SECTOR_SIZE);

/// Some sectors of a page.
#[derive(Clone)]
pub(crate) struct Page {
    /// Which of them: a bit for each.
    there: u8,
    bytes: Box<[u8; PAGE_BYTES]>,
}

/// By the number of the page.
type Pages = BTreeMap<u64, Page>;

/// What became of a flush that wants to begin.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// It is the one that writes now.
    Yes,
    /// There is another one: it has to try again.
    Busy,
    /// It came before the power went: what it is to make durable may be gone.
    Late,
}

/// What makes durable what a flush has written to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durable {
    /// It is.
    Always,
    /// Each of the writes is.
    Fua,
    /// A flush of the driver.
    Flush,
}

impl Durable {
    pub(crate) fn by(features: Features) -> Self {
        if features.contains(Features::WRITE_CACHE) {
            Self::Flush
        } else if features.contains(Features::NO_FLUSH | Features::FUA) {
            Self::Fua
        } else {
            Self::Always
        }
    }
}

#[derive(Default)]
struct Held {
    /// Written, and not taken by a flush.
    new: Pages,
    /// Taken by the flush that is under way.
    taken: Pages,
    is_flushing: bool,
    /// Counts power cuts: what a flush could not write is not kept past one.
    cuts: u64,
    cuts_at_flush: u64,
    /// When the last of them was.
    cut_ns: u64,
}

pub(crate) struct WriteCache {
    max_pages: usize,
    pub(crate) durable: Durable,
    /// It was told that there was no room.
    is_told: AtomicBool,
    held: Mutex<Held>,
}

/// The sectors of a range, page by page: which page, which of its sectors, and where they are in the range.
fn pages_of(sector: Sector, len: usize) -> impl Iterator<Item = (u64, Range<usize>, usize)> {
    let (start, end) = (sector.0, sector.0 + (len as u64).div_ceil(SECTOR_SIZE));
    (start / PAGE_SECTORS..end.div_ceil(PAGE_SECTORS)).map(move |page| {
        let first = page * PAGE_SECTORS;
        let from = start.max(first);
        let to = end.min(first + PAGE_SECTORS);
        let within = |sector: u64| usize::try_from(sector).unwrap_or(usize::MAX);
        (page, within(from - first)..within(to - first), within(from - start) * SECTOR)
    })
}

fn bits(sectors: &Range<usize>) -> u8 {
    sectors.clone().fold(0, |bits, sector| bits | 1 << sector)
}

fn copy_page(page: &Page, sectors: Range<usize>, into: &mut [u8]) -> bool {
    let mut any = false;
    for (at, sector) in sectors.enumerate() {
        if page.there & 1 << sector != 0 {
            let from = &page.bytes[sector * SECTOR..(sector + 1) * SECTOR];
            into[at * SECTOR..(at + 1) * SECTOR].copy_from_slice(from);
            any = true;
        }
    }
    any
}

impl WriteCache {
    pub(crate) fn new(max_bytes: u64, durable: Durable) -> Self {
        let max_pages = usize::try_from(max_bytes / PAGE_BYTES as u64).unwrap_or(usize::MAX);
        Self {
            max_pages: max_pages.max(1),
            durable,
            is_told: AtomicBool::new(false),
            held: Mutex::default(),
        }
    }

    /// Takes a write, of zeroes if there are no bytes. Says whether there was room for it.
    pub(crate) fn write(&self, sector: Sector, len: usize, bytes: Option<&[u8]>) -> bool {
        let mut held = self.held.lock();
        let room = self.max_pages.saturating_sub(held.new.len() + held.taken.len());
        let missing = |(page, ..): &(u64, Range<usize>, usize)| !held.new.contains_key(page);
        if pages_of(sector, len).filter(missing).take(room + 1).count() > room {
            return false;
        }
        for (number, sectors, at) in pages_of(sector, len) {
            let page = held
                .new
                .entry(number)
                .or_insert_with(|| Page { there: 0, bytes: Box::new([0; PAGE_BYTES]) });
            page.there |= bits(&sectors);
            let len = sectors.len() * SECTOR;
            let into = &mut page.bytes[sectors.start * SECTOR..sectors.end * SECTOR];
            match bytes {
                Some(bytes) => into.copy_from_slice(&bytes[at..at + len]),
                None => into.fill(0),
            }
        }
        true
    }

    /// Whether this is the first time that there is no room.
    pub(crate) fn is_full_first(&self) -> bool {
        !self.is_told.swap(true, Ordering::Relaxed)
    }

    /// Whether something of the range is held.
    pub(crate) fn has(&self, sector: Sector, len: u64) -> bool {
        let held = self.held.lock();
        let (first, end) = (
            sector.0 / PAGE_SECTORS,
            (sector.0 + len.div_ceil(SECTOR_SIZE)).div_ceil(PAGE_SECTORS),
        );
        [&held.new, &held.taken].iter().any(|pages| pages.range(first..end).next().is_some())
    }

    /// What of the range is held: pages that are laid over what the driver reads, the last one on top.
    pub(crate) fn over(&self, sector: Sector, len: usize) -> Vec<(u64, Page)> {
        if !self.has(sector, len as u64) {
            return Vec::new();
        }
        let held = self.held.lock();
        let mut over = Vec::new();
        for pages in [&held.taken, &held.new] {
            for (number, ..) in pages_of(sector, len) {
                over.extend(pages.get(&number).map(|page| (number, page.clone())));
            }
        }
        over
    }

    /// Lays them over what was read.
    pub(crate) fn lay_over(over: &[(u64, Page)], sector: Sector, read: &mut [u8]) {
        for (number, sectors, at) in pages_of(sector, read.len()) {
            for (_, page) in over.iter().filter(|(its, _)| *its == number) {
                let len = sectors.len() * SECTOR;
                copy_page(page, sectors.clone(), &mut read[at..at + len]);
            }
        }
    }

    /// A flush, which came then, takes all that is there now.
    pub(crate) fn begin_flush(&self, came_ns: u64) -> Begun {
        let mut held = self.held.lock();
        if came_ns <= held.cut_ns {
            return Begun::Late;
        }
        if held.is_flushing {
            return Begun::Busy;
        }
        held.is_flushing = true;
        held.cuts_at_flush = held.cuts;
        held.taken = std::mem::take(&mut held.new);
        Begun::Yes
    }

    /// The next run of what the flush has taken, from a sector on, of at most so many bytes.
    pub(crate) fn next_run(
        &self,
        from: Sector,
        most: impl Fn(Sector) -> u64,
    ) -> Option<(Sector, Vec<u8>)> {
        let held = self.held.lock();
        let mut run: Option<(u64, u64, Vec<u8>)> = None;
        for (number, page) in held.taken.range(from.0 / PAGE_SECTORS..) {
            for within in 0..PAGE_SECTORS {
                let sector = number * PAGE_SECTORS + within;
                let is_there = page.there & 1 << within != 0 && sector >= from.0;
                let (start, most, bytes) = match &mut run {
                    None if is_there => run.insert((sector, most(Sector(sector)), Vec::new())),
                    None => continue,
                    Some(run) => run,
                };
                let continues = is_there && *start + bytes.len() as u64 / SECTOR_SIZE == sector;
                if !continues || (bytes.len() + SECTOR) as u64 > *most {
                    return run.map(|(start, _, bytes)| (Sector(start), bytes));
                }
                let at = usize::try_from(within).unwrap_or(0) * SECTOR;
                bytes.extend_from_slice(&page.bytes[at..at + SECTOR]);
            }
        }
        run.map(|(start, _, bytes)| (Sector(start), bytes))
    }

    /// It is through. What it could not make durable is held again, below what came meanwhile.
    pub(crate) fn end_flush(&self, is_durable: bool) {
        let mut held = self.held.lock();
        held.is_flushing = false;
        let taken = std::mem::take(&mut held.taken);
        if is_durable || held.cuts != held.cuts_at_flush {
            return;
        }
        for (number, mut page) in taken {
            if let Some(newer) = held.new.get(&number) {
                let all = 0..usize::try_from(PAGE_SECTORS).unwrap_or(0);
                copy_page(newer, all, &mut *page.bytes);
                page.there |= newer.there;
            }
            held.new.insert(number, page);
        }
    }

    /// The power goes: what no flush has taken is gone. Says how many bytes that were.
    pub(crate) fn cut(&self, now_ns: u64) -> u64 {
        let mut held = self.held.lock();
        held.cuts += 1;
        held.cut_ns = now_ns;
        bytes_of(&std::mem::take(&mut held.new))
    }

    /// Forgets what is past the end of a disk of so many sectors, of whose last block only `bytes` may be its own.
    pub(crate) fn truncate(&self, capacity: Sector, bytes: u64) {
        let mut held = self.held.lock();
        let Held { new, taken, .. } = &mut *held;
        let pages = capacity.0.div_ceil(PAGE_SECTORS);
        for held in [new, taken] {
            while held.last_entry().is_some_and(|last| *last.key() >= pages) {
                held.pop_last();
            }
            for (number, page) in held.range_mut(bytes / PAGE_BYTES as u64..) {
                let sectors = capacity.0.saturating_sub(number * PAGE_SECTORS).min(PAGE_SECTORS);
                page.there = (0..PAGE_SECTORS)
                    .filter(|&sector| sector < sectors)
                    .fold(0, |there, sector| there | page.there & 1 << sector);
                let past = bytes.saturating_sub(number * PAGE_BYTES as u64);
                let past = usize::try_from(past).unwrap_or(PAGE_BYTES).min(PAGE_BYTES);
                page.bytes[past..].fill(0);
            }
        }
    }

    /// Bytes that are held.
    pub(crate) fn bytes(&self) -> u64 {
        let held = self.held.lock();
        bytes_of(&held.new) + bytes_of(&held.taken)
    }
}

fn bytes_of(pages: &Pages) -> u64 {
    pages.values().map(|page| u64::from(page.there.count_ones()) * SECTOR_SIZE).sum()
}
