//! The disk as the guest's driver sees it: features, configuration space, serial number (virtio 1.2, section 5.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use blockyard_blkmq::{Bdev, Features, SECTOR_SIZE};
use blockyard_sys::{Event, PeerEvent, Signaller};
use blockyard_vhost_user::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use blockyard_vhost_user::wire::{F_PROTOCOL_FEATURES, MAX_CONFIG, ProtocolFeatures};
use parking_lot::Mutex;

/// Queues that a front-end may use, unless told otherwise.
pub const DEFAULT_QUEUES: u16 = 64;
/// The most queues: their number has 8 bits in the messages that bring their events.
pub const MAX_QUEUES: u16 = 256;
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
    /// Queues that a front-end may use, up to [`MAX_QUEUES`].
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

/// What a server's thread, its session and its queues share.
pub(crate) struct Device {
    pub(crate) export: Export,
    /// Where it is served, for the log.
    pub(crate) name: String,
    /// Wakes the server's thread.
    pub(crate) wake: Event,
    /// The server is to end.
    pub(crate) stop: AtomicBool,
    /// The guest has to look at the configuration space again.
    config_changed: AtomicBool,
    /// The memory of a guest is not what it was: its session has to look.
    memory_lost: AtomicBool,
    /// The guest wants its writes to be cached until it flushes. A front-end that comes back, or resets the device, does not say
    /// it again, and its guest goes by what it said: this stays as it is for whoever comes, who is told (section 5.2.5).
    pub(crate) writeback: AtomicBool,
    /// Guests know what `writeback` is, or have said it.
    pub(crate) writeback_is_known: AtomicBool,
    /// A front-end is connected.
    pub(crate) connected: AtomicBool,
    /// Queues that are served.
    pub(crate) queues: AtomicU64,
    /// Requests so far.
    pub(crate) requests: AtomicU64,
    /// For each queue thread, the queue that had requests last.
    last_active: Box<[AtomicU32]>,
    /// One for each queue thread, and one for the server's.
    signallers: Box<[Arc<Signaller>]>,
    pub(crate) late_signals: LateSignals,
}

/// Events that the kernel has refused to signal, for lack of memory: the session tries again.
#[derive(Default)]
pub(crate) struct LateSignals(Mutex<Vec<Arc<PeerEvent>>>);

impl LateSignals {
    /// Each event is there once: there are no more than queues have.
    fn add(&self, event: &Arc<PeerEvent>) {
        let mut list = self.0.lock();
        if !list.iter().any(|known| Arc::ptr_eq(known, event)) {
            list.push(Arc::clone(event));
        }
    }

    pub(crate) fn any(&self) -> bool {
        !self.0.lock().is_empty()
    }

    pub(crate) fn clear(&self) {
        self.0.lock().clear();
    }

    /// Tries each again; those that `signal` refuses stay.
    fn retry(&self, signal: impl Fn(&PeerEvent) -> bool) {
        self.0.lock().retain(|event| !signal(event));
    }
}

