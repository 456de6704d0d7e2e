//! What changed from one epoch to the next.

use super::envelope::Envelope;
use super::osd_map::{
    MapFlags, OsdMap, blocklist, items, lists, names, per_group, pools, profiles, snapshots,
};
use super::osds::OsdState;
use super::pool::Pool;
use crate::encoding::{EntityAddr, EntityAddrs, Fsid, PgId, Reader, Utime};
use crate::error::{Error, Result};
use bytes::Bytes;
use std::collections::BTreeMap;

const DOING: &str = "reading a change of the OSD map";
/// The oldest encoding of what clients need: of Ceph 14.
const OLDEST: u8 = 8;

/// A change of the map (ceph: `OSDMap::Incremental`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Incremental {
    fsid: Fsid,
    epoch: u32,
    modified: Utime,
    full: Bytes,
    crush: Bytes,
    flags: Option<MapFlags>,
    max_osd: Option<i32>,
    pools: BTreeMap<i64, Pool>,
    pool_names: BTreeMap<i64, String>,
    old_pools: Vec<i64>,
    up: BTreeMap<i32, EntityAddrs>,
    states: BTreeMap<i32, u32>,
    weights: BTreeMap<i32, u32>,
    affinities: BTreeMap<i32, u32>,
    pg_temp: BTreeMap<PgId, Vec<i32>>,
    primary_temp: BTreeMap<PgId, i32>,
    upmap: BTreeMap<PgId, Vec<i32>>,
    old_upmap: Vec<PgId>,
    upmap_items: BTreeMap<PgId, Vec<(i32, i32)>>,
    old_upmap_items: Vec<PgId>,
    upmap_primaries: BTreeMap<PgId, i32>,
    old_upmap_primaries: Vec<PgId>,
    blocklist: BTreeMap<EntityAddr, Utime>,
    old_blocklist: Vec<EntityAddr>,
}

fn per_osd<'a, T>(
    r: &mut Reader<'a>,
    each: usize,
    mut value: impl FnMut(&mut Reader<'a>) -> Result<T>,
) -> Result<BTreeMap<i32, T>> {
    r.map(4 + each, |r| Ok((r.i32()?, value(r)?)))
}

fn groups(r: &mut Reader<'_>) -> Result<Vec<PgId>> {
    r.vec(PgId::LEN, Reader::get)
}

impl Incremental {
    /// Reads a change, and checks it against its checksum.
    ///
    /// # Errors
    /// A change that is cut, damaged, too new, or of a cluster before Ceph 14.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut envelope = Envelope::open(DOING, bytes)?;
        let mut change = Self::default();
        change.decode_client(envelope.client.version, envelope.client.fields)?;
        change.decode_osd(envelope.osd.fields)?;
        // The checksum of the whole map that the monitor made of it.
        envelope.tail.u32()?;
        Ok(change)
    }

    fn decode_client(&mut self, version: u8, mut fields: Reader<'_>) -> Result<()> {
        let r = &mut fields;
        if version < OLDEST {
            return Err(r.violation("a change is encoded as by Ceph 14 or newer", version.into()));
        }
        self.fsid = r.get()?;
        self.epoch = r.u32()?;
        self.modified = r.get()?;
        // The newest pool.
        r.raw(8)?;
        self.flags = u32::try_from(r.i32()?).ok().map(MapFlags::from_bits_retain);
        self.full = Bytes::copy_from_slice(r.bytes()?);
        self.crush = Bytes::copy_from_slice(r.bytes()?);
        self.max_osd = Some(r.i32()?).filter(|&max| max >= 0);
        self.pools = pools(r)?;
        self.pool_names = names(r)?;
        self.old_pools = r.vec(8, Reader::i64)?;
        self.up = per_osd(r, 1, Reader::get)?;
        self.states = per_osd(r, 4, Reader::u32)?;
        self.weights = per_osd(r, 4, Reader::u32)?;
        self.pg_temp = lists(r)?;
        self.primary_temp = per_group(r)?;
        self.affinities = per_osd(r, 4, Reader::u32)?;
        profiles(r)?;
        for _ in 0..r.count(4)? {
            r.bytes()?;
        }
        self.upmap = lists(r)?;
        self.old_upmap = groups(r)?;
        self.upmap_items = items(r)?;
        self.old_upmap_items = groups(r)?;
        snapshots(r)?;
        snapshots(r)?;
        r.raw(8 + 8)?;
        if version >= 9 {
            self.upmap_primaries = per_group(r)?;
            self.old_upmap_primaries = groups(r)?;
        }
        Ok(())
    }

    fn decode_osd(&mut self, mut fields: Reader<'_>) -> Result<()> {
        let r = &mut fields;
        // Addresses for heartbeats, histories.
        per_osd(r, 1, Reader::get::<EntityAddrs>)?;
        per_osd(r, 4, Reader::u32)?;
        per_osd(r, 8, |r| Ok((r.u32()?, r.u32()?)))?;
        per_osd(r, 4, Reader::u32)?;
        self.blocklist = blocklist(r)?;
        self.old_blocklist = r.vec(7, Reader::get)?;
        Ok(())
    }

    /// The epoch that it leads to.
    #[must_use]
    pub const fn epoch(&self) -> u32 {
        self.epoch
    }
}

