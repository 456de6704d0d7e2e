//! Where operations go, by the map.

use super::config::Config;
use super::operation::{Operation, Purpose};
use crate::encoding::{ObjectLocator, PgId, PgShard};
use crate::error::Result;
use crate::maps::{MapFlags, OsdMap, Placed, Placer, Pool, PoolFlags, PoolKind};
use crate::osd::OpFlags;
use std::collections::HashMap;
use std::mem;
use std::sync::Arc;

/// Most placements that are kept; beyond, all are computed again.
const MAX_PLACEMENTS: usize = 1 << 16;

/// Where an operation is to go, and what that was decided by.
#[derive(Clone, Debug, Default)]
pub(super) struct Aim {
    /// The hash of the object's name.
    pub hash: u32,
    pub pg: PgShard,
    /// The OSD, if one serves the group.
    pub osd: Option<i32>,
    /// Whether that OSD is not the primary.
    pub replica: bool,
    pub placed: Option<Arc<Placed>>,
    pg_num: (u32, u32),
    sizes: (u8, u8),
    /// The epoch in which everything had to be sent again that was last obeyed.
    forced: u32,
}

/// Why an operation may not be sent now, wherever it goes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hold {
    /// The cluster takes no such operations now.
    pub paused: bool,
    /// It takes no writes now, or what else the operation formally is.
    formally: bool,
}

/// What a look at the map says of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may stay where it is.
    Keep,
    /// It is to be sent, or sent again.
    Send,
    /// There is no such pool in this map.
    NoPool,
}

/// How much has to change for an operation to be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sensitivity {
    /// Where it goes: OSDs carry requests over to the next interval while they stay primary.
    Primary,
    /// Anything that makes a new interval: a watch ends with the interval.
    Interval,
}

/// The map and what is computed from it.
#[derive(Debug)]
pub(super) struct Routes {
    pub map: OsdMap,
    placer: Option<Placer>,
    placements: HashMap<PgId, Arc<Placed>>,
    /// Those of the epoch before: what did not change is not stored again, so that comparing is cheap.
    previous: HashMap<PgId, Arc<Placed>>,
    /// Nothing is sent before the map has this epoch.
    barrier: u32,
    location: Vec<(String, String)>,
    turn: u64,
}

