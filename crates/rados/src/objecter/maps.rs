//! New maps, and what follows from them.

use super::event::Event;
use super::machine::Objecter;
use super::operation::Operation;
use super::routes::Sensitivity;
use crate::encoding::Fsid;
use crate::error::{Error, ErrorKind, Result};
use crate::maps::{Incremental, OsdMap};
use crate::mon::OsdMaps;
use std::time::{Duration, Instant};

/// Up to so many changes in one message, operations are looked at after each; beyond, all are sent again once.
const MAX_STEPS: usize = 16;
/// While no map can be used, a whole one is asked for after this time, and then twice as long each time, up to a limit.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// A whole map, which is to be the one that the message around it says.
fn whole_map(bytes: &[u8], epoch: u32, fsid: Fsid) -> Result<OsdMap> {
    const DOING: &str = "reading OSD maps";
    let map = OsdMap::decode(bytes)?;
    if map.epoch() != epoch {
        let rule = "a map has the epoch that was said";
        return Err(Error::violation(DOING, rule, map.epoch().into()));
    }
    if map.fsid() != fsid {
        return Err(Error::violation(DOING, "a map is of the cluster that was said", 0));
    }
    Ok(map)
}

impl Objecter {
    /// Takes maps, of the monitors or an OSD. Those that are older than what is known, or of another cluster, are passed
    /// over; if some are missing in between, [`Event::WantMap`] asks for them.
    ///
    /// # Errors
    /// A map that cannot be used. A whole one is asked for.
    pub fn take_maps(&mut self, now: Instant, maps: &OsdMaps) -> Result<()> {
        let known = self.routes.map.epoch();
        if known > 0 && maps.fsid != self.routes.map.fsid()
            || maps.last() <= known && !self.map_broken
        {
            return Ok(());
        }
        let result = self.take_newer(now, maps);
        if let Err(error) = &result {
            self.events.push_back(Event::MapUnusable(error.clone()));
            self.map_broken = true;
            self.known.is_lost();
            self.want_whole(now);
        }
        result
    }

    /// Only a whole map helps. It is asked for at once, and then from time to time: what comes may be of no use either.
    fn want_whole(&mut self, now: Instant) {
        if self.map_retry.is_some() {
            return;
        }
        self.maps_wanted = Some(0);
        self.events.push_back(Event::WantMap(0));
        let pause = RETRY.saturating_mul(1 << self.map_failures.min(10)).min(RETRY_MAX);
        self.map_failures = self.map_failures.saturating_add(1);
        self.map_retry = Some(now + pause);
        self.wake_at(now + pause);
    }

    /// Asks for a whole map again, if it is time.
    pub(super) fn expire_map(&mut self, now: Instant) {
        if self.map_retry.is_some_and(|at| at <= now) {
            self.map_retry = None;
            if self.map_broken {
                self.want_whole(now);
            }
        }
    }

    fn take_newer(&mut self, now: Instant, maps: &OsdMaps) -> Result<()> {
        let start = self.routes.map.epoch();
        let many = maps.changes.range(start.saturating_add(1)..).count() > MAX_STEPS;
        loop {
            let epoch = self.routes.map.epoch();
            let next = epoch.saturating_add(1);
            let change = maps.changes.get(&next).filter(|_| epoch > 0 && !self.map_broken);
            if let Some(change) = change {
                self.routes.map.apply(&Incremental::decode(change)?)?;
                // In each, also in one that is looked at for nothing else: the next may have forgotten it.
                self.look_at_blocklist(now);
                if !many {
                    self.renewed(now, false)?;
                }
                continue;
            }
            // Never back to what was before: other clients may be shut out since.
            let from = if self.map_broken { self.map_usable.max(1) } else { next };
            let Some((&said, whole)) = maps.whole.range(from..).next_back() else { break };
            let map = whole_map(whole, said, maps.fsid)?;
            // With what came between unknown, an OSD may have forgotten any operation.
            self.routes.map = map;
            if std::mem::take(&mut self.map_broken) {
                self.ask_for_newest(now);
            }
            self.look_at_blocklist(now);
            self.renewed(now, epoch > 0)?;
            self.map_failures = 0;
        }
        let epoch = self.routes.map.epoch();
        if many && epoch > start {
            self.renewed(now, true)?;
        }
        // While only a whole one helps, that is asked for in time.
        if !self.map_broken && (maps.last() > epoch || epoch == 0) {
            self.want_maps(if epoch == 0 { 0 } else { epoch + 1 });
        }
        Ok(())
    }

