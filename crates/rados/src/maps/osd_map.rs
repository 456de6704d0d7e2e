//! The map of the OSDs.

use super::envelope::Envelope;
use super::osds::{OsdState, Osds};
use super::pool::Pool;
use crate::encoding::{EntityAddr, EntityAddrs, Fsid, PgId, Reader, Utime};
use crate::error::Result;
use bitflags::bitflags;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Most OSDs of a cluster that this side takes.
pub const MAX_OSDS: usize = 1 << 20;
/// The oldest encoding of what clients need: of Ceph 14.
const OLDEST: u8 = 9;
const DOING: &str = "reading an OSD map";
/// Bytes of `osd_info_t`.
const OSD_INFO: usize = 1 + 6 * 4;

bitflags! {
    /// What holds for the whole cluster (ceph: `src/include/rados.h`, `CEPH_OSDMAP_*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct MapFlags: u32 {
        /// No space is left: writes wait, or fail if they ask for that.
        const FULL = 1 << 1;
        /// Reads wait.
        const PAUSERD = 1 << 2;
        /// Writes wait.
        const PAUSEWR = 1 << 3;
        /// There are others.
        const _ = !0;
    }
}

/// The map of an epoch, as far as clients need it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OsdMap {
    pub(super) fsid: Fsid,
    pub(super) epoch: u32,
    pub(super) modified: Utime,
    pub(super) flags: MapFlags,
    pub(super) pools: BTreeMap<i64, Pool>,
    pub(super) pool_names: BTreeMap<i64, String>,
    pub(super) osds: Osds,
    pub(super) pg_temp: BTreeMap<PgId, Vec<i32>>,
    pub(super) primary_temp: BTreeMap<PgId, i32>,
    pub(super) upmap: BTreeMap<PgId, Vec<i32>>,
    pub(super) upmap_items: BTreeMap<PgId, Vec<(i32, i32)>>,
    pub(super) upmap_primaries: BTreeMap<PgId, i32>,
    pub(super) crush: Bytes,
    pub(super) blocklist: BTreeMap<EntityAddr, Utime>,
}

