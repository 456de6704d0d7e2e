//! A client that the cluster has kept out does nothing more, for good.
//!
//! Whoever takes a lock from a client puts it on the blocklist first, and then writes where that one wrote. OSDs go by the
//! blocklist of their own map, whose entries expire, mostly after an hour (ceph: options `rbd_blocklist_expire_seconds`,
//! `mon_osd_blocklist_default_expire`). A client that comes back later, as its machine was suspended or its network was down,
//! would be let in again, and its old requests would overwrite what was written since. So it ends them itself, once it has
//! seen that some map had it on the list, whatever the newest one says.

use super::machine::Objecter;
use crate::encoding::EntityAddr;
use std::time::{Duration, Instant};

/// Ceph's EBLOCKLISTED, which is ESHUTDOWN.
const EBLOCKLISTED: i32 = 108;
/// Where maps were missed for this time by the monitors' clocks, from when the client last had the newest one, an entry may have
/// come and gone: an hour, less what the clocks of two monitors may differ by.
const FORGOTTEN: Duration = Duration::from_secs(3600 - 60);

impl Objecter {
    /// Where the client is, as the monitors know it.
    ///
    /// There is a new session with a monitor, which is asked what the newest map is.
    pub fn set_own(&mut self, now: Instant, own: EntityAddr) {
        self.own = Some(own);
        self.fence_if_listed(now);
        self.wait_anew(now);
        self.ask_for_newest(now);
    }

    /// The session with a monitor is over.
    pub const fn session_with_monitor_ended(&mut self) {
        self.known.is_lost();
    }

    /// Something has come of the monitor, before it is looked at.
    pub fn heard_of_monitor(&mut self, now: Instant) {
        if !self.known.heard(now) {
            self.ask_for_newest(now);
        }
    }

    /// Whether the cluster keeps the client out, or has done so: every operation ends with EBLOCKLISTED.
    #[must_use]
    pub const fn is_fenced(&self) -> bool {
        self.is_fenced
    }

    /// The map is that of another epoch: looks for the client in it.
    pub(super) fn look_at_blocklist(&mut self, now: Instant) {
        let map = &self.routes.map;
        let (epoch, modified) = (map.epoch(), map.modified());
        let before = std::mem::replace(&mut self.looked_at, epoch);
        let has_gap = before > 0 && epoch > before.saturating_add(1);
        let missed = modified.duration().saturating_sub(self.known.until());
        self.known.uses(now, epoch, modified);
        if has_gap && missed >= FORGOTTEN {
            return self.fence(now);
        }
        self.fence_if_listed(now);
    }

    fn fence_if_listed(&mut self, now: Instant) {
        if self.own.is_some_and(|own| self.routes.map.blocklisted(&own).is_some()) {
            self.fence(now);
        }
    }

    /// Ends all that waits, and what is on its way.
    fn fence(&mut self, now: Instant) {
        if std::mem::replace(&mut self.is_fenced, true) {
            return;
        }
        self.before_starting(now, |it| {
            it.lose_watches(now, EBLOCKLISTED);
            let tids: Vec<_> = it.ops.keys().copied().collect();
            for tid in tids {
                it.refuse(now, tid);
            }
            // What a stream has not taken yet goes with it.
            let osds: Vec<_> = it.sessions.keys().copied().collect();
            for osd in osds {
                it.end_session(now, osd);
            }
        });
    }

    /// Ends an operation as an OSD does that knows that the client is kept out.
    pub(super) fn refuse(&mut self, now: Instant, tid: u64) {
        if let Some(op) = self.ops.get(&tid) {
            let error = self.refusal(&op.request, EBLOCKLISTED);
            self.fail(now, tid, error);
        }
    }
}
