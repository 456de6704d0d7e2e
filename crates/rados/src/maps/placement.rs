//! Where objects are (ceph: `src/osd/OSDMap.cc`, `_pg_to_up_acting_osds`), in the order in which OSDs and all clients
//! must agree on it.

use super::name_hash::name_hash;
use super::osd_map::OsdMap;
use super::osds::{DEFAULT_PRIMARY_AFFINITY, OsdState};
use super::pool::{Pool, PoolFlags, PoolKind};
use crate::encoding::{ObjectLocator, PgId, PgShard};
use crate::error::{Error, ErrorKind, Result};
use blockyard_crush::{CrushMap, NONE, Scratch, hash32_2};
use bytes::Bytes;

/// Stands between namespace and name in what is hashed.
const NAMESPACE_END: u8 = 0x1f;

/// Where a placement group is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// The OSDs that should have it. In erasure-coded pools by shard, with `None` where there is none.
    pub up: Vec<Option<i32>>,
    /// The first among these.
    pub up_primary: Option<i32>,
    /// The OSDs that serve it now.
    pub acting: Vec<Option<i32>>,
    /// The one to send requests to; none while the group cannot be served.
    pub primary: Option<i32>,
    /// Its position in `acting`; none if it has none there.
    pub position: Option<usize>,
}

impl Placed {
    /// The shard that the primary serves in an erasure-coded pool, [`PgShard::NO_SHARD`] if it serves none.
    #[must_use]
    pub fn shard(&self) -> i8 {
        self.position.and_then(|at| i8::try_from(at).ok()).unwrap_or(PgShard::NO_SHARD)
    }
}

/// A number below `count`, of which a number below the next power of two is kept when `count` grows (`ceph_stable_mod`).
fn stable_mod(number: u32, count: u32) -> u32 {
    let mask = count.checked_next_power_of_two().map_or(u32::MAX, |power| power - 1);
    if number & mask < count { number & mask } else { number & mask >> 1 }
}

impl Pool {
    /// The group that a hash belongs to.
    #[must_use]
    pub fn group(&self, hash: u32) -> u32 {
        stable_mod(hash, self.pg_num)
    }

    /// The hash of an object's name, or of the key in its place, with the namespace. None if the pool hashes in a way that
    /// is not known.
    pub(crate) fn hash_of(&self, locator: &ObjectLocator, name: &[u8]) -> Option<u32> {
        if let Ok(hash) = u32::try_from(locator.hash) {
            return Some(hash);
        }
        let hashed = if locator.key.is_empty() { name } else { &*locator.key };
        if locator.namespace.is_empty() {
            return name_hash(self.object_hash, hashed);
        }
        let bytes = [&*locator.namespace, &[NAMESPACE_END], hashed].concat();
        name_hash(self.object_hash, &bytes)
    }

    /// What CRUSH places for a group of pool number `pool`.
    #[must_use]
    fn placement_seed(&self, pg: PgId) -> u32 {
        let seed = stable_mod(pg.seed, self.pgp_num);
        // The format has 64 bits for a pool's number, the placement 32.
        let [a, b, c, d, ..] = pg.pool.to_le_bytes();
        let pool = u32::from_le_bytes([a, b, c, d]);
        if self.flags.contains(PoolFlags::HASHPSPOOL) {
            hash32_2(seed, pool)
        } else {
            seed.wrapping_add(pool)
        }
    }

    /// The shards in the order in which temporary lists have them: those that may be primary stand first (ceph:
    /// `OSDMap::pgtemp_primaryfirst`).
    fn temporary_order(&self, len: usize) -> Vec<usize> {
        let mut shards: Vec<_> = (0..len).collect();
        if self.flags.contains(PoolFlags::EC_OPTIMIZATIONS) {
            let may_not = |shard: usize| {
                u32::try_from(shard).is_ok_and(|at| {
                    self.nonprimary_shards.checked_shr(at).is_some_and(|bits| bits & 1 == 1)
                })
            };
            shards.sort_by_key(|&shard| may_not(shard));
        }
        shards
    }

