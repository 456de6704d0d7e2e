//! The monitors' view: a map, its encodings whole and by changes.

use blockyard_crush::{Algorithm, Bucket, MapData, Op, Release, Rule, RuleKind, Step, Tunables};
use blockyard_rados::encoding::{EntityAddr, EntityAddrs, Fsid, PgId, Writer};
use blockyard_rados::msgr::ceph_crc32c;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const FSID: Fsid = Fsid([0xb1; 16]);
pub(crate) const FULL: u32 = 1 << 1;
pub(crate) const PAUSEWR: u32 = 1 << 3;
const UP: u32 = 1 << 1;
const EXISTS_UP: u32 = 3;

#[derive(Clone, PartialEq)]
pub(crate) struct PoolModel {
    pub(crate) erasure: bool,
    /// The name of a snapshot of the pool, if it has one.
    pub(crate) snapshot: Option<&'static [u8]>,
    pub(crate) pg_num: u32,
    pub(crate) size: u8,
    pub(crate) flags: u64,
    pub(crate) last_force_resend: u32,
    pub(crate) last_change: u32,
}

impl PoolModel {
    pub(crate) fn replicated() -> Self {
        Self {
            erasure: false,
            snapshot: None,
            pg_num: 8,
            size: 3,
            flags: 0,
            last_force_resend: 0,
            last_change: 1,
        }
    }
}

#[derive(Clone, PartialEq)]
pub(crate) struct OsdModel {
    pub(crate) up: bool,
    pub(crate) addr: EntityAddr,
}

/// What a map says.
#[derive(Clone, PartialEq)]
pub(crate) struct MapModel {
    pub(crate) epoch: u32,
    /// When it was made, in seconds.
    pub(crate) modified: u32,
    pub(crate) flags: u32,
    pub(crate) pools: BTreeMap<i64, PoolModel>,
    pub(crate) osds: Vec<OsdModel>,
    pub(crate) pg_temp: BTreeMap<PgId, Vec<i32>>,
    pub(crate) primary_temp: BTreeMap<PgId, i32>,
    /// How willing each OSD is to be a primary.
    pub(crate) affinities: Vec<u32>,
    pub(crate) crush: Bytes,
    pub(crate) blocklist: BTreeSet<EntityAddr>,
}

/// One host of OSDs, and a rule for each kind of pools.
pub(crate) fn crush(osds: usize) -> Bytes {
    const ONE: u32 = 0x1_0000;
    let items: Vec<i32> = (0..i32::try_from(osds).unwrap()).collect();
    let weights = vec![ONE; osds];
    let root = Bucket {
        id: -1,
        kind: 10,
        weight: ONE * u32::try_from(osds).unwrap(),
        items,
        algorithm: Algorithm::Straw2 { weights },
    };
    let rule = |kind, ruleset, choose| {
        let take = Step::new(Op::Take, -1, 0);
        let steps = vec![take, Step::new(choose, 0, 0), Step::new(Op::Emit, 0, 0)];
        Some(Rule { kind, ruleset, min_size: 1, max_size: 10, steps })
    };
    let rules = vec![
        rule(RuleKind::Replicated, 0, Op::ChooseFirstn),
        rule(RuleKind::Erasure, 1, Op::ChooseIndep),
    ];
    let data = MapData {
        buckets: vec![Some(root)],
        rules,
        max_devices: i32::try_from(osds).unwrap(),
        tunables: Tunables::JEWEL,
        types: BTreeMap::from([(0, "osd".into()), (10, "root".into())]),
        names: BTreeMap::from([(-1, "default".into())]),
        ..MapData::default()
    };
    data.encode(Release::Squid).into()
}