impl OsdMap {
    /// Reads a whole map, and checks it against its checksum.
    ///
    /// # Errors
    /// A map that is cut, damaged, too new, or of a cluster before Ceph 14.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let envelope = Envelope::open(DOING, bytes)?;
        let mut map = Self::default();
        map.decode_client(envelope.client.version, envelope.client.fields)?;
        map.decode_osd(envelope.osd.fields)?;
        Ok(map)
    }

    fn decode_client(&mut self, version: u8, mut fields: Reader<'_>) -> Result<()> {
        let r = &mut fields;
        if version < OLDEST {
            return Err(r.violation("a map is encoded as by Ceph 14 or newer", version.into()));
        }
        self.fsid = r.get()?;
        self.epoch = r.u32()?;
        // When the cluster was made.
        r.raw(8)?;
        self.modified = r.get()?;
        self.pools = pools(r)?;
        self.pool_names = names(r)?;
        r.i32()?;
        self.flags = MapFlags::from_bits_retain(r.u32()?);
        self.osds = Osds::decode(r)?;
        self.pg_temp = lists(r)?;
        self.primary_temp = per_group(r)?;
        self.osds.affinities = r.vec(4, Reader::u32)?;
        let (affinities, osds) = (self.osds.affinities.len(), self.osds.states.len());
        if affinities != 0 && affinities != osds {
            return Err(r.violation("every OSD has an affinity, or none has", affinities as u64));
        }
        self.crush = Bytes::copy_from_slice(r.bytes()?);
        profiles(r)?;
        self.upmap = lists(r)?;
        self.upmap_items = items(r)?;
        r.u32()?;
        // Snapshots that were removed and purged in this epoch; when OSDs last came up or in.
        snapshots(r)?;
        snapshots(r)?;
        r.raw(8 + 8)?;
        if version >= 10 {
            self.upmap_primaries = per_group(r)?;
        }
        Ok(())
    }

    fn decode_osd(&mut self, mut fields: Reader<'_>) -> Result<()> {
        // Addresses for heartbeats, and histories.
        fields.vec(1, Reader::get::<EntityAddrs>)?;
        let infos = fields.count(OSD_INFO)?;
        fields.raw(infos * OSD_INFO)?;
        self.blocklist = blocklist(&mut fields)?;
        Ok(())
    }

    /// The cluster.
    #[must_use]
    pub const fn fsid(&self) -> Fsid {
        self.fsid
    }

    /// The epoch; 0 for no map at all.
    #[must_use]
    pub const fn epoch(&self) -> u32 {
        self.epoch
    }

    /// When this epoch began, by the clocks of the monitors.
    #[must_use]
    pub const fn modified(&self) -> Utime {
        self.modified
    }

    /// What holds for the whole cluster.
    #[must_use]
    pub const fn flags(&self) -> MapFlags {
        self.flags
    }

    /// The pools, by number.
    #[must_use]
    pub const fn pools(&self) -> &BTreeMap<i64, Pool> {
        &self.pools
    }

    /// A pool's name.
    #[must_use]
    pub fn pool_name(&self, pool: i64) -> Option<&str> {
        self.pool_names.get(&pool).map(String::as_str)
    }

    /// The number of the pool with a name.
    #[must_use]
    pub fn pool_named(&self, name: &str) -> Option<i64> {
        let found = self.pool_names.iter().find(|(_, other)| *other == name);
        found.map(|(&pool, _)| pool)
    }

    /// How many OSDs there may be: numbers are below it.
    #[must_use]
    pub const fn max_osd(&self) -> usize {
        self.osds.states.len()
    }

    /// The state of an OSD; empty for one that there is not.
    #[must_use]
    pub fn state(&self, osd: i32) -> OsdState {
        self.of(osd, &self.osds.states).copied().unwrap_or_default()
    }

    /// Whether an OSD exists and runs.
    #[must_use]
    pub fn is_up(&self, osd: i32) -> bool {
        self.state(osd).contains(OsdState::EXISTS | OsdState::UP)
    }

    /// The weight of an OSD in 16.16 fixed point: 0 for one that is out. One that was removed keeps its weight.
    #[must_use]
    pub fn weight(&self, osd: i32) -> u32 {
        self.of(osd, &self.osds.weights).copied().unwrap_or_default()
    }

    /// The addresses of an OSD: another nonce is another incarnation.
    #[must_use]
    pub fn addrs(&self, osd: i32) -> Option<&EntityAddrs> {
        self.of(osd, &self.osds.addrs)
    }

    pub(super) fn of<'a, T>(&self, osd: i32, values: &'a [T]) -> Option<&'a T> {
        values.get(usize::try_from(osd).ok()?)
    }

    /// The CRUSH map, encoded.
    #[must_use]
    pub const fn crush(&self) -> &Bytes {
        &self.crush
    }

    /// Until when a client is shut out, if it is. Messenger versions count as one; a blocklisted address without a
    /// nonce stands for all of its instances.
    #[must_use]
    pub fn blocklisted(&self, client: &EntityAddr) -> Option<Utime> {
        let same = |listed: &EntityAddr| {
            listed.socket == client.socket && listed.nonce == client.nonce
                || listed.nonce == 0
                    && listed.socket.map(|socket| (socket.ip(), socket.port()))
                        == client.socket.map(|socket| (socket.ip(), 0))
        };
        self.blocklist.iter().find(|(listed, _)| same(listed)).map(|(_, &until)| until)
    }
}

pub(super) fn pools(r: &mut Reader<'_>) -> Result<BTreeMap<i64, Pool>> {
    r.map(8 + 6, |r| Ok((r.i64()?, r.get()?)))
}

pub(super) fn names(r: &mut Reader<'_>) -> Result<BTreeMap<i64, String>> {
    r.map(8 + 4, |r| Ok((r.i64()?, r.text()?)))
}

pub(super) fn lists(r: &mut Reader<'_>) -> Result<BTreeMap<PgId, Vec<i32>>> {
    r.map(PgId::LEN + 4, |r| Ok((r.get()?, r.vec(4, Reader::i32)?)))
}

pub(super) fn items(r: &mut Reader<'_>) -> Result<BTreeMap<PgId, Vec<(i32, i32)>>> {
    r.map(PgId::LEN + 4, |r| Ok((r.get()?, r.vec(8, |r| Ok((r.i32()?, r.i32()?)))?)))
}

pub(super) fn per_group(r: &mut Reader<'_>) -> Result<BTreeMap<PgId, i32>> {
    r.map(PgId::LEN + 4, |r| Ok((r.get()?, r.i32()?)))
}

pub(super) fn blocklist(r: &mut Reader<'_>) -> Result<BTreeMap<EntityAddr, Utime>> {
    r.map(7 + 8, |r| Ok((r.get()?, r.get()?)))
}

/// Erasure code profiles, which clients do not need: names, and options with values.
pub(super) fn profiles(r: &mut Reader<'_>) -> Result<()> {
    for _ in 0..r.count(8)? {
        r.bytes()?;
        for _ in 0..r.count(8)? {
            r.bytes()?;
            r.bytes()?;
        }
    }
    Ok(())
}

/// Intervals of snapshots of pools.
pub(super) fn snapshots(r: &mut Reader<'_>) -> Result<()> {
    for _ in 0..r.count(8 + 4)? {
        r.i64()?;
        let count = r.count(16)?;
        r.raw(count * 16)?;
    }
    Ok(())
}
