//! Maps of a hostile monitor: a change and a whole map, as a monitor sends them; what can be read is placed.
//! The checksums are made right here, as no fuzzer would guess them.
#![no_main]

use blockyard_rados::encoding::PgId;
use blockyard_rados::maps::{Incremental, OsdMap, Placer};
use blockyard_rados::msgr::ceph_crc32c;
use libfuzzer_sys::fuzz_target;

/// Bytes of version, compatible version, length.
const HEADER: usize = 6;
const SEED: u32 = u32::MAX;

/// Where a map's checksum is: behind its two parts.
fn crc_at(bytes: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    for _ in 0..2 {
        let length = bytes.get(at + 2..at + HEADER)?;
        at = at
            .checked_add(HEADER)?
            .checked_add(u32::from_le_bytes(length.try_into().ok()?) as usize)?;
    }
    Some(at)
}

fn repaired(bytes: &[u8]) -> Option<Vec<u8>> {
    let at = crc_at(bytes)?;
    let (front, tail) = (bytes.get(..at)?, bytes.get(at + 4..)?);
    let crc = ceph_crc32c(ceph_crc32c(SEED, front), tail);
    Some([front, &crc.to_le_bytes(), tail].concat())
}

fuzz_target!(|data: &[u8]| {
    let Some((&which, bytes)) = data.split_first() else { return };
    let Some(bytes) = repaired(bytes) else { return };
    let map = if which & 1 == 1 {
        let mut map = OsdMap::default();
        let applied = Incremental::decode(&bytes).and_then(|change| map.apply(&change));
        applied.map(|()| map)
    } else {
        OsdMap::decode(&bytes)
    };
    let Ok(map) = map else { return };
    let Ok(mut placer) = Placer::new(&map) else { return };
    for (&pool, _) in map.pools().iter().take(2) {
        for seed in 0..2 {
            let placed = placer.place(&map, PgId { pool, seed });
            assert!(placed.up.iter().flatten().all(|&osd| map.is_up(osd)));
        }
    }
});
