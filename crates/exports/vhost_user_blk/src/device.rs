//! The disk as the guest's driver sees it: features, configuration space, serial number (virtio 1.2, section 5.2).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use blockyard_blkmq::{Bdev, Features, SECTOR_SIZE};
use blockyard_buf::SharedMapping;
use blockyard_sys::{PeerEvent, Signaller};
use blockyard_vhost_user::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use blockyard_vhost_user::wire::{ConfigSpan, F_PROTOCOL_FEATURES, MAX_CONFIG, ProtocolFeatures};
use blockyard_vhost_user_backend::{self as vhost_user, Backend, QueueStart, not_writable};
use tokio::runtime::Handle;

use crate::queue::{BounceMemory, QueueHandle};
use crate::write_cache::{TAIL_LEN, WriteCache};

/// Queues that a front-end may use, unless told otherwise.
pub const DEFAULT_QUEUES: u16 = 64;
/// Bytes of a serial number (`VIRTIO_BLK_ID_BYTES`).
pub(crate) const ID_LEN: usize = 20;
/// Segments of data in one request: with header and status, what fits a queue of 128 descriptors.
pub(crate) const SEG_MAX: u32 = 126;
/// Ranges of one discard, write-zeroes or secure erase.
pub(crate) const MAX_RANGES: u32 = 16;
/// The longest write-zeroes where the disk has to write the zeroes itself.
const EMULATED_ZEROES_SECTORS: u32 = (32 << 20) >> 9;

/// Features of a block device (section 5.2.3).
pub(crate) mod feature {
    pub(crate) const SEG_MAX: u64 = 1 << 2;
    pub(crate) const GEOMETRY: u64 = 1 << 4;
    pub(crate) const RO: u64 = 1 << 5;
    pub(crate) const BLK_SIZE: u64 = 1 << 6;
    pub(crate) const FLUSH: u64 = 1 << 9;
    pub(crate) const TOPOLOGY: u64 = 1 << 10;
    pub(crate) const CONFIG_WCE: u64 = 1 << 11;
    pub(crate) const MQ: u64 = 1 << 12;
    pub(crate) const DISCARD: u64 = 1 << 13;
    pub(crate) const WRITE_ZEROES: u64 = 1 << 14;
    pub(crate) const SECURE_ERASE: u64 = 1 << 16;
}

/// Where `writeback` is in the configuration space.
pub(crate) const WRITEBACK_AT: u32 = 32;

/// A disk on offer.
#[derive(Clone)]
pub struct Export {
    /// The disk or partition. One that is opened read-only is read-only for the guest.
    pub bdev: Arc<Bdev>,
    /// What the guest shows as the disk's serial number; the first 20 bytes count.
    pub serial: String,
    /// Queues that a front-end may use, up to [`MAX_QUEUES`](crate::MAX_QUEUES).
    pub queues: u16,
    /// Told before requests are begun anew that another back-end had begun, which has died: what is below the disk may still
    /// carry them out for that one, too.
    pub on_resume: Option<OnResume>,
}

/// See [`Export::on_resume`].
pub type OnResume = Arc<dyn Fn() + Send + Sync>;

impl Export {
    /// That disk, its name as its serial number.
    #[must_use]
    pub fn new(bdev: Arc<Bdev>) -> Self {
        Self { serial: bdev.name(), bdev, queues: DEFAULT_QUEUES, on_resume: None }
    }
}

/// The disk, with what its sessions and queues share.
pub(crate) struct Device {
    pub(crate) export: Export,
    pub(crate) backend: Arc<Backend>,
    /// Runtimes of the queue threads.
    threads: Vec<Handle>,
    pub(crate) write_cache: WriteCache,
    pub(crate) bounce_memory: Arc<BounceMemory>,
    /// For each queue thread, the queue that had requests last.
    last_active: Box<[AtomicU32]>,
    /// One for each queue thread.
    signallers: Box<[Arc<Signaller>]>,
}