    /// Whether OSDs that are missing leave no gap.
    fn shifts(&self) -> bool {
        self.kind == PoolKind::Replicated
    }
}

impl OsdMap {
    /// The hash of an object's name, and the group that it belongs to.
    ///
    /// # Errors
    /// If there is no such pool, or it hashes in a way that is not known.
    pub fn object_group(
        &self,
        locator: &ObjectLocator,
        name: &(impl AsRef<[u8]> + ?Sized),
    ) -> Result<(u32, PgId)> {
        const DOING: &str = "placing an object";
        let Some(pool) = self.pools.get(&locator.pool) else {
            let text = locator.pool.to_string();
            let kind = ErrorKind::BadParameter { problem: "no pool with this number", text };
            return Err(Error::new(DOING, kind));
        };
        let hash = pool.hash_of(locator, name.as_ref()).ok_or_else(|| {
            let rule = "a pool hashes names by method 1 or 2";
            Error::violation(DOING, rule, pool.object_hash.into())
        })?;
        Ok((hash, PgId { pool: locator.pool, seed: pool.group(hash) }))
    }

    fn exists(&self, osd: i32) -> bool {
        self.state(osd).contains(OsdState::EXISTS)
    }

    /// Whether an OSD may be put somewhere by an exception: one that is out may not.
    fn is_out(&self, osd: i32) -> bool {
        usize::try_from(osd).is_ok_and(|index| self.osds.weights.get(index) == Some(&0))
    }

    /// The OSDs of `list` that run; the others are left out, or leave a gap.
    fn running(&self, pool: &Pool, list: &[i32]) -> Vec<i32> {
        let of = |&osd: &i32| match (self.is_up(osd), pool.shifts()) {
            (true, _) => Some(osd),
            (false, true) => None,
            (false, false) => Some(NONE),
        };
        list.iter().filter_map(of).collect()
    }

    /// The exceptions of a group, which the balancer makes.
    fn apply_upmap(&self, pg: PgId, osds: &mut Vec<i32>) {
        if let Some(targets) = self.upmap.get(&pg) {
            if targets.iter().any(|&osd| osd != NONE && self.is_out(osd)) {
                return;
            }
            osds.clone_from(targets);
        }
        for &(from, to) in self.upmap_items.get(&pg).into_iter().flatten() {
            if osds.contains(&to) || to != NONE && self.is_out(to) {
                continue;
            }
            if let Some(place) = osds.iter_mut().find(|osd| **osd == from) {
                *place = to;
            }
        }
        if let Some(&primary) = self.upmap_primaries.get(&pg)
            && self.weight(primary) != 0
            && let Some(place) = osds.iter().position(|&osd| osd == primary)
        {
            osds.swap(0, place);
        }
    }

    /// Chooses the primary, which a low affinity makes less likely for an OSD.
    fn apply_affinity(&self, seed: u32, pool: &Pool, osds: &mut [i32]) -> Option<i32> {
        let first = osds.iter().position(|&osd| osd != NONE)?;
        let affinity = |osd: i32| self.of(osd, &self.osds.affinities).copied();
        let refuses = |osd: i32| {
            let affinity = affinity(osd).unwrap_or(DEFAULT_PRIMARY_AFFINITY);
            affinity < DEFAULT_PRIMARY_AFFINITY
                && hash32_2(seed, osd.cast_unsigned()) >> 16 >= affinity
        };
        let willing = osds.iter().position(|&osd| osd != NONE && !refuses(osd));
        let chosen = willing.unwrap_or(first);
        let primary = osds[chosen];
        if pool.shifts() {
            osds[..=chosen].rotate_right(1);
        }
        Some(primary)
    }
}

/// Places groups by a CRUSH map, which it keeps decoded.
#[derive(Debug)]
pub struct Placer {
    encoded: Bytes,
    crush: CrushMap,
    scratch: Scratch,
}

