//! The exports as the handshake sees them: described anew for each client, as a disk may have changed; they come and go while
//! the server runs.

use std::sync::Arc;

use blockyard_blkmq::{Bdev, Features, Limits};
use blockyard_nbd::server::{self, Exports, MemoryBudget, MemoryShare, Refusal};
use blockyard_nbd::wire::{BASE_ALLOCATION, TransmissionFlags};
use blockyard_nbd::{BlockSizes, ExportInfo};

use parking_lot::RwLock;

use crate::config::{Config, Export};
use crate::error::{Error, ErrorKind};

/// What every client keeps to, whether it asks for block sizes or not.
const SECTOR: u32 = 512;
/// The smallest block size that clients are told to prefer.
const MIN_PREFERRED: u32 = 4096;

/// What is on offer.
pub(crate) struct Catalogue {
    listed: RwLock<Listed>,
    max_payload: u32,
    memory: MemoryBudget,
    /// What of the memory an export may have whatever others have.
    floor: usize,
}

/// An export that is on offer.
pub(crate) struct Offered {
    pub(crate) export: Export,
    /// What its clients have of the memory.
    pub(crate) share: MemoryShare,
}

struct Listed {
    exports: Vec<Numbered>,
    default: Option<String>,
    next: u64,
}

/// An export, and a number that no other has had.
struct Numbered {
    number: u64,
    offered: Arc<Offered>,
}

impl Catalogue {
    pub(crate) fn new(config: &mut Config, memory: MemoryBudget) -> Self {
        let (exports, default) =
            (std::mem::take(&mut config.exports), config.default_export.take());
        let listed = Listed { exports: Vec::new(), default, next: 0 };
        let floor = config.limits.memory_per_export();
        let max_payload = config.limits.max_payload;
        let this = Self { listed: RwLock::new(listed), max_payload, memory, floor };
        exports.into_iter().for_each(|export| this.push(&mut this.listed.write(), export));
        this
    }

    fn push(&self, listed: &mut Listed, export: Export) {
        let number = listed.next;
        listed.next += 1;
        let offered = Arc::new(Offered { export, share: self.memory.share(self.floor) });
        listed.exports.push(Numbered { number, offered });
    }

    /// The export of that number, unless it has gone.
    pub(crate) fn get(&self, number: u64) -> Option<Arc<Offered>> {
        let listed = self.listed.read();
        let found = listed.exports.iter().find(|numbered| numbered.number == number);
        found.map(|numbered| Arc::clone(&numbered.offered))
    }

    /// Adds a checked export.
    pub(crate) fn add(&self, export: Export) -> Result<(), Error> {
        let mut listed = self.listed.write();
        if listed.exports.iter().any(|other| other.offered.export.name == export.name) {
            let what = format!("an export named {:?} already exists", export.name);
            return Err(Error::new(ErrorKind::InUse, what));
        }
        self.push(&mut listed, export);
        Ok(())
    }

    /// Nobody finds it any more. Its number, if there was one of that name.
    pub(crate) fn remove(&self, name: &str) -> Option<u64> {
        let mut listed = self.listed.write();
        let at = listed.exports.iter().position(|numbered| numbered.offered.export.name == name)?;
        Some(listed.exports.remove(at).number)
    }

    /// Names the export of clients who name none.
    pub(crate) fn set_default(&self, name: Option<String>) {
        self.listed.write().default = name;
    }
}

impl Exports for Catalogue {
    fn list(&self, tls: bool, visit: &mut dyn FnMut(&str, &str)) {
        let listed = self.listed.read();
        let exports = listed.exports.iter().map(|numbered| &numbered.offered.export);
        for export in exports.filter(|export| tls || !export.tls_only) {
            visit(&export.name, &export.description);
        }
    }

    fn find(&self, name: &str) -> Result<server::Export, Refusal> {
        let listed = self.listed.read();
        let Numbered { number, offered } = listed.named(name).ok_or(Refusal::Unknown)?;
        Ok(describe(*number, &offered.export, self.max_payload))
    }
}

impl Listed {
    fn named(&self, name: &str) -> Option<&Numbered> {
        let named =
            |name: &str| self.exports.iter().find(|numbered| numbered.offered.export.name == name);
        match (&self.default, name) {
            (Some(default), "") => named(default),
            (None, "") if self.exports.len() == 1 => self.exports.first(),
            _ => named(name),
        }
    }
}

/// What a disk holds in bytes, for a client that keeps to `block`. Where that is not single bytes, the padding of the
/// last block is a part of it.
pub(crate) fn size(bdev: &Bdev, block: u32, limits: &Limits) -> u64 {
    let capacity = bdev.capacity().bytes();
    // What is no whole block of the disk's cannot be reached.
    let whole = |block: u32| capacity - capacity % u64::from(block);
    let reachable = whole(limits.logical_block_size.bytes());
    if block == 1 { bdev.size_bytes().min(reachable) } else { whole(block).min(reachable) }
}

fn describe(number: u64, export: &Export, max_payload: u32) -> server::Export {
    let limits = export.bdev.limits();
    // Clients may ask for any bytes, unless the user wants blocks: the disk below need not.
    let block = export.minimum_block_size.unwrap_or(1);
    server::Export {
        id: number,
        info: ExportInfo {
            name: export.name.clone(),
            description: export.description.clone(),
            size: size(&export.bdev, block, &limits),
            flags: flags(export, &limits),
            block_sizes: BlockSizes::new(
                block,
                preferred(export, &limits, max_payload),
                max_payload,
            )
            .ok(),
        },
        contexts: vec![BASE_ALLOCATION.into()],
        tls_only: export.tls_only,
        // "Servers SHOULD NOT refuse clients that do not request sizing information" where these can do without.
        block_sizes_required: block > SECTOR,
    }
}

/// A power of two; what a disk likes best need not be one.
fn preferred(export: &Export, limits: &Limits, max_payload: u32) -> u32 {
    let disk = limits.io_opt.max(limits.io_min).max(MIN_PREFERRED);
    let wanted = export.preferred_block_size.unwrap_or_else(|| 1 << disk.ilog2());
    wanted.clamp(limits.logical_block_size.bytes().max(SECTOR), 1 << max_payload.ilog2())
}

/// What the disk can do, and this server with any disk ("Transmission flags").
fn flags(export: &Export, limits: &Limits) -> TransmissionFlags {
    use TransmissionFlags as F;
    // A flush covers what was completed before it on all connections, as all submit to the same disk.
    let mut flags = F::HAS_FLAGS | F::SEND_DF | F::SEND_CACHE | F::BLOCK_STATUS_PAYLOAD;
    if !limits.features.contains(Features::NO_FLUSH) {
        // Where nothing can be made durable, nothing may be promised.
        flags |= F::SEND_FLUSH | F::SEND_FUA | F::CAN_MULTI_CONN;
    } else if limits.features.contains(Features::FUA) {
        flags |= F::SEND_FUA;
    }
    if limits.features.contains(Features::ROTATIONAL) {
        flags |= F::ROTATIONAL;
    }
    if export.read_only || export.bdev.is_read_only() {
        return flags | F::READ_ONLY;
    }
    flags |= F::SEND_WRITE_ZEROES | F::SEND_FAST_ZERO;
    if limits.max_discard_sectors > 0 {
        flags |= F::SEND_TRIM;
    }
    flags
}
