//! What the export is to the block layer.

use blockyard_blkmq::{BlockSize, Features, Limits, Sector};
use blockyard_nbd::BlockSizes;
use blockyard_nbd::client::Negotiated;
use blockyard_nbd::wire::{BASE_ALLOCATION, HeaderStyle, TransmissionFlags};

use crate::error::{Error, ErrorKind};

/// An export as its server described it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// How large it is, in whole blocks of the disk's.
    pub capacity: Sector,
    /// Bytes at the end of that which the export does not have, or which cannot be reached: what is no whole block of the
    /// server's own.
    pub tail_padding: u32,
    /// How large it is in bytes, as the server has it.
    pub size: u64,
    /// What can be asked of it.
    pub limits: Limits,
    /// Whether it cannot be written to.
    pub read_only: bool,
    /// Whether several connections see one disk.
    pub multi_conn: bool,
    /// The headers that were agreed on.
    pub style: HeaderStyle,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// The server's own name and description of it.
    pub name: String,
    /// The server's words on it, mostly none.
    pub description: String,
    /// The server's smallest block.
    minimum: u32,
    flags: TransmissionFlags,
    block_status: bool,
}

/// The blocks of a disk that hold so many bytes, and the padding of the last.
fn padded(size: u64, minimum: u32, block: BlockSize) -> (Sector, u32) {
    let size = size.min(Sector::MAX.bytes());
    block.padded(size - size % u64::from(minimum.max(1)))
}

impl Export {
    pub(crate) fn new(negotiated: &Negotiated, read_only: bool) -> Self {
        let info = &negotiated.export;
        let flags = info.flags;
        let read_only = read_only || flags.contains(TransmissionFlags::READ_ONLY);
        let limits = limits(negotiated, read_only);
        let minimum = info.block_sizes.unwrap_or(BlockSizes::DEFAULT).minimum();
        let (capacity, tail_padding) = padded(info.size, minimum, limits.logical_block_size);
        Self {
            capacity,
            tail_padding,
            size: info.size,
            minimum,
            limits,
            read_only,
            multi_conn: flags.contains(TransmissionFlags::CAN_MULTI_CONN),
            style: negotiated.style,
            tls: negotiated.tls,
            name: info.name.clone(),
            description: info.description.clone(),
            flags,
            block_status: has_block_status(negotiated),
        }
    }

    /// The same with another size.
    pub(crate) fn of_size(&self, size: u64) -> Self {
        let (capacity, tail_padding) = padded(size, self.minimum, self.limits.logical_block_size);
        Self { capacity, tail_padding, size, ..self.clone() }
    }

    /// How many bytes of it can be reached.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.capacity.bytes() - u64::from(self.tail_padding)
    }

    /// Whether an export that was found later can stand for this one: it is no smaller, and can do all that
    /// users were told.
    ///
    /// # Errors
    /// [`ErrorKind::Changed`], with what is different.
    pub(crate) fn accepts(&self, other: &Self) -> Result<(), Error> {
        let changed = |what: String| Err(Error::new(ErrorKind::Changed, what));
        if other.bytes() < self.bytes() {
            return changed(format!(
                "the export shrank from {} to {} bytes: restore its size, or attach it again",
                self.bytes(),
                other.bytes()
            ));
        }
        if other.read_only && !self.read_only {
            return changed("the export became read-only".to_owned());
        }
        let block = |export: &Self| export.limits.logical_block_size;
        if block(other) > block(self) || other.limits.max_hw_sectors < self.limits.max_sectors {
            return changed("the block sizes of the export changed".to_owned());
        }
        // Others are advice, tell the cost of things, or are not used.
        let used = TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::SEND_FUA
            | TransmissionFlags::SEND_TRIM
            | TransmissionFlags::SEND_WRITE_ZEROES
            | TransmissionFlags::SEND_FAST_ZERO;
        let lost = (self.flags & used) - other.flags;
        if !lost.is_empty() || self.block_status && !other.block_status {
            return changed(format!("the export lost capabilities: {lost:?}"));
        }
        if self.style == HeaderStyle::Extended && other.style != HeaderStyle::Extended {
            return changed("the server no longer supports extended headers".to_owned());
        }
        Ok(())
    }
}

fn has_block_status(negotiated: &Negotiated) -> bool {
    negotiated.contexts.iter().any(|context| context.name == BASE_ALLOCATION)
}

