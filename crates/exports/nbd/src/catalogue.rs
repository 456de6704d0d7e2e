//! The exports as the handshake sees them: described anew for each client, as a disk may have changed.

use blockyard_blkmq::{Bdev, Features, Limits};
use blockyard_nbd::server::{self, Exports, Refusal};
use blockyard_nbd::wire::{BASE_ALLOCATION, TransmissionFlags};
use blockyard_nbd::{BlockSizes, ExportInfo};

use crate::config::{Config, Export};

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

/// What a disk holds, in whole blocks.
pub(crate) fn size(bdev: &Bdev, block: u32) -> u64 {
    let bytes = bdev.capacity().bytes();
    bytes - bytes % u64::from(block)
}

fn describe(at: usize, export: &Export, max_payload: u32) -> server::Export {
    let limits = export.bdev.limits();
    let block = limits.logical_block_size.bytes();
    server::Export {
        id: at as u64,
        info: ExportInfo {
            name: export.name.clone(),
            description: export.description.clone(),
            size: size(&export.bdev, block),
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
        block_sizes_required: false,
    }
}

/// A power of two; what a disk likes best need not be one.
fn preferred(export: &Export, limits: &Limits, max_payload: u32) -> u32 {
    let disk = limits.io_opt.max(limits.io_min).max(MIN_PREFERRED);
    let wanted = export.preferred_block_size.unwrap_or_else(|| 1 << disk.ilog2());
    wanted.clamp(limits.logical_block_size.bytes().max(512), 1 << max_payload.ilog2())
}

/// What the disk can do, and this server with any disk ("Transmission flags").
fn flags(export: &Export, limits: &Limits) -> TransmissionFlags {
    use TransmissionFlags as F;
    // A flush covers what was completed before it on all connections, as all submit to the same disk.
    let mut flags = F::HAS_FLAGS
        | F::SEND_FLUSH
        | F::SEND_FUA
        | F::SEND_DF
        | F::SEND_CACHE
        | F::CAN_MULTI_CONN
        | F::BLOCK_STATUS_PAYLOAD;
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
