//! What is in messages, field by field.

use blockyard_buf::RegionSpec;

/// Takes fields off the front of a payload; `None` where it is too short.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (now, later) = self.0.split_first_chunk::<N>()?;
        self.0 = later;
        Some(*now)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_ne_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_ne_bytes)
    }

    /// The rest, which is `len` bytes.
    pub(super) fn rest(&mut self, len: usize) -> Option<&'a [u8]> {
        (self.0.len() == len).then(|| std::mem::take(&mut self.0))
    }

    /// Nothing is left.
    pub(super) fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// The words of a header.
pub(super) fn words<const N: usize, const BYTES: usize>(bytes: &[u8; BYTES]) -> [u32; N] {
    let mut reader = Reader(bytes);
    std::array::from_fn(|_| reader.u32().unwrap_or_default())
}

/// "A vring state description": which ring, and a number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringState {
    /// Which ring.
    pub index: u32,
    /// The number.
    pub num: u32,
}

impl VringState {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self { index: reader.u32()?, num: reader.u32()? })
    }

    pub(super) fn write(self, out: &mut Vec<u8>) {
        [self.index, self.num].iter().for_each(|word| out.extend(word.to_ne_bytes()));
    }
}

/// "A vring address description": where a ring is, in the front-end's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringAddr {
    /// Which ring.
    pub index: u32,
    /// Bit 0: log what is written.
    pub flags: u32,
    /// Its descriptor table.
    pub descriptor: u64,
    /// Its used ring.
    pub used: u64,
    /// Its available ring.
    pub available: u64,
    /// Where in the guest writes to the used ring are logged.
    pub log: u64,
}

impl VringAddr {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            index: reader.u32()?,
            flags: reader.u32()?,
            descriptor: reader.u64()?,
            used: reader.u64()?,
            available: reader.u64()?,
            log: reader.u64()?,
        })
    }

    pub(super) fn write(self, out: &mut Vec<u8>) {
        [self.index, self.flags].iter().for_each(|word| out.extend(word.to_ne_bytes()));
        let words = [self.descriptor, self.used, self.available, self.log];
        words.iter().for_each(|word| out.extend(word.to_ne_bytes()));
    }
}

/// "Inflight description": where the in-flight region is in its file, and for how many rings of which size it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inflight {
    /// Bytes.
    pub mmap_size: u64,
    /// Where it starts in its file.
    pub mmap_offset: u64,
    /// Rings.
    pub num_queues: u16,
    /// Descriptors of each.
    pub queue_size: u16,
}

impl Inflight {
    /// C adds so many bytes at the end of the structure. QEMU sends and wants them, the specification does not show them.
    const PADDING: usize = 4;

    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let inflight = Self {
            mmap_size: reader.u64()?,
            mmap_offset: reader.u64()?,
            num_queues: reader.u16()?,
            queue_size: reader.u16()?,
        };
        if reader.0.len() == Self::PADDING {
            reader.rest(Self::PADDING)?;
        }
        Some(inflight)
    }

    pub(super) fn write(self, out: &mut Vec<u8>) {
        [self.mmap_size, self.mmap_offset].iter().for_each(|word| out.extend(word.to_ne_bytes()));
        [self.num_queues, self.queue_size].iter().for_each(|word| out.extend(word.to_ne_bytes()));
        out.extend([0; Self::PADDING]);
    }
}

/// A part of the configuration space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSpan {
    /// Where it starts.
    pub offset: u32,
    /// 0 for what a guest may write, 1 for live migration.
    pub flags: u32,
    /// What is there, or is to be; in a request for it, as many bytes of any kind.
    pub bytes: Vec<u8>,
}

impl ConfigSpan {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let (offset, size, flags) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let bytes = reader.rest(usize::try_from(size).ok()?)?.to_vec();
        Some(Self { offset, flags, bytes })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let size = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        [self.offset, size, self.flags].iter().for_each(|word| out.extend(word.to_ne_bytes()));
        out.extend(&self.bytes);
    }
}

/// "Memory regions description", one region.
pub(super) fn read_region(reader: &mut Reader<'_>) -> Option<RegionSpec> {
    Some(RegionSpec {
        guest_addr: reader.u64()?,
        size: reader.u64()?,
        user_addr: reader.u64()?,
        mmap_offset: reader.u64()?,
    })
}

pub(super) fn write_region(region: &RegionSpec, out: &mut Vec<u8>) {
    let words = [region.guest_addr, region.size, region.user_addr, region.mmap_offset];
    words.iter().for_each(|word| out.extend(word.to_ne_bytes()));
}