/// The smallest unit that the disk is asked in.
pub(crate) fn block_size(negotiated: &Negotiated) -> BlockSize {
    let sizes = negotiated.export.block_sizes.unwrap_or(BlockSizes::DEFAULT);
    BlockSize::new(sizes.minimum().max(512)).unwrap_or(BlockSize::MAX)
}

fn limits(negotiated: &Negotiated, read_only: bool) -> Limits {
    let info = &negotiated.export;
    let can = |flag| info.flags.contains(flag);
    let sizes = info.block_sizes.unwrap_or(BlockSizes::DEFAULT);
    let block = block_size(negotiated);
    let physical = BlockSize::new(sizes.preferred().clamp(block.bytes(), BlockSize::MAX.bytes()));
    let page_sectors = 8_u32.max(block.bytes() >> 9);
    // Compact headers have 32 bits for a length in bytes, and so have holes in all replies.
    let most = if negotiated.style == HeaderStyle::Extended {
        u32::MAX
    } else {
        u32::MAX / 65536 * (65536 >> 9)
    };
    let longest = |flag| if can(flag) { most } else { 0 };
    // Payloads are handed on as they were received.
    let mut features = Features::NOWAIT | Features::OWN_MEMORY;
    // Which TLS has to see.
    features.set(Features::FILE_RANGES, !negotiated.tls);
    features.set(Features::WRITE_CACHE, can(TransmissionFlags::SEND_FLUSH));
    // Where nothing is written there is nothing to make durable.
    features.set(Features::NO_FLUSH, !can(TransmissionFlags::SEND_FLUSH) && !read_only);
    features.set(Features::FUA, can(TransmissionFlags::SEND_FUA));
    features.set(Features::ROTATIONAL, can(TransmissionFlags::ROTATIONAL));
    features.set(Features::PREFETCH, can(TransmissionFlags::SEND_CACHE));
    features.set(Features::BLOCK_STATUS, has_block_status(negotiated));
    Limits {
        logical_block_size: block,
        physical_block_size: physical.unwrap_or(block),
        io_opt: sizes.preferred(),
        max_hw_sectors: (sizes.max_payload().min(32 << 20) >> 9).max(page_sectors),
        max_segments: 1024,
        max_segment_size: u32::MAX,
        max_hw_discard_sectors: longest(TransmissionFlags::SEND_TRIM),
        max_write_zeroes_sectors: longest(TransmissionFlags::SEND_WRITE_ZEROES),
        discard_granularity: sizes.preferred(),
        features,
        ..Limits::default()
    }
}

#[cfg(test)]
mod tests {
    use blockyard_nbd::{ExportInfo, MetaContext};

    use super::*;

    fn negotiated(size: u64, flags: TransmissionFlags, style: HeaderStyle) -> Negotiated {
        let info = ExportInfo {
            name: "x".into(),
            description: String::new(),
            size,
            flags,
            block_sizes: BlockSizes::new(4096, 65536, 1 << 20).ok(),
        };
        let contexts = vec![MetaContext { id: 1, name: BASE_ALLOCATION.into() }];
        Negotiated { export: info, style, contexts, tls: false }
    }

    #[test]
    fn flags_become_limits_and_features() {
        let all = Export::new(
            &negotiated(10_000, TransmissionFlags::all(), HeaderStyle::Extended),
            false,
        );
        assert_eq!(all.capacity, Sector(16), "whole blocks of 4096");
        assert!(all.read_only && all.multi_conn);
        let limits = all.limits.clone().validate().unwrap();
        assert_eq!(limits.logical_block_size, BlockSize::B4096);
        assert_eq!(limits.physical_block_size, BlockSize::MAX);
        assert_eq!(limits.max_hw_sectors, 2048);
        assert!(limits.max_discard_sectors > 1 << 31 && limits.max_write_zeroes_sectors > 1 << 31);
        let features = Features::WRITE_CACHE
            | Features::FUA
            | Features::ROTATIONAL
            | Features::NOWAIT
            | Features::OWN_MEMORY
            | Features::FILE_RANGES
            | Features::BLOCK_STATUS
            | Features::PREFETCH;
        assert_eq!(limits.features, features);

        let mut plain = negotiated(1 << 20, TransmissionFlags::HAS_FLAGS, HeaderStyle::Simple);
        plain.contexts.clear();
        plain.export.block_sizes = None;
        let plain = Export::new(&plain, false);
        assert!(!plain.read_only && !plain.multi_conn);
        let limits = plain.limits.validate().unwrap();
        assert_eq!(limits.logical_block_size, BlockSize::B512);
        assert_eq!(limits.max_hw_sectors, (32 << 20) >> 9);
        assert_eq!((limits.max_discard_sectors, limits.max_write_zeroes_sectors), (0, 0));
        let own = Features::NOWAIT | Features::OWN_MEMORY | Features::FILE_RANGES;
        assert_eq!(limits.features, own | Features::NO_FLUSH);
    }

