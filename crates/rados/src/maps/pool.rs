//! Pools (ceph: `src/osd/osd_types.h`, `pg_pool_t`).

use crate::encoding::{Decode, Reader};
use crate::error::Result;
use bitflags::bitflags;
use std::collections::BTreeMap;

/// The oldest encoding of a pool that is taken, of Ceph 14: monitors encode for what a client says it supports.
const OLDEST: u8 = 28;
/// The newest whose fields are known.
const KNOWN: u8 = 32;
/// From this version on a pool names the shards that may not be primary.
const WITH_NONPRIMARY_SHARDS: u8 = 32;
/// Bytes of an interval, and least bytes of two strings.
const INTERVAL: usize = 16;
const TWO_STRINGS: usize = 8;

bitflags! {
    /// What is special about a pool (`pg_pool_t::FLAG_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PoolFlags: u64 {
        /// Groups are hashed together with the pool's number.
        const HASHPSPOOL = 1 << 0;
        /// The pool is over its quota, or the cluster is full for it: writes wait or fail.
        const FULL = 1 << 1;
        /// Erasure-coded, and partial overwrites work.
        const EC_OVERWRITES = 1 << 17;
        /// Clients make snapshots themselves.
        const SELFMANAGED_SNAPS = 1 << 13;
        /// Snapshots are the pool's.
        const POOL_SNAPS = 1 << 14;
        /// Over its quota.
        const FULL_QUOTA = 1 << 10;
        /// Erasure-coded, and only some shards may be primary (Ceph 20).
        const EC_OPTIMIZATIONS = 1 << 19;
        /// There are others.
        const _ = !0;
    }
}

/// How a pool keeps data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// In whole copies.
    Replicated,
    /// In shards.
    Erasure,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// How it keeps data.
    pub kind: PoolKind,
    /// How many copies or shards there are.
    pub size: u8,
    /// With fewer of them, I/O waits.
    pub min_size: u8,
    /// The CRUSH rule.
    pub crush_rule: u32,
    /// How names are hashed: 1 is Linux's dcache hash, 2 rjenkins.
    pub object_hash: u8,
    /// How many placement groups there are.
    pub pg_num: u32,
    /// How many there will be if groups are being merged.
    pub pg_num_pending: u32,
    /// How many of them are placed on their own; the others go where these do.
    pub pgp_num: u32,
    /// The epoch of the last change.
    pub last_change: u32,
    /// The newest snapshot.
    pub snap_seq: u64,
    /// Names of the pool's own snapshots.
    pub snaps: BTreeMap<u64, String>,
    /// What is special about it.
    pub flags: PoolFlags,
    /// Most bytes and objects in it; 0 for no limit.
    pub quota: (u64, u64),
    /// The pool that this one is a cache of, if not negative.
    pub tier_of: i64,
    /// The pool to read from and to write to instead of this one, if not negative (cache tiers).
    pub tiers: (i64, i64),
    /// The name of the erasure code.
    pub erasure_code_profile: String,
    /// Bytes of a stripe of an erasure-coded pool.
    pub stripe_width: u32,
    /// Requests that were sent in an epoch before this one are to be sent again.
    pub last_force_resend: u32,
    /// The shards that may not be primary, a bit each (Ceph 20, [`PoolFlags::EC_OPTIMIZATIONS`]).
    pub nonprimary_shards: u128,
}

fn intervals(reader: &mut Reader<'_>) -> Result<()> {
    let count = reader.count(INTERVAL)?;
    reader.raw(count * INTERVAL).map(|_| ())
}

/// A structure that is of no interest here.
fn skip(reader: &mut Reader<'_>) -> Result<()> {
    reader.versioned(u8::MAX).map(|_| ())
}

fn strings(reader: &mut Reader<'_>) -> Result<()> {
    for _ in 0..reader.count(TWO_STRINGS)? {
        reader.bytes()?;
        reader.bytes()?;
    }
    Ok(())
}

