//! A disk under test, and how the cases talk to it.

use std::any::Any;
use std::sync::{Arc, mpsc};

use blockyard_blkmq::{Bdev, Bio, Disk, Extent, Flags, Limits, Op, SECTOR_SIZE, Sector, Status};
use blockyard_buf::{Segment, Segments};

/// The smallest disk that the cases fit on.
pub const MIN_BYTES: u64 = 2 << 20;

/// What a driver promises, beyond what its limits say.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    /// It keeps what is written. The disk that forgets everything is tested for statuses only.
    pub stores: bool,
    /// A discarded range reads as zeroes.
    pub discard_zeroes: bool,
    /// Block status knows space that was never written.
    pub holes: bool,
    /// The driver serves a disk of twice the size as soon as it is told of it.
    pub can_grow: bool,
}

/// A driver that keeps what is written, and promises nothing else.
pub const STORES: Capabilities =
    Capabilities { stores: true, discard_zeroes: false, holes: false, can_grow: false };

/// What is left of a range of so many bytes from an offset on.
type Survivors = Box<dyn Fn(u64, u64) -> Vec<u8> + Send + Sync>;

/// A disk under test.
pub struct Subject {
    /// It, open for reading and writing.
    pub bdev: Bdev,
    /// What it promises.
    pub can: Capabilities,
    /// Says what a power cut would leave of a range, where that is known.
    survivors: Option<Survivors>,
    /// Dropped last.
    _guard: Box<dyn Any + Send + Sync>,
}

impl Subject {
    /// A disk of a driver that promises what [`STORES`] says.
    ///
    /// # Panics
    /// If it is smaller than [`MIN_BYTES`].
    #[must_use]
    pub fn new(bdev: Bdev, guard: impl Any + Send + Sync) -> Self {
        assert!(bdev.capacity().bytes() >= MIN_BYTES, "the disk is too small for the suite");
        Self { bdev, can: STORES, survivors: None, _guard: Box::new(guard) }
    }

    /// With other promises.
    #[must_use]
    pub fn with(mut self, can: Capabilities) -> Self {
        self.can = can;
        self
    }

    /// Over something that forgets what was not made durable: `survivors` says what it would not.
    #[must_use]
    pub fn surviving(
        mut self,
        survivors: impl Fn(u64, u64) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        self.survivors = Some(Box::new(survivors));
        self
    }

    /// Whether the bytes would outlive a power cut, where that is known.
    pub(crate) fn survives(&self, at: u64, bytes: &[u8]) -> Option<bool> {
        self.survivors.as_ref().map(|survivors| survivors(at, bytes.len() as u64) == bytes)
    }

    pub(crate) fn disk(&self) -> &Arc<Disk> {
        self.bdev.disk()
    }

    pub(crate) fn limits(&self) -> Limits {
        self.bdev.limits()
    }

    /// Bytes of a logical block.
    pub(crate) fn block(&self) -> u64 {
        self.limits().logical_block_size.bytes().into()
    }

    /// Bytes of all blocks, the last of which may be padded.
    pub(crate) fn size(&self) -> u64 {
        self.bdev.capacity().bytes()
    }

    /// Bytes of all blocks that keep what is written to them, as padding does not.
    pub(crate) fn whole(&self) -> u64 {
        let bytes = self.bytes();
        bytes - bytes % self.block()
    }

    /// Bytes without padding.
    pub(crate) fn bytes(&self) -> u64 {
        self.disk().size_bytes()
    }

    /// Sets the size in blocks, and how much of the last is padding.
    pub(crate) fn set_size(&self, size: u64, padding: u64) {
        self.disk().set_size(Sector(size / SECTOR_SIZE), padding.try_into().unwrap()).unwrap();
    }

    /// Submits an operation on bytes, and waits for it.
    pub(crate) fn run(&self, op: Op, at: u64, len: u64, flags: Flags) -> Box<Bio> {
        let bio = Bio::new(op, Sector(at / SECTOR_SIZE), len).with_flags(flags);
        self.bdev.submit_and_wait(0, bio)
    }