impl Placer {
    const DOING: &'static str = "reading a CRUSH map";

    /// A placer for a map.
    ///
    /// # Errors
    /// If its CRUSH map is malformed.
    pub fn new(map: &OsdMap) -> Result<Self> {
        let encoded = map.crush.clone();
        Ok(Self { crush: decode(&encoded)?, encoded, scratch: Scratch::new() })
    }

    /// Takes over the CRUSH map of a newer map, if it is another one.
    ///
    /// # Errors
    /// If it is malformed; the one of before stays.
    pub fn update(&mut self, map: &OsdMap) -> Result<()> {
        if self.encoded != map.crush {
            self.crush = decode(&map.crush)?;
            self.encoded = map.crush.clone();
        }
        Ok(())
    }

    /// The CRUSH map.
    #[must_use]
    pub const fn crush(&self) -> &CrushMap {
        &self.crush
    }

    /// Where CRUSH alone puts a group.
    fn raw(&mut self, map: &OsdMap, pool: &Pool, pg: PgId) -> Vec<i32> {
        let seed = pool.placement_seed(pg);
        let mut osds = vec![NONE; pool.size.into()];
        let args = self.crush.choose_args(pg.pool);
        let weights = &map.osds.weights;
        let found =
            self.crush.do_rule(pool.crush_rule, seed, weights, args, &mut osds, &mut self.scratch);
        osds.truncate(found);
        if pool.shifts() {
            osds.retain(|&osd| map.exists(osd));
        } else {
            osds.iter_mut().filter(|osd| !map.exists(**osd)).for_each(|osd| *osd = NONE);
        }
        osds
    }

    /// Where a group is. Nowhere, if there is no such pool or group.
    #[must_use]
    pub fn place(&mut self, map: &OsdMap, pg: PgId) -> Placed {
        let Some(pool) = map.pools.get(&pg.pool).filter(|pool| pg.seed < pool.pg_num) else {
            return Placed::default();
        };
        let mut up = self.raw(map, pool, pg);
        map.apply_upmap(pg, &mut up);
        let mut up = map.running(pool, &up);
        let up_primary = map.apply_affinity(pool.placement_seed(pg), pool, &mut up);
        let temp = map.pg_temp.get(&pg).map(|temp| map.running(pool, temp)).unwrap_or_default();
        let temp_primary = map.primary_temp.get(&pg).copied();
        let gap = |&osd: &i32| Some(osd).filter(|&osd| osd != NONE);
        let up: Vec<_> = up.iter().map(gap).collect();
        if temp.is_empty() {
            let primary = temp_primary.or(up_primary);
            let position = up.iter().position(|&osd| osd.is_some() && osd == primary);
            return Placed { acting: up.clone(), up, up_primary, primary, position };
        }
        let first = temp.iter().copied().find(|&osd| osd != NONE);
        let primary = temp_primary.or(first);
        // One OSD may stand in several places, when much is wrong: the place in the temporary list's order counts (ceph:
        // `Objecter::_calc_target`).
        let order = pool.temporary_order(temp.len());
        let at = temp.iter().position(|&osd| Some(osd) == primary);
        let position = at.map(|at| order[at]);
        let mut acting = vec![None; temp.len()];
        for (&shard, osd) in order.iter().zip(&temp) {
            acting[shard] = gap(osd);
        }
        Placed { up, up_primary, acting, primary, position }
    }
}

fn decode(bytes: &[u8]) -> Result<CrushMap> {
    CrushMap::decode(bytes).map_err(|error| {
        let problem = "the CRUSH map cannot be used";
        let text = error.to_string();
        Error::new(Placer::DOING, ErrorKind::BadParameter { problem, text })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_kept_when_the_number_grows_to_the_next_power_of_two() {
        for count in 1..70_u32 {
            let power = count.next_power_of_two();
            for number in 0..300 {
                let group = stable_mod(number, count);
                assert!(group < count);
                assert!(number % power == group || number % (power / 2) == group);
            }
        }
    }
}
