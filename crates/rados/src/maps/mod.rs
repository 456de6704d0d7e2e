//! Maps of the cluster: which OSDs there are, which pools, and where objects are (ceph: `src/osd/OSDMap.cc`,
//! `src/osd/osd_types.cc`).
//!
//! A monitor sends an [`OsdMap`] whole, and then an [`Incremental`] for each epoch that follows. Both carry checksums of
//! their own bytes. A map cannot be encoded again in the monitor's way, so what [`OsdMap::apply`] makes is not checked
//! against the checksum that the incremental announces: on a gap ask for a whole map.

mod envelope;
mod incremental;
mod name_hash;
mod osd_map;
mod osds;
mod placement;
mod pool;

pub use incremental::Incremental;
pub use name_hash::name_hash;
pub use osd_map::{MAX_OSDS, MapFlags, OsdMap};
pub use osds::{DEFAULT_PRIMARY_AFFINITY, IN, OsdState};
pub use placement::{Placed, Placer};
pub use pool::{Pool, PoolFlags, PoolKind};