impl OsdMap {
    /// The map of the next epoch.
    ///
    /// # Errors
    /// A change of another cluster, of another epoch than the next one, or of OSDs that there are not. The map is then
    /// of no more use, and a whole one has to be asked for.
    pub fn apply(&mut self, change: &Incremental) -> Result<()> {
        if change.epoch != self.epoch.wrapping_add(1) {
            let rule = "a change leads to the next epoch";
            return Err(Error::violation(DOING, rule, change.epoch.into()));
        }
        if self.epoch != 0 && change.fsid != self.fsid {
            return Err(Error::violation(DOING, "a change is of the same cluster", 0));
        }
        if !change.full.is_empty() {
            let full = Self::decode(&change.full)?;
            if full.epoch != change.epoch {
                let rule = "a change with a whole map has that of its epoch";
                return Err(Error::violation(DOING, rule, full.epoch.into()));
            }
            if full.fsid != change.fsid {
                return Err(Error::violation(DOING, "a change is of the same cluster", 0));
            }
            *self = full;
            return Ok(());
        }
        (self.fsid, self.epoch, self.modified) = (change.fsid, change.epoch, change.modified);
        self.flags = change.flags.unwrap_or(self.flags);
        if let Some(max) = change.max_osd {
            self.osds.resize(DOING, max)?;
        }
        if !change.crush.is_empty() {
            self.crush = change.crush.clone();
        }
        self.apply_pools(change);
        self.apply_osds(change)?;
        self.apply_groups(change);
        self.blocklist.extend(change.blocklist.iter().map(|(&addr, &until)| (addr, until)));
        for addr in &change.old_blocklist {
            self.blocklist.remove(addr);
        }
        Ok(())
    }

    fn apply_pools(&mut self, change: &Incremental) {
        // A changed pool is written down with the epoch before: the change itself says which one it is.
        let last_change = change.epoch;
        let changed = |pool: &Pool| Pool { last_change, ..pool.clone() };
        self.pools.extend(change.pools.iter().map(|(&id, pool)| (id, changed(pool))));
        self.pool_names.extend(change.pool_names.iter().map(|(&id, name)| (id, name.clone())));
        for pool in &change.old_pools {
            self.pools.remove(pool);
            self.pool_names.remove(pool);
        }
    }

    fn apply_osds(&mut self, change: &Incremental) -> Result<()> {
        let osds = &mut self.osds;
        for (&osd, &weight) in &change.weights {
            let index = osds.index(DOING, osd)?;
            osds.weights[index] = weight;
            if weight != 0 {
                // One that is in exists, was not taken out by itself, and is no longer new.
                osds.states[index] |= OsdState::EXISTS;
                osds.states[index] -= OsdState::AUTOOUT | OsdState::NEW;
            }
        }
        for (&osd, &affinity) in &change.affinities {
            let index = osds.index(DOING, osd)?;
            osds.set_affinity(index, affinity);
        }
        for (&osd, &bits) in &change.states {
            let index = osds.index(DOING, osd)?;
            osds.flip(index, bits);
        }
        for (&osd, addrs) in &change.up {
            let index = osds.index(DOING, osd)?;
            osds.states[index] |= OsdState::EXISTS | OsdState::UP;
            osds.addrs[index] = addrs.clone();
        }
        Ok(())
    }

    fn apply_groups(&mut self, change: &Incremental) {
        for (&pg, osds) in &change.pg_temp {
            if osds.is_empty() {
                self.pg_temp.remove(&pg);
            } else {
                self.pg_temp.insert(pg, osds.clone());
            }
        }
        for (&pg, &osd) in &change.primary_temp {
            if osd < 0 {
                self.primary_temp.remove(&pg);
            } else {
                self.primary_temp.insert(pg, osd);
            }
        }
        replace(&mut self.upmap, &change.upmap, &change.old_upmap);
        replace(&mut self.upmap_items, &change.upmap_items, &change.old_upmap_items);
        replace(&mut self.upmap_primaries, &change.upmap_primaries, &change.old_upmap_primaries);
    }
}

fn replace<V: Clone>(map: &mut BTreeMap<PgId, V>, new: &BTreeMap<PgId, V>, old: &[PgId]) {
    map.extend(new.iter().map(|(&pg, value)| (pg, value.clone())));
    for pg in old {
        map.remove(pg);
    }
}