impl Device {
    pub(crate) fn new(export: Export, name: String, threads: usize) -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            export,
            name,
            wake: Event::new()?,
            stop: AtomicBool::new(false),
            config_changed: AtomicBool::new(false),
            memory_lost: AtomicBool::new(false),
            writeback: AtomicBool::new(true),
            writeback_is_known: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            queues: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            last_active: std::iter::repeat_with(|| AtomicU32::new(u32::MAX))
                .take(threads)
                .collect(),
            signallers: (0..threads)
                .map(Some)
                .chain([None])
                .map(Signaller::of_thread)
                .collect::<std::io::Result<_>>()?,
            late_signals: LateSignals::default(),
        }))
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
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

    /// The configuration space has changed: the session tells its front-end.
    pub(crate) fn tell_config_changed(&self) {
        self.config_changed.store(true, Ordering::SeqCst);
        self.wake.signal();
    }

    /// Whether the configuration space has changed since it was last asked for by this.
    pub(crate) fn take_config_changed(&self) -> bool {
        self.config_changed.swap(false, Ordering::SeqCst)
    }

    /// Signals a front-end or its guest, on the queue thread `cpu`.
    pub(crate) fn signal(&self, cpu: usize, event: &Arc<PeerEvent>) {
        if !self.signallers[cpu].signal(event) {
            self.late_signals.add(event);
            self.wake.signal();
        }
    }

    /// Signals a front-end or its guest, on the server's thread.
    pub(crate) fn signal_from_session(&self, event: &Arc<PeerEvent>) {
        self.signal(self.signallers.len() - 1, event);
    }

    /// Tries again what was refused, on the server's thread.
    pub(crate) fn signal_late(&self) {
        if let Some(signaller) = self.signallers.last() {
            self.late_signals.retry(|event| signaller.signal(event));
        }
    }

    /// Has the session look whether the memory of its guest is lost.
    pub(crate) fn tell_memory_lost(&self) {
        self.memory_lost.store(true, Ordering::SeqCst);
        self.wake.signal();
    }

    /// Whether somebody has told so since this was last asked.
    pub(crate) fn take_memory_lost(&self) -> bool {
        self.memory_lost.swap(false, Ordering::SeqCst)
    }

    /// Whether a write can be made durable at all.
    pub(crate) fn has_durability(&self) -> bool {
        let features = self.export.bdev.limits().features;
        !features.contains(Features::NO_FLUSH) || features.contains(Features::FUA)
    }

    /// What it can do, as virtio and vhost-user have it.
    pub(crate) fn features(&self) -> u64 {
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

    pub(crate) fn protocol_features() -> ProtocolFeatures {
        ProtocolFeatures::all()
    }

    /// The configuration space (`struct virtio_blk_config`, section 5.2.4), zeroes behind.
    pub(crate) fn config(&self) -> [u8; MAX_CONFIG] {
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
        space.put(32, [self.writeback.load(Ordering::Relaxed).into()]);
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

    /// The serial number, zeroes behind it.
    pub(crate) fn id(&self) -> [u8; ID_LEN] {
        let mut id = [0; ID_LEN];
        id.iter_mut().zip(self.export.serial.bytes()).for_each(|(place, byte)| *place = byte);
        id
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
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn device(threads: usize) -> std::io::Result<Arc<Device>> {
        let set = TagSet::new(Ram::new(), blockyard_blkmq::TagSetConfig::default()).unwrap();
        let config = DiskConfig::new("ram0", Sector(2048), Ram::limits());
        let clock = Arc::new(MonotonicClock::new());
        let disk = Disk::alloc(&set, (), config, Arc::new(NoOps), clock).unwrap();
        let bdev = Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap());
        Device::new(Export::new(bdev), "test".into(), threads)
    }

    /// The system has 65536 in all (`fs.aio-max-nr`), unless it is told otherwise.
    #[test]
    fn many_disks_on_many_threads_take_few_of_the_systems_contexts() {
        let devices: Vec<_> = (0..16).map(|_| device(64)).collect::<Result<_, _>>().unwrap();
        assert!(Arc::ptr_eq(&devices[0].signallers[7], &devices[15].signallers[7]));
        assert!(!Arc::ptr_eq(&devices[0].signallers[7], &devices[0].signallers[8]));
    }

    #[test]
    fn a_signal_that_was_refused_is_not_lost() {
        let event = || eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let theirs = [event(), event()];
        let [first, second] = theirs
            .each_ref()
            .map(|fd| Arc::new(PeerEvent::from_fd(fd.try_clone().unwrap()).unwrap()));
        let device = device(1).unwrap();
        [&first, &second, &first].iter().for_each(|event| device.late_signals.add(event));
        device.late_signals.retry(|_| false);
        assert_eq!(device.late_signals.0.lock().len(), 2, "each once");
        device.signal_late();
        assert!(!device.late_signals.any());
        for fd in &theirs {
            let mut count = [0; 8];
            rustix::io::read(fd, &mut count).unwrap();
            assert_eq!(u64::from_ne_bytes(count), 1);
        }
    }
}
