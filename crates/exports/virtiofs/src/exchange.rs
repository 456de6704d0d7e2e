//! A descriptor chain as a request, and a place for its answer (virtio 1.3, section 5.11.6).
//!
//! Its buffers may be cut anywhere. What a request is goes to memory of ours; the data of a WRITE, and the place for an answer,
//! stay where they are.

use blockyard_buf::{Access, GuestView, Segment};
use blockyard_fs::{Answers, FileSystem};
use blockyard_fuse::wire::{InHeader, Wire};
use blockyard_fuse::{Request, head_len};
use blockyard_vhost_user::queue::{Buffer, Chain};
use thiserror::Error;

/// Bytes of the longest request, without data: a BATCH_FORGET as long as a WRITE. What is longer is refused as it is.
const MAX_HEAD_BYTES: usize = (1 << 20) + (4 << 10);

/// A request that cannot be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Broken {
    /// It does not say which it is.
    #[error("a request of {0} bytes; its header has {header}", header = InHeader::LEN)]
    ShortHeader(usize),
    /// Not all of it, or of the place for its answer, is in the guest's memory.
    #[error("a request that is not in the guest's memory")]
    Nowhere,
}

/// A request and a place for its answer. To be used again and again.
#[derive(Debug, Default)]
pub struct Exchange {
    head: Vec<u8>,
    opcode: u32,
    data: Vec<Segment>,
    room: Vec<Segment>,
}

/// What is left of the buffers that a device reads.
struct Unread<'c> {
    buffers: &'c [Buffer],
    /// Bytes of the first that were read.
    done: u32,
}

impl Unread<'_> {
    /// The next bytes that lie together, at most `most`: their address and how many.
    fn next(&mut self, most: usize) -> Option<(u64, usize)> {
        loop {
            let (first, rest) = self.buffers.split_first()?;
            let left = first.len.saturating_sub(self.done);
            if left == 0 {
                (self.buffers, self.done) = (rest, 0);
                continue;
            }
            let run = left.min(u32::try_from(most).unwrap_or(u32::MAX));
            // One past the end of all addresses is nowhere.
            let addr = first.addr.saturating_add(self.done.into());
            self.done += run;
            return (run > 0).then(|| (addr, usize::try_from(run).unwrap_or(0)));
        }
    }
}

impl Exchange {
    /// Takes the request that is in a chain.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn read(&mut self, chain: &Chain, guest: &GuestView) -> Result<(), Broken> {
        self.clear();
        let total: usize = chain.readable.iter().map(|buffer| buffer.len as usize).sum();
        let short = Broken::ShortHeader(total);
        let mut unread = Unread { buffers: &chain.readable, done: 0 };
        self.fill(&mut unread, guest, InHeader::LEN)?;
        let header = Request::header(&self.head).ok_or(short)?;
        self.opcode = header.opcode;
        self.fill(&mut unread, guest, head_len(&header).min(MAX_HEAD_BYTES))?;
        let take = |(addr, len), access, list: &mut Vec<Segment>| {
            guest.pieces(addr, len, access, |piece| list.push(piece)).ok_or(Broken::Nowhere)
        };
        while let Some(place) = unread.next(usize::MAX) {
            take(place, Access::Read, &mut self.data)?;
        }
        let mut unwritten = Unread { buffers: &chain.writable, done: 0 };
        while let Some(place) = unwritten.next(usize::MAX) {
            take(place, Access::Write, &mut self.room)?;
        }
        Ok(())
    }

    /// Reads on until so many bytes of the request are here, or there are no more.
    fn fill(
        &mut self,
        unread: &mut Unread<'_>,
        guest: &GuestView,
        len: usize,
    ) -> Result<(), Broken> {
        while self.head.len() < len {
            let filled = self.head.len();
            let Some((addr, run)) = unread.next(len - filled) else { return Ok(()) };
            self.head.resize(filled + run, 0);
            let place = self.head.get_mut(filled..).unwrap_or_default();
            guest.read(addr, place).ok_or(Broken::Nowhere)?;
        }
        Ok(())
    }

    /// Lets go of the guest's memory.
    pub fn clear(&mut self) {
        self.head.clear();
        self.data.clear();
        self.room.clear();
    }

    /// Which operation it says to be.
    #[must_use]
    pub const fn opcode(&self) -> u32 {
        self.opcode
    }

    /// All of it, but for its data.
    pub(crate) fn head(&self) -> &[u8] {
        &self.head
    }

    /// The place for the answer.
    pub(crate) fn room(&self) -> &[Segment] {
        &self.room
    }

    /// Carries it out, and answers it; says how many bytes were written to the guest.
    pub fn carry_out(&self, answers: &mut Answers, fs: &dyn FileSystem) -> usize {
        answers.answer_in_place(fs, &self.head, &self.data, &self.room).unwrap_or(0)
    }
}