    fn want_maps(&mut self, from: u32) {
        if self.maps_wanted.replace(from) != Some(from) {
            self.events.push_back(Event::WantMap(from));
        }
    }

    /// The map is another one: sessions and operations follow.
    fn renewed(&mut self, now: Instant, again: bool) -> Result<()> {
        self.maps_wanted = None;
        self.routes.renew()?;
        self.map_usable = self.routes.map.epoch();
        self.events.push_back(Event::Map(self.routes.map.epoch()));
        // One whose pool is gone ends, and makes room for one that is not to pass those behind it.
        self.before_starting(now, |it| it.follow_map(now, again));
        self.go_on_by_map();
        Ok(())
    }

    fn follow_map(&mut self, now: Instant, again: bool) {
        for (osd, addr) in self.session_addrs() {
            let map = &self.routes.map;
            let now_at = map.addrs(osd).and_then(|addrs| addrs.msgr2());
            if !map.is_up(osd) || now_at != Some(addr) {
                self.end_session(now, osd);
            }
        }
        let tids: Vec<_> = self.ops.keys().copied().collect();
        for tid in tids {
            self.route(now, tid, Sensitivity::Primary, again);
        }
        self.aim_watches(now, again);
    }

    /// Nothing is sent from now on until the map has this epoch, such as one in which another client is shut out: neither what
    /// is submitted later nor what waits already.
    pub fn set_barrier(&mut self, epoch: u32) {
        let known = self.routes.map.epoch();
        if !self.routes.bar(epoch) && known > 0 {
            self.want_maps(known + 1);
        }
    }

    /// The map lacks an operation's pool. It is new, and this map old, or it never was, or it was deleted.
    pub(super) fn pool_missing(&mut self, now: Instant, tid: u64) {
        let Some(op) = self.ops.get_mut(&tid) else { return };
        if op.pool_seen {
            op.pool_missing_until = Some(0);
        }
        match op.pool_missing_until {
            Some(until) if until <= self.routes.map.epoch() => {
                self.fail(now, tid, Error::new("finding the object", ErrorKind::NoPool));
            }
            Some(_) => {}
            None => self.ask_for_newest(now),
        }
    }

    /// The newest map has this epoch, say the monitors to [`Event::WantNewest`].
    pub fn newest(&mut self, now: Instant, epoch: u32) {
        self.unanswered = None;
        let in_use = if self.map_broken { 0 } else { self.looked_at };
        self.known.newest_is(now, epoch, in_use);
        // First: what follows may ask again, for streams of which this answer says nothing.
        let waits = self.newest_is(now, epoch);
        let known = self.routes.map.epoch();
        let waiting = |op: &Operation| {
            known > 0 && op.aim.placed.is_none() && op.pool_missing_until.is_none()
        };
        let tids: Vec<_> =
            self.ops.iter().filter(|(_, op)| waiting(op)).map(|(&tid, _)| tid).collect();
        for &tid in &tids {
            if let Some(op) = self.ops.get_mut(&tid) {
                op.pool_missing_until = Some(epoch);
            }
            self.pool_missing(now, tid);
        }
        if (waits || !tids.is_empty()) && known > 0 && epoch > known {
            self.want_maps(known + 1);
        }
        self.go_on_by_map();
    }
}