impl Device {
    pub(crate) fn new(
        export: Export,
        backend: Arc<Backend>,
        threads: Vec<Handle>,
    ) -> io::Result<Arc<Self>> {
        let count = threads.len();
        Ok(Arc::new(Self {
            export,
            backend,
            threads,
            write_cache: WriteCache::new(),
            bounce_memory: Arc::new(BounceMemory::new()),
            last_active: std::iter::repeat_with(|| AtomicU32::new(u32::MAX)).take(count).collect(),
            signallers: (0..count)
                .map(|cpu| Signaller::of_thread(Some(cpu)))
                .collect::<io::Result<_>>()?,
        }))
    }

    /// `queue` of the queue thread `cpu` has requests. Says whether it had the ones before, too.
    pub(crate) fn is_active(&self, cpu: usize, queue: u32) -> bool {
        let Some(last) = self.last_active.get(cpu) else { return true };
        // Only that thread writes it.
        let before = last.load(Ordering::Relaxed);
        if before != queue {
            last.store(queue, Ordering::Relaxed);
        }
        before == queue
    }

    /// Signals a front-end or its guest, on the queue thread `cpu`.
    #[inline]
    pub(crate) fn signal(&self, cpu: usize, event: &Arc<PeerEvent>) {
        self.backend.signal(&self.signallers[cpu], event);
    }

    /// Whether a write can be made durable at all.
    pub(crate) fn has_durability(&self) -> bool {
        let features = self.export.bdev.limits().features;
        !features.contains(Features::NO_FLUSH) || features.contains(Features::FUA)
    }

    /// The serial number, zeroes behind it.
    pub(crate) fn id(&self) -> [u8; ID_LEN] {
        let mut id = [0; ID_LEN];
        id.iter_mut().zip(self.export.serial.bytes()).for_each(|(place, byte)| *place = byte);
        id
    }
}

impl vhost_user::Device for Device {
    type Queue = QueueHandle;

    fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    fn queues(&self) -> u16 {
        self.export.queues
    }

    fn features(&self) -> u64 {
        let bdev = &self.export.bdev;
        let limits = bdev.limits();
        let mut features = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_PROTOCOL_FEATURES;
        features |= feature::SEG_MAX | feature::GEOMETRY | feature::BLK_SIZE | feature::TOPOLOGY;
        if !limits.features.contains(Features::NO_FLUSH) {
            features |= feature::FLUSH | feature::CONFIG_WCE;
        }
        if self.export.queues > 1 {
            features |= feature::MQ;
        }
        if bdev.is_read_only() {
            return features | feature::RO;
        }
        features |= feature::WRITE_ZEROES;
        if limits.max_discard_sectors > 0 {
            features |= feature::DISCARD;
        }
        if limits.max_secure_erase_sectors > 0 {
            features |= feature::SECURE_ERASE;
        }
        features
    }

    fn protocol_features(&self) -> ProtocolFeatures {
        ProtocolFeatures::all()
    }

    /// `struct virtio_blk_config` (section 5.2.4).
    fn config(&self) -> [u8; MAX_CONFIG] {
        let bdev = &self.export.bdev;
        let (limits, geometry) = (bdev.limits(), bdev.geometry());
        let block = limits.logical_block_size.bytes();
        let physical = limits.physical_block_size.bytes();
        let mut space = Space([0; MAX_CONFIG]);
        space.put(0, bdev.capacity().0.to_le_bytes());
        space.put(12, SEG_MAX.to_le_bytes());
        space.put(16, geometry.cylinders.to_le_bytes());
        space.put(18, [geometry.heads, geometry.sectors]);
        space.put(20, block.to_le_bytes());
        space.put(24, [u8::try_from((physical / block).ilog2()).unwrap_or(0)]);
        space.put(25, [u8::try_from(limits.alignment_offset / block).unwrap_or(0)]);
        space.put(26, u16::try_from(limits.io_min / block).unwrap_or(u16::MAX).to_le_bytes());
        space.put(28, (limits.io_opt / block).to_le_bytes());
        space.put(32, [self.write_cache.tell().into()]);
        space.put(34, self.export.queues.to_le_bytes());
        if bdev.is_read_only() {
            return space.0;
        }
        let sector = u32::try_from(SECTOR_SIZE).unwrap_or(512);
        if limits.max_discard_sectors > 0 {
            space.put(36, limits.max_discard_sectors.to_le_bytes());
            space.put(40, MAX_RANGES.to_le_bytes());
            space.put(44, (limits.discard_granularity / sector).to_le_bytes());
        }
        let zeroes = limits.max_write_zeroes_sectors;
        let zeroes = if zeroes > 0 { zeroes } else { EMULATED_ZEROES_SECTORS };
        space.put(48, zeroes.to_le_bytes());
        space.put(52, MAX_RANGES.to_le_bytes());
        space.put(56, [1]);
        if limits.max_secure_erase_sectors > 0 {
            space.put(60, limits.max_secure_erase_sectors.to_le_bytes());
            space.put(64, MAX_RANGES.to_le_bytes());
            space.put(68, (limits.discard_granularity / sector).to_le_bytes());
        }
        space.0
    }