    pub(crate) fn status(&self, op: Op, at: u64, len: u64) -> Status {
        if op == Op::Write && len > 0 {
            return self.write_flagged(at, &vec![1; usize::try_from(len).unwrap()], Flags::empty());
        }
        self.run(op, at, len, Flags::empty()).status()
    }

    pub(crate) fn write_flagged(&self, at: u64, bytes: &[u8], flags: Flags) -> Status {
        let bio = write_bio(at, [Segment::from_vec(bytes.to_vec())].into_iter().collect());
        self.bdev.submit_and_wait(0, bio.with_flags(flags)).status()
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        assert_eq!(self.write_flagged(at, bytes, Flags::empty()), Status::Ok);
    }

    /// Reads into the driver's memory.
    pub(crate) fn read(&self, at: u64, len: u64) -> Vec<u8> {
        let bio = self.run(Op::Read, at, len, Flags::empty());
        assert_eq!(bio.status(), Status::Ok, "a read of {len} bytes at {at}");
        let bytes: Vec<u8> = bio.data().iter().flat_map(Segment::to_vec).collect();
        assert_eq!(bytes.len() as u64, len, "all that was asked for");
        bytes
    }

    /// Reads into memory of our own, in segments of these lengths.
    pub(crate) fn read_into(&self, at: u64, lens: &[usize]) -> Vec<u8> {
        let data: Segments = lens.iter().map(|&len| Segment::from_vec(vec![0xaa; len])).collect();
        let bio = Bio::with_data(Op::Read, Sector(at / SECTOR_SIZE), data.clone());
        assert_eq!(self.bdev.submit_and_wait(0, bio).status(), Status::Ok);
        data.iter().flat_map(Segment::to_vec).collect()
    }

    /// Whether the bytes are there, if the disk keeps any.
    #[track_caller]
    pub(crate) fn holds(&self, at: u64, bytes: &[u8]) {
        let found = self.read(at, bytes.len() as u64);
        if self.can.stores
            && let Some(wrong) = found.iter().zip(bytes).position(|(found, want)| found != want)
        {
            panic!("byte {} is {:#x}, not {:#x}", at + wrong as u64, found[wrong], bytes[wrong]);
        }
    }

    /// The answer to a block status query, asked again for what the driver left out.
    pub(crate) fn extents(&self, mut at: u64, mut len: u64) -> Vec<Extent> {
        let mut all = Vec::new();
        while len > 0 {
            let bio = self.run(Op::BlockStatus, at, len, Flags::empty());
            assert_eq!(bio.status(), Status::Ok);
            let told: u64 = bio.extents.iter().map(|extent| extent.len).sum();
            assert!(told > 0 && told <= len, "{told} bytes told of {len}");
            bio.extents.iter().for_each(|extent| extent.push(&mut all));
            (at, len) = (at + told, len - told);
        }
        all
    }

    /// Submits all at once, from one CPU, and waits for all.
    pub(crate) fn submit_together(&self, cpu: usize, bios: Vec<Box<Bio>>) -> Vec<Box<Bio>> {
        let (tell, told) = mpsc::channel();
        let count = bios.len();
        let mut plug: Vec<_> = bios
            .into_iter()
            .map(|bio| {
                let tell = tell.clone();
                bio.on_end(Arc::new(move |bio| tell.send(bio).expect("somebody waits for it")))
            })
            .collect();
        self.bdev.submit_all(cpu, &mut plug);
        (0..count).map(|_| told.recv().expect("every bio ends")).collect()
    }
}

pub(crate) fn write_bio(at: u64, data: Segments) -> Box<Bio> {
    Bio::with_data(Op::Write, Sector(at / SECTOR_SIZE), data)
}

/// Bytes that tell where they belong.
pub(crate) fn marked(at: u64, len: u64, salt: u64) -> Vec<u8> {
    let word = |i: u64| (i ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (at / 8..(at + len) / 8).flat_map(word).collect()
}
