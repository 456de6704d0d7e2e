//! An ended bio becomes a reply.

use blockyard_blkmq::{Bio, Extent, Status};
use blockyard_buf::{Segment, total_len};
use blockyard_nbd::server::{ExtentList, ReplyEncoder};
use blockyard_nbd::wire::{AllocationFlags, Command, CommandFlags, ErrorCode};

use super::requests::Slot;
use super::transmit::Transmit;
use crate::config::ALLOCATION_CONTEXT;
use crate::status::error_code;

/// The shortest run of zeroes that is told rather than sent: a shorter one costs the client more than it saves.
const MIN_HOLE: usize = 4096;

/// What all replies of a connection have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replies {
    pub(super) encoder: ReplyEncoder,
    pub(super) max_payload: u32,
}

impl Replies {
    /// Appends the reply of a bio, and the bio.
    pub(super) fn reply(&self, out: &mut Transmit, slot: &Slot, bio: Box<Bio>) {
        let encoder = self.encoder;
        match (slot.command, bio.status()) {
            (Command::Read, Status::Ok) => self.data(out, slot, bio.data()),
            (Command::BlockStatus, Status::Ok) => self.extents(out, slot, &bio.extents),
            (_, Status::Ok) => out.head(&encoder.ok(slot.to)),
            (_, status) => out.head(&encoder.error(slot.to, error_code(bio.op, status))),
        }
        out.keep(bio);
    }

    fn data(&self, out: &mut Transmit, slot: &Slot, segments: &[Segment]) {
        if total_len(segments) as u64 != slot.length {
            // The driver supplied less than was asked of it.
            return out.head(&self.encoder.error(slot.to, ErrorCode::EIO));
        }
        if !self.encoder.can_send_holes() || slot.flags.contains(CommandFlags::DF) {
            out.head(&self.encoder.data(slot.to, slot.to.offset, len32(slot.length), true));
            return (0..segments.len()).for_each(|at| out.data(at));
        }
        let (mut at, mut offset) = (0, slot.to.offset);
        while at < segments.len() {
            let run = Run::first(&segments[at..]);
            let done = at + run.segments == segments.len();
            if run.is_hole {
                out.head(&self.encoder.hole(slot.to, offset, len32(run.len), done));
            } else {
                out.head(&self.encoder.data(slot.to, offset, len32(run.len), done));
                (at..at + run.segments).for_each(|at| out.data(at));
            }
            at += run.segments;
            offset += run.len;
        }
    }

    fn extents(&self, out: &mut Transmit, slot: &Slot, extents: &[Extent]) {
        let one = slot.flags.contains(CommandFlags::REQ_ONE);
        let mut list = ExtentList::new(slot.length, one, self.max_payload);
        for extent in extents {
            let mut flags = AllocationFlags::empty();
            flags.set(AllocationFlags::HOLE, extent.hole);
            flags.set(AllocationFlags::ZERO, extent.zero);
            if !list.push(extent.len, flags.bits().into()) {
                break;
            }
        }
        if list.extents().is_empty() {
            // A driver that has nothing to say: all of it counts as data.
            list.push(slot.length, 0);
        }
        out.head_with(|heads| {
            self.encoder.block_status(heads, slot.to, ALLOCATION_CONTEXT, &list, true);
        });
    }
}

/// Segments that make one chunk.
struct Run {
    is_hole: bool,
    segments: usize,
    len: u64,
}

impl Run {
    /// The one that `segments`, which are not empty, begin with.
    fn first(segments: &[Segment]) -> Self {
        let mut run = Self { is_hole: hole_len(segments) > 0, segments: 0, len: 0 };
        if run.is_hole {
            let zeroes = segments.iter().take_while(|segment| segment.is_zero_run());
            zeroes.for_each(|segment| run.add(segment));
        } else {
            while run.segments < segments.len() && hole_len(&segments[run.segments..]) == 0 {
                run.add(&segments[run.segments]);
            }
        }
        run
    }

    fn add(&mut self, segment: &Segment) {
        self.segments += 1;
        self.len += segment.len() as u64;
    }
}

/// Bytes of zeroes that `segments` begin with, if they are worth a chunk of their own.
fn hole_len(segments: &[Segment]) -> usize {
    let mut len = 0;
    for segment in segments.iter().take_while(|segment| segment.is_zero_run()) {
        len += segment.len();
        if len >= MIN_HOLE {
            return len;
        }
    }
    0
}

/// A length within the maximum payload, which has 32 bits.
fn len32(len: u64) -> u32 {
    let short = u32::try_from(len);
    assert!(short.is_ok(), "{len} bytes are more than a payload can have");
    short.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `z` is a run of zeroes, `d` data; the number is the length.
    fn runs(list: &[(char, usize)]) -> Vec<(bool, u64)> {
        let segments: Vec<_> = list
            .iter()
            .map(|&(kind, len)| match kind {
                'z' => Segment::zero_run(len),
                _ => Segment::from_vec(vec![0; len]),
            })
            .collect();
        let (mut at, mut runs) = (0, Vec::new());
        while at < segments.len() {
            let run = Run::first(&segments[at..]);
            at += run.segments;
            runs.push((run.is_hole, run.len));
        }
        runs
    }

    #[test]
    fn zeroes_of_a_page_are_a_hole_and_less_is_data() {
        assert_eq!(runs(&[('d', 4096)]), [(false, 4096)]);
        assert_eq!(runs(&[('z', 4096)]), [(true, 4096)]);
        assert_eq!(runs(&[('z', 512)]), [(false, 512)]);
        assert_eq!(runs(&[('z', 2048), ('z', 2048)]), [(true, 4096)], "together they are");
        assert_eq!(
            runs(&[('d', 512), ('z', 512), ('d', 512), ('z', 8192), ('d', 1)]),
            [(false, 1536), (true, 8192), (false, 1)]
        );
        assert_eq!(
            runs(&[('z', 1 << 20), ('z', 5), ('d', 9)]),
            [(true, (1 << 20) + 5), (false, 9)]
        );
    }
}