fn pool(w: &mut Writer, pool: &PoolModel) {
    w.versioned(29, 5, |w| {
        w.u8(if pool.erasure { 3 } else { 1 });
        w.u8(pool.size);
        w.u8(u8::from(pool.erasure));
        w.u8(2);
        w.u32(pool.pg_num);
        w.u32(pool.pg_num);
        w.raw(&[0; 8]);
        w.u32(pool.last_change);
        w.u64(0);
        w.u32(0);
        w.vec(pool.snapshot.as_slice(), |w, name| {
            w.u64(1);
            w.versioned(2, 2, |w| {
                w.raw(&[0; 8 + 8]);
                w.bytes(name);
            });
        });
        w.u32(0);
        w.u64(0);
        w.u64(1 | pool.flags);
        w.u32(0);
        w.u8(1);
        w.raw(&[0; 16]);
        w.u32(0);
        w.i64(-1);
        w.u8(0);
        w.i64(-1);
        w.i64(-1);
        w.u32(0);
        w.versioned(1, 1, |w| w.u8(0));
        w.raw(&[0; 8]);
        w.u32(4096);
        w.raw(&[0; 32]);
        w.string("");
        w.raw(&[0; 4 + 4 + 8 + 4 + 4 + 1 + 1 + 4 + 4]);
        w.versioned(1, 1, |w| w.u32(0));
        w.u32(0);
        w.u32(0);
        w.raw(&[0; 8]);
        w.u32(pool.pg_num);
        w.u32(pool.pg_num);
        w.u32(pool.pg_num);
        w.raw(&[0; 8]);
        w.u32(pool.last_force_resend);
        w.u8(0);
    });
}

/// Puts the two parts into the wrapper with the checksum, and behind it what a change has there.
fn wrap(
    client: impl FnOnce(&mut Writer),
    client_version: u8,
    osd: impl FnOnce(&mut Writer),
    tail: &[u8],
) -> Bytes {
    let mut inner = Writer::new();
    inner.versioned(client_version, 1, client);
    inner.versioned(9, 1, osd);
    let crc_at = 6 + inner.as_slice().len();
    inner.u32(0);
    inner.raw(tail);
    let mut outer = Writer::new();
    outer.versioned(8, 7, |w| w.raw(inner.as_slice()));
    let mut bytes = outer.into_bytes();
    let crc = ceph_crc32c(ceph_crc32c(u32::MAX, &bytes[..crc_at]), &bytes[crc_at + 4..]);
    bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    bytes.into()
}

fn len(count: usize) -> u32 {
    u32::try_from(count).unwrap()
}

fn lists(w: &mut Writer, lists: &[(PgId, Vec<i32>)]) {
    w.vec(lists, |w, (pg, osds)| {
        w.put(pg);
        w.vec(osds, |w, osd| w.i32(*osd));
    });
}

/// What is new of a map, and `gone` for what is there no more.
fn changed<V: Clone + PartialEq>(
    now: &BTreeMap<PgId, V>,
    then: &BTreeMap<PgId, V>,
    gone: &V,
) -> Vec<(PgId, V)> {
    let new = now.iter().filter(|(pg, value)| then.get(pg) != Some(value));
    let new = new.map(|(&pg, value)| (pg, value.clone()));
    let old = then.keys().filter(|pg| !now.contains_key(pg));
    new.chain(old.map(|&pg| (pg, gone.clone()))).collect()
}

/// Clients that are kept out, and until when.
fn listed(w: &mut Writer, blocklist: &BTreeSet<EntityAddr>) {
    let blocklist: Vec<_> = blocklist.iter().collect();
    w.vec(&blocklist, |w, addr| {
        w.put(*addr);
        w.raw(&[0; 8]);
    });
}

fn primaries(w: &mut Writer, primaries: &[(PgId, i32)]) {
    w.vec(primaries, |w, (pg, osd)| {
        w.put(pg);
        w.i32(*osd);
    });
}