/// A number in groups of 7 bits, the lowest first (ceph: `src/include/denc.h`, `denc_varint`).
fn varint(r: &mut Reader<'_>) -> Result<u64> {
    const BITS: u32 = 7;
    let mut number = 0_u64;
    for shift in (0..u64::BITS).step_by(BITS as usize) {
        let byte = r.u8()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(r.violation("a number has at most 64 bits", number))
}

/// The set of shards that may not be primary, at the end of a pool (ceph: `src/osd/osd_types.cc`, `pg_pool_t::encode`).
fn nonprimary_shards(r: &mut Reader<'_>, version: u8) -> Result<u128> {
    if version < WITH_NONPRIMARY_SHARDS {
        return Ok(0);
    }
    // Whether the number of groups grows by itself; the last merge of groups; what stretched pools have.
    r.u8()?;
    skip(r)?;
    if r.bool()? {
        r.raw(4 * 4)?;
    }
    Ok(u128::from(varint(r)?) | u128::from(varint(r)?) << u64::BITS)
}

fn snapshot(reader: &mut Reader<'_>) -> Result<(u64, String)> {
    let id = reader.u64()?;
    let mut info = reader.versioned(2)?.fields;
    info.raw(8 + 8)?;
    Ok((id, info.text()?))
}

impl Decode for Pool {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let versioned = reader.versioned(KNOWN)?;
        let (version, mut fields) = (versioned.version, versioned.fields);
        if version < OLDEST {
            return Err(
                fields.violation("a pool is encoded as by Ceph 14 or newer", version.into())
            );
        }
        let r = &mut fields;
        let kind = match r.u8()? {
            1 => PoolKind::Replicated,
            3 => PoolKind::Erasure,
            kind => return Err(r.violation("a pool has type 1 or 3", kind.into())),
        };
        let (size, rule, object_hash) = (r.u8()?, r.u8()?, r.u8()?);
        let (pg_num, pgp_num) = (r.u32()?, r.u32()?);
        // Localized groups, which are gone.
        r.raw(4 + 4)?;
        let (last_change, snap_seq) = (r.u32()?, r.u64()?);
        r.u32()?;
        let snaps = r.map(8 + 6, snapshot)?;
        intervals(r)?;
        // An owner, and an interval for replays, which are gone.
        r.u64()?;
        let flags = PoolFlags::from_bits_retain(r.u64()?);
        r.u32()?;
        let min_size = r.u8()?;
        let quota = (r.u64()?, r.u64()?);
        r.vec(8, Reader::u64)?;
        let tier_of = r.i64()?;
        // How it caches.
        r.u8()?;
        let tiers = (r.i64()?, r.i64()?);
        strings(r)?;
        // Hit sets: kind, period, count.
        skip(r)?;
        r.raw(4 + 4)?;
        let stripe_width = r.u32()?;
        // Targets of a cache tier.
        r.raw(8 + 8 + 4 * 4)?;
        let erasure_code_profile = r.text()?;
        // Resends before Ceph 12, recency, expected objects, more of cache tiers.
        r.raw(4 + 4 + 8 + 4 + 4 + 1 + 1 + 4 + 4)?;
        // Options, resends before Ceph 14, applications, creation.
        skip(r)?;
        r.u32()?;
        for _ in 0..r.count(TWO_STRINGS)? {
            r.bytes()?;
            strings(r)?;
        }
        r.raw(8)?;
        // Where the numbers of groups are going to, how many there will be, when that is ready.
        r.raw(2 * 4)?;
        let pg_num_pending = r.u32()?;
        r.raw(2 * 4)?;
        let last_force_resend = r.u32()?;
        let nonprimary_shards = nonprimary_shards(r, version)?;
        if pg_num == 0 || pgp_num == 0 || pgp_num > pg_num {
            return Err(r.violation("a pool has 1 to pg_num groups to place", pgp_num.into()));
        }
        Ok(Self {
            kind,
            size,
            min_size,
            crush_rule: rule.into(),
            object_hash,
            pg_num,
            pg_num_pending,
            pgp_num,
            last_change,
            snap_seq,
            snaps,
            flags,
            quota,
            tier_of,
            tiers,
            erasure_code_profile,
            stripe_width,
            last_force_resend,
            nonprimary_shards,
        })
    }
}