    #[test]
    fn a_server_without_flush_makes_nothing_durable_but_what_it_is_told_to_write_through() {
        let features = |flags, read_only| {
            let negotiated = negotiated(1 << 20, flags, HeaderStyle::Structured);
            let limits = Export::new(&negotiated, read_only).limits.validate().unwrap();
            limits.features & (Features::WRITE_CACHE | Features::NO_FLUSH | Features::FUA)
        };
        let (flush, fua) = (TransmissionFlags::SEND_FLUSH, TransmissionFlags::SEND_FUA);
        let none = TransmissionFlags::empty();
        assert_eq!(features(none, false), Features::NO_FLUSH);
        assert_eq!(features(fua, false), Features::NO_FLUSH | Features::FUA);
        assert_eq!(features(flush, false), Features::WRITE_CACHE);
        assert_eq!(features(none, true), Features::empty(), "nothing is written");
        assert_eq!(features(TransmissionFlags::READ_ONLY, false), Features::empty());
    }

    #[test]
    fn what_is_no_whole_sector_is_padded_unless_the_server_has_larger_blocks() {
        let mut odd = negotiated(241_059, TransmissionFlags::all(), HeaderStyle::Structured);
        odd.export.block_sizes = None;
        let export = Export::new(&odd, false);
        assert_eq!((export.capacity, export.tail_padding), (Sector(471), 93));
        assert_eq!((export.bytes(), export.size), (241_059, 241_059));
        let grown = export.of_size(241_060);
        assert_eq!((grown.capacity, grown.bytes()), (Sector(471), 241_060));
        assert!(export.accepts(&grown).is_ok() && grown.accepts(&export).is_err());
        odd.export.block_sizes = BlockSizes::new(512, 4096, 1 << 20).ok();
        let export = Export::new(&odd, false);
        assert_eq!((export.capacity, export.bytes()), (Sector(470), 240_640));
        odd.export.size = 0;
        assert_eq!(Export::new(&odd, false).bytes(), 0);
    }

    #[test]
    fn compact_headers_have_32_bits_for_a_length() {
        let export = Export::new(
            &negotiated(1 << 40, TransmissionFlags::all(), HeaderStyle::Structured),
            false,
        );
        let longest = u64::from(export.limits.max_hw_discard_sectors) << 9;
        assert!(longest < 1 << 32 && longest > (1 << 32) - (1 << 20), "{longest:#x}");
    }

    #[test]
    fn a_disk_may_grow_and_learn_but_not_shrink_or_forget() {
        let can = TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_TRIM;
        let style = HeaderStyle::Structured;
        let before = Export::new(&negotiated(1 << 20, can, style), false);
        let after = |size, flags, style| {
            before.accepts(&Export::new(&negotiated(size, flags, style), false))
        };
        assert!(after(1 << 20, can, style).is_ok());
        assert!(
            after(1 << 21, TransmissionFlags::all() - TransmissionFlags::READ_ONLY, style).is_ok()
        );
        assert!(after(1 << 20, can, HeaderStyle::Extended).is_ok());
        let smaller = after(1 << 19, can, style).unwrap_err();
        assert!(smaller.to_string().contains("from 1048576 to 524288 bytes"), "{smaller}");
        assert!(after(1 << 20, TransmissionFlags::SEND_FLUSH, style).is_err());
        let unknown = TransmissionFlags::from_bits_retain(1 << 15);
        let unused = unknown | TransmissionFlags::SEND_RESIZE | TransmissionFlags::SEND_CACHE;
        let before = Export::new(&negotiated(1 << 20, can | unused, style), false);
        let same = Export::new(&negotiated(1 << 20, can, style), false);
        assert!(before.accepts(&same).is_ok(), "nobody relies on these");
        assert!(after(1 << 20, can | TransmissionFlags::READ_ONLY, style).is_err());
    }
}