    fn set_config(&self, span: &ConfigSpan, features: u64) -> Result<(), String> {
        let at = WRITEBACK_AT.checked_sub(span.offset).and_then(|at| usize::try_from(at).ok());
        let writeback = at.and_then(|at| span.bytes.get(at));
        let writable = span.offset == WRITEBACK_AT && span.bytes.len() == 1;
        match writeback {
            // With live migration, all of it comes, and the rest is ours to say.
            Some(writeback) if writable || span.flags == 1 => {
                if features & feature::CONFIG_WCE == 0 && writable {
                    return Err("the write cache was not offered for change".into());
                }
                self.write_cache.choose(*writeback != 0);
                Ok(())
            }
            _ => Err(not_writable(span)),
        }
    }

    fn make_queue(self: &Arc<Self>, index: u32) -> io::Result<QueueHandle> {
        Ok(QueueHandle::spawn(Arc::clone(self), &self.threads, index))
    }

    fn inflight_tail_len(&self) -> usize {
        TAIL_LEN
    }

    fn has_inflight(&self, mapping: &Arc<SharedMapping>, brought: Option<usize>) {
        match brought {
            Some(used) => self.write_cache.brought(mapping, used),
            None => self.write_cache.made(mapping),
        }
    }

    fn queue_starts(&self, start: QueueStart) {
        if self.write_cache.queue_starts(start) {
            tracing::info!(
                socket = self.backend.name(),
                "the guest resumed from another back-end and may not flush; every write is made durable"
            );
        }
    }

    fn front_end_left(&self) {
        self.write_cache.front_end_left();
    }
}

/// A configuration space that is filled in.
struct Space([u8; MAX_CONFIG]);

impl Space {
    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }
}

#[cfg(test)]
mod tests {
    use blockyard_blkmq::{Disk, DiskConfig, MonotonicClock, NoOps, OpenMode, Sector, TagSet};
    use blockyard_driver_ram::Ram;
    use blockyard_vhost_user_backend::Listener;

    use super::*;

    fn device(threads: &[Handle]) -> std::io::Result<Arc<Device>> {
        let set = TagSet::new(Ram::new(), blockyard_blkmq::TagSetConfig::default()).unwrap();
        let config = DiskConfig::new("ram0", Sector(2048), Ram::limits());
        let clock = Arc::new(MonotonicClock::new());
        let disk = Disk::alloc(&set, (), config, Arc::new(NoOps), clock).unwrap();
        let bdev = Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap());
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let backend = Backend::new(&Listener::from_fd(socket.into()).unwrap())?;
        Device::new(Export::new(bdev), backend, threads.to_vec())
    }

    /// The system has 65536 in all (`fs.aio-max-nr`), unless it is told otherwise.
    #[test]
    fn many_disks_on_many_threads_take_few_of_the_systems_contexts() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let threads = vec![runtime.handle().clone(); 64];
        let devices: Vec<_> = (0..16).map(|_| device(&threads)).collect::<Result<_, _>>().unwrap();
        assert!(Arc::ptr_eq(&devices[0].signallers[7], &devices[15].signallers[7]));
        assert!(!Arc::ptr_eq(&devices[0].signallers[7], &devices[0].signallers[8]));
    }
}
