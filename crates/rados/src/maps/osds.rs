//! What a map says of each OSD.

use super::osd_map::MAX_OSDS;
use crate::encoding::{EntityAddrs, Reader};
use crate::error::{Error, Result};
use bitflags::bitflags;

/// The weight of an OSD that is fully in, in 16.16 fixed point; 0 is out.
pub const IN: u32 = 0x1_0000;
/// The primary affinity of an OSD that is not to be spared, in 16.16 fixed point.
pub const DEFAULT_PRIMARY_AFFINITY: u32 = 0x1_0000;

bitflags! {
    /// The state of an OSD (ceph: `src/include/rados.h`, `CEPH_OSD_*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct OsdState: u32 {
        /// There is an OSD with this number.
        const EXISTS = 1 << 0;
        /// It runs.
        const UP = 1 << 1;
        /// The monitors took it out by themselves.
        const AUTOOUT = 1 << 2;
        /// It was just made.
        const NEW = 1 << 3;
        /// There are others.
        const _ = !0;
    }
}

/// The OSDs, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Osds {
    pub states: Vec<OsdState>,
    pub weights: Vec<u32>,
    pub addrs: Vec<EntityAddrs>,
    /// Empty if none was ever set.
    pub affinities: Vec<u32>,
}

impl Osds {
    /// Reads the arrays of a map, which begin with their length.
    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let max = reader.i32()?;
        let count = check(reader.doing(), max)?;
        let osds = Self {
            states: reader.vec(4, |r| Ok(OsdState::from_bits_retain(r.u32()?)))?,
            weights: reader.vec(4, Reader::u32)?,
            addrs: reader.vec(1, Reader::get)?,
            affinities: Vec::new(),
        };
        for len in [osds.states.len(), osds.weights.len(), osds.addrs.len()] {
            if len != count {
                return Err(reader.violation("a map has as many OSDs as it says", len as u64));
            }
        }
        Ok(osds)
    }

    /// Makes room for OSDs up to `max`, or takes away those beyond.
    pub(super) fn resize(&mut self, doing: &'static str, max: i32) -> Result<()> {
        let count = check(doing, max)?;
        self.states.resize(count, OsdState::empty());
        self.weights.resize(count, 0);
        self.addrs.resize(count, EntityAddrs::default());
        if !self.affinities.is_empty() {
            self.affinities.resize(count, DEFAULT_PRIMARY_AFFINITY);
        }
        Ok(())
    }

    /// The index of an OSD that the map has room for.
    pub(super) fn index(&self, doing: &'static str, osd: i32) -> Result<usize> {
        usize::try_from(osd).ok().filter(|&index| index < self.states.len()).ok_or_else(|| {
            let rule = "a change is of an OSD that the map has room for";
            Error::violation(doing, rule, u64::from(osd.cast_unsigned()))
        })
    }

    pub(super) fn set_affinity(&mut self, index: usize, affinity: u32) {
        if self.affinities.is_empty() {
            self.affinities = vec![DEFAULT_PRIMARY_AFFINITY; self.states.len()];
        }
        self.affinities[index] = affinity;
    }

    /// Changes the state bits of an OSD: no bits stand for "up". An OSD that ceases to exist leaves
    /// only its weight behind.
    pub(super) fn flip(&mut self, index: usize, bits: u32) {
        let bits = if bits == 0 { OsdState::UP } else { OsdState::from_bits_retain(bits) };
        if (self.states[index] & bits).contains(OsdState::EXISTS) {
            self.states[index] = OsdState::empty();
            self.addrs[index] = EntityAddrs::default();
            if !self.affinities.is_empty() {
                self.affinities[index] = DEFAULT_PRIMARY_AFFINITY;
            }
        } else {
            self.states[index] ^= bits;
        }
    }
}

fn check(doing: &'static str, max: i32) -> Result<usize> {
    match usize::try_from(max) {
        Ok(count) if count <= MAX_OSDS => Ok(count),
        _ => {
            let (got, limit) = (u64::from(max.cast_unsigned()), MAX_OSDS as u64);
            Err(Error::too_big(doing, "OSDs of a map", got, limit))
        }
    }
}