impl Routes {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            map: OsdMap::default(),
            placer: None,
            placements: HashMap::new(),
            previous: HashMap::new(),
            barrier: 0,
            location: config.location.clone(),
            turn: config.seed,
        }
    }

    /// The map is another one.
    pub(super) fn renew(&mut self) -> Result<()> {
        self.previous = mem::take(&mut self.placements);
        match &mut self.placer {
            Some(placer) => placer.update(&self.map),
            None => {
                self.placer = Some(Placer::new(&self.map)?);
                Ok(())
            }
        }
    }

    /// Nothing is sent before the map has this epoch: whether it has.
    pub(super) fn bar(&mut self, epoch: u32) -> bool {
        self.barrier = self.barrier.max(epoch);
        !self.is_barred()
    }

    /// Whether nothing may be sent by this map.
    pub(super) const fn is_barred(&self) -> bool {
        self.map.epoch() < self.barrier
    }

    fn place(&mut self, pg: PgId) -> Arc<Placed> {
        if let Some(placed) = self.placements.get(&pg) {
            return Arc::clone(placed);
        }
        if self.placements.len() >= MAX_PLACEMENTS {
            self.placements.clear();
        }
        let placed = match &mut self.placer {
            Some(placer) => placer.place(&self.map, pg),
            None => Placed::default(),
        };
        let placed = match self.previous.remove(&pg) {
            Some(before) if *before == placed => before,
            _ => Arc::new(placed),
        };
        self.placements.insert(pg, Arc::clone(&placed));
        placed
    }

    /// The pool that an operation goes to: reads and writes of a pool with a cache go to that.
    fn pool_of(&self, locator: &ObjectLocator, flags: OpFlags, redirected: bool) -> Option<i64> {
        let pool = self.map.pools().get(&locator.pool)?;
        let (read, write) = pool.tiers;
        let mut target = locator.pool;
        if !redirected && flags.contains(OpFlags::READ) && read >= 0 {
            target = read;
        }
        if !redirected && flags.contains(OpFlags::WRITE) && write >= 0 {
            target = write;
        }
        Some(target)
    }

    /// Whether operations with these flags have to wait.
    fn pauses(&self, pool: &Pool, flags: OpFlags) -> bool {
        let map = self.map.flags();
        let full = map.contains(MapFlags::FULL) || pool.flags.contains(PoolFlags::FULL);
        let tries = flags.intersects(OpFlags::FULL_TRY | OpFlags::FULL_FORCE);
        flags.contains(OpFlags::READ) && map.contains(MapFlags::PAUSERD)
            || flags.contains(OpFlags::WRITE) && (map.contains(MapFlags::PAUSEWR) || full && !tries)
    }

    /// Aims an operation by the present map.
    pub(super) fn aim(&mut self, op: &mut Operation, sensitivity: Sensitivity) -> Verdict {
        let Some(base) = self.map.pools().get(&op.request.locator.pool) else {
            return Verdict::NoPool;
        };
        // What an OSD knows of watchers and of who was told ends with the interval, also where it stays the primary.
        let lingers =
            matches!(op.purpose, Purpose::Notify(_) | Purpose::Watch(_) | Purpose::Reconnect(_));
        let sensitivity = if lingers { Sensitivity::Interval } else { sensitivity };
        let forced = base.last_force_resend;
        let force = forced == self.map.epoch() && op.aim.forced < forced;
        let redirected = op.redirected_from.is_some();
        let target = self.pool_of(&op.request.locator, op.flags, redirected);
        let Some((pool_id, pool)) = target.and_then(|id| Some((id, self.map.pools().get(&id)?)))
        else {
            return Verdict::NoPool;
        };
        if !op.pool_seen {
            op.pool_seen = true;
            let hashed = pool.hash_of(&op.request.locator, &op.request.object);
            let Some(hash) = hashed else { return Verdict::NoPool };
            op.aim.hash = hash;
        }
        let pg = PgId { pool: pool_id, seed: pool.group(op.aim.hash) };
        let (pg_num, sizes) = ((pool.pg_num, pool.pg_num_pending), (pool.size, pool.min_size));
        let kind = pool.kind;
        let held = self.pauses(pool, op.flags);
        // A ping keeps a watch, and is only formally a write: an OSD takes it where nothing may be written, and drops a watcher
        // that it does not hear of (ceph: `Objecter::_send_linger_ping`). One that was sent just before is discarded as others.
        let pings = matches!(op.purpose, Purpose::Ping(..));
        let paused = if pings { self.pauses(pool, OpFlags::READ) } else { held };
        let turned = pings && op.hold.formally != held;
        let unpaused = op.hold.paused && !paused || turned;
        op.hold = Hold { paused, formally: held };
        let placed = self.place(pg);
        let shard = if kind == PoolKind::Erasure { placed.shard() } else { PgShard::NO_SHARD };
        let pg = PgShard { pg, shard };
        let changed = match &op.aim.placed {
            None => true,
            Some(before) => {
                let interval = sensitivity == Sensitivity::Interval;
                let same = Arc::ptr_eq(before, &placed);
                // A primary that was chosen by hand may have been down, and be up in this map.
                // An OSD that stays the primary at another place is another one to its requests (ceph:
                // `OSDMap::primary_changed_broken`).
                op.aim.osd.is_none()
                    || op.aim.pg != pg
                    || op.aim.pg_num.0 != pg_num.0
                    || before.primary != placed.primary
                    || before.position != placed.position
                    || !same && (interval || op.aim.replica) && before.acting != placed.acting
                    || interval
                        && (!same && before.up != placed.up
                            || op.aim.pg_num != pg_num
                            || op.aim.sizes != sizes)
            }
        };
        if changed || force {
            let (osd, replica) = self.choose(op, kind, &placed);
            let hash = op.aim.hash;
            let forced = if force { forced } else { op.aim.forced };
            let placed = Some(placed);
            op.aim = Aim { hash, pg, osd, replica, placed, pg_num, sizes, forced };
        }
        if changed || force || unpaused { Verdict::Send } else { Verdict::Keep }
    }

    /// The OSD for an operation, and whether it is not the primary.
    fn choose(&mut self, op: &Operation, kind: PoolKind, placed: &Placed) -> (Option<i32>, bool) {
        let primary = placed.primary.filter(|&osd| self.map.is_up(osd));
        let any = OpFlags::BALANCE_READS | OpFlags::LOCALIZE_READS;
        let wants = op.flags.intersects(any) && !op.flags.contains(OpFlags::WRITE);
        if !wants || op.primary_only || kind != PoolKind::Replicated || placed.acting.len() < 2 {
            return (primary, false);
        }
        let chosen = if op.flags.contains(OpFlags::BALANCE_READS) {
            self.turn = self.turn.wrapping_add(1);
            let count = placed.acting.len() as u64;
            usize::try_from(self.turn % count).ok().and_then(|at| placed.acting[at])
        } else {
            let near = |osd: i32| (self.distance(osd), Some(osd) != primary);
            placed.acting.iter().copied().flatten().min_by_key(|&osd| near(osd))
        };
        let chosen = chosen.or(primary);
        (chosen, chosen != primary)
    }

    /// How many buckets around an OSD the client is not in, from the innermost out.
    fn distance(&self, osd: i32) -> usize {
        let Some(placer) = &self.placer else { return usize::MAX };
        let here = |(kind, name): (&str, &str)| {
            self.location.iter().any(|(our_kind, ours)| our_kind == kind && ours == name)
        };
        placer.crush().location(osd).position(here).unwrap_or(usize::MAX)
    }
}