impl MapModel {
    pub(crate) fn whole(&self) -> Bytes {
        let client = |w: &mut Writer| {
            w.put(&FSID);
            w.u32(self.epoch);
            w.raw(&[0; 8]);
            w.u32(self.modified);
            w.raw(&[0; 4]);
            w.u32(len(self.pools.len()));
            for (&id, model) in &self.pools {
                w.i64(id);
                pool(w, model);
            }
            w.u32(len(self.pools.len()));
            for id in self.pools.keys() {
                w.i64(*id);
                w.string(&format!("pool{id}"));
            }
            w.i32(9);
            w.u32(self.flags);
            w.i32(i32::try_from(self.osds.len()).unwrap());
            w.vec(&self.osds, |w, osd| w.u32(if osd.up { EXISTS_UP } else { 1 }));
            w.vec(&self.osds, |w, _| w.u32(0x1_0000));
            w.vec(&self.osds, |w, osd| w.put(&EntityAddrs(vec![osd.addr])));
            lists(w, &changed(&self.pg_temp, &BTreeMap::new(), &Vec::new()));
            primaries(w, &changed(&self.primary_temp, &BTreeMap::new(), &-1));
            w.vec(&self.affinities, |w, affinity| w.u32(*affinity));
            w.bytes(&self.crush);
            // Profiles, exceptions of two kinds, a version, snapshots of two kinds, times.
            w.raw(&[0; 6 * 4 + 16]);
        };
        let osd = |w: &mut Writer| {
            w.raw(&[0; 2 * 4]);
            listed(w, &self.blocklist);
        };
        wrap(client, 9, osd, &[])
    }

    /// The change that leads here from the map of before.
    pub(crate) fn change(&self, before: &Self) -> Bytes {
        self.change_with(before, &[])
    }

    /// The same, with a whole map that takes the place of all changes, if it is not empty.
    pub(crate) fn change_with(&self, before: &Self, whole: &[u8]) -> Bytes {
        assert_eq!(self.epoch, before.epoch + 1);
        let client = |w: &mut Writer| {
            w.put(&FSID);
            w.u32(self.epoch);
            w.u32(self.modified);
            w.raw(&[0; 4 + 8]);
            w.i32(self.flags.cast_signed());
            w.bytes(whole);
            w.u32(0);
            w.i32(-1);
            let new = |id: &i64| self.pools.get(id) != before.pools.get(id);
            let pools: Vec<_> = self.pools.iter().filter(|(id, _)| new(id)).collect();
            w.vec(&pools, |w, (id, model)| {
                w.i64(**id);
                pool(w, model);
            });
            w.u32(0);
            let old: Vec<_> =
                before.pools.keys().filter(|id| !self.pools.contains_key(id)).collect();
            w.vec(&old, |w, id| w.i64(**id));
            let osds = self.osds.iter().zip(&before.osds).enumerate();
            let up: Vec<_> =
                osds.clone().filter(|(_, (now, then))| now.up && now != then).collect();
            w.vec(&up, |w, (osd, (now, _))| {
                w.i32(i32::try_from(*osd).unwrap());
                w.put(&EntityAddrs(vec![now.addr]));
            });
            let down: Vec<_> = osds.filter(|(_, (now, then))| then.up && !now.up).collect();
            w.vec(&down, |w, (osd, _)| {
                w.i32(i32::try_from(*osd).unwrap());
                w.u32(UP);
            });
            w.u32(0);
            lists(w, &changed(&self.pg_temp, &before.pg_temp, &Vec::new()));
            primaries(w, &changed(&self.primary_temp, &before.primary_temp, &-1));
            let affinities = self.affinities.iter().zip(&before.affinities).enumerate();
            let affinities: Vec<_> = affinities.filter(|(_, (now, then))| now != then).collect();
            w.vec(&affinities, |w, (osd, (affinity, _))| {
                w.i32(i32::try_from(*osd).unwrap());
                w.u32(**affinity);
            });
            // Profiles of two kinds, exceptions of four kinds, snapshots of two kinds, times.
            w.raw(&[0; 8 * 4 + 16]);
        };
        let osd = |w: &mut Writer| {
            w.raw(&[0; 4 * 4]);
            listed(w, &(&self.blocklist - &before.blocklist));
            let old: Vec<_> = before.blocklist.difference(&self.blocklist).collect();
            w.vec(&old, |w, addr| w.put(*addr));
        };
        wrap(client, 8, osd, &[0; 4])
    }
}
