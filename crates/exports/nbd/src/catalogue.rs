//! The exports as the handshake sees them: described anew for each client, as a disk may have changed.

use blockyard_blkmq::{Bdev, Features, Limits};
use blockyard_nbd::server::{self, Exports, Refusal};
use blockyard_nbd::wire::{BASE_ALLOCATION, TransmissionFlags};
use blockyard_nbd::{BlockSizes, ExportInfo};

use crate::config::{Config, Export};

/// What every client keeps to, whether it asks for block sizes or not.
const SECTOR: u32 = 512;
/// The smallest block size that clients are told to prefer.
const MIN_PREFERRED: u32 = 4096;

impl Exports for Config {
    fn list(&self, tls: bool, visit: &mut dyn FnMut(&str, &str)) {
        for export in self.exports.iter().filter(|export| tls || !export.tls_only) {
            visit(&export.name, &export.description);
        }
    }

    fn find(&self, name: &str) -> Result<server::Export, Refusal> {
        let at = self.position(name).ok_or(Refusal::Unknown)?;
        Ok(describe(at, &self.exports[at], self.limits.max_payload))
    }
}

impl Config {
    fn position(&self, name: &str) -> Option<usize> {
        let named = |name: &str| self.exports.iter().position(|export| export.name == name);
        match (&self.default_export, name) {
            (Some(default), "") => named(default),
            (None, "") if self.exports.len() == 1 => Some(0),
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

fn describe(at: usize, export: &Export, max_payload: u32) -> server::Export {
    let limits = export.bdev.limits();
    // Clients may ask for any bytes, unless the user wants blocks: the disk below need not.
    let block = export.minimum_block_size.unwrap_or(1);
    server::Export {
        id: at as u64,
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
