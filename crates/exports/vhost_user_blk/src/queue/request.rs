//! A chain as a request of a block device (virtio 1.2, section 5.2.6).

use blockyard_blkmq::Op;
use blockyard_buf::GuestView;
use blockyard_vhost_user::queue::{Buffer, Chain};

use crate::device::MAX_RANGES;

/// Bytes of the header: type, a reserved word, sector.
pub(super) const HEADER_LEN: usize = 16;
/// Bytes of a range of a discard or the like: sector, number of sectors, flags.
pub(super) const RANGE_LEN: usize = 16;
/// The flag "unmap" of a range.
const UNMAP: u32 = 1;

/// The answers (`VIRTIO_BLK_S_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Ok = 0,
    IoErr = 1,
    Unsupported = 2,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read {
        sector: u64,
    },
    Write {
        sector: u64,
    },
    Flush,
    Id,
    /// A list of ranges is in its data.
    Ranges(Op),
    Unknown,
}

/// A request that cannot be answered: there is no place for the answer, or nothing is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("a request without a byte for its status")]
    NoStatus,
    #[error("a request whose status byte is not in the guest's memory")]
    StatusNowhere,
    #[error("a request with a header of less than {HEADER_LEN} bytes")]
    ShortHeader,
    #[error("a request whose header is not in the guest's memory")]
    HeaderNowhere,
}

/// A request, taken out of its chain: what is left in that is data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: Kind,
    /// The guest's address of the status byte.
    pub(super) status_addr: u64,
    /// The first buffer with data to read.
    pub(super) first: usize,
}

impl Request {
    /// Takes header and status off. Buffers may be cut anywhere ("any layout", section 2.7.4): the header is the first 16
    /// bytes that the device reads, the status the last byte that it writes.
    ///
    /// # Errors
    /// [`Broken`].
    #[inline]
    pub(super) fn take(chain: &mut Chain, guest: &GuestView) -> Result<Self, Broken> {
        let status_addr = take_status(&mut chain.writable).ok_or(Broken::NoStatus)?;
        if !guest.contains(status_addr, 1) {
            return Err(Broken::StatusNowhere);
        }
        let mut header = [0; HEADER_LEN];
        let (mut first, mut filled) = (0, 0);
        while filled < HEADER_LEN {
            let buffer = chain.readable.get_mut(first).ok_or(Broken::ShortHeader)?;
            let run = usize::try_from(buffer.len).unwrap_or(usize::MAX).min(HEADER_LEN - filled);
            guest
                .read(buffer.addr, &mut header[filled..filled + run])
                .ok_or(Broken::HeaderNowhere)?;
            filled += run;
            skip(buffer, run);
            first += usize::from(buffer.len == 0);
        }
        Ok(Self { kind: Kind::of(&header), status_addr, first })
    }
}

fn take_status(writable: &mut Vec<Buffer>) -> Option<u64> {
    loop {
        let last = writable.last_mut()?;
        if last.len > 0 {
            last.len -= 1;
            let addr = last.addr.checked_add(last.len.into());
            if last.len == 0 {
                writable.pop();
            }
            return addr;
        }
        writable.pop();
    }
}

/// Takes the first bytes off.
fn skip(buffer: &mut Buffer, bytes: usize) {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    // It was read up to there, so that its address does not wrap.
    buffer.addr = buffer.addr.saturating_add(bytes.into());
    buffer.len -= bytes;
}

impl Kind {
    fn of(header: &[u8; HEADER_LEN]) -> Self {
        let [t0, t1, t2, t3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = *header;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            0 => Self::Read { sector },
            1 => Self::Write { sector },
            4 => Self::Flush,
            8 => Self::Id,
            11 => Self::Ranges(Op::Discard),
            13 => Self::Ranges(Op::WriteZeroes),
            14 => Self::Ranges(Op::SecureErase),
            _ => Self::Unknown,
        }
    }
}

/// A range of a discard, a write-zeroes or a secure erase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) sector: u64,
    pub(super) sectors: u32,
    pub(super) unmap: bool,
}

/// The ranges of one request.
pub(super) struct Ranges {
    list: [Range; MAX_RANGES as usize],
    len: usize,
}

impl Ranges {
    /// Reads them from the data of a request.
    ///
    /// # Errors
    /// What the request is to be answered with.
    pub(super) fn read(op: Op, data: &[Buffer], guest: &GuestView) -> Result<Self, Answer> {
        let mut bytes = [0; RANGE_LEN * MAX_RANGES as usize];
        let mut filled = 0_usize;
        for buffer in data {
            let len = usize::try_from(buffer.len).unwrap_or(usize::MAX);
            let place = bytes.get_mut(filled..filled.saturating_add(len)).ok_or(Answer::IoErr)?;
            guest.read(buffer.addr, place).ok_or(Answer::IoErr)?;
            filled += len;
        }
        if filled == 0 || !filled.is_multiple_of(RANGE_LEN) {
            return Err(Answer::IoErr);
        }
        let mut ranges = Self { list: Default::default(), len: filled / RANGE_LEN };
        for (range, bytes) in ranges.list.iter_mut().zip(bytes[..filled].chunks_exact(RANGE_LEN)) {
            *range = Range::parse(op, bytes)?;
        }
        Ok(ranges)
    }

    pub(super) fn as_slice(&self) -> &[Range] {
        &self.list[..self.len]
    }
}

impl Range {
    fn parse(op: Op, bytes: &[u8]) -> Result<Self, Answer> {
        let word = |at: usize| {
            bytes
                .get(at..)
                .and_then(|rest| rest.first_chunk())
                .map_or(0, |b| u32::from_le_bytes(*b))
        };
        let sector = u64::from(word(0)) | u64::from(word(4)) << 32;
        let flags = word(12);
        // "If any reserved bit in flags is set, or unmap in a discard or a secure erase, VIRTIO_BLK_S_UNSUPP".
        let allowed = if op == Op::WriteZeroes { UNMAP } else { 0 };
        if flags & !allowed != 0 {
            return Err(Answer::Unsupported);
        }
        Ok(Self { sector, sectors: word(8), unmap: flags & UNMAP != 0 })
    }
}
