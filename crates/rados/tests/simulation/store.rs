//! What the cluster holds: objects, which requests were done, watches. Any OSD that serves a group works on it, as if
//! replicas and recovery were perfect.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The client's number and the request's.
pub(crate) type ReqId = (usize, u64);
pub(crate) type ObjectName = (i64, String);

/// How long a watcher may be silent.
pub(crate) const WATCH_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Watcher {
    /// The connection it is on; none since a time.
    pub(crate) conn: Option<u64>,
    pub(crate) seen: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Object {
    /// The writes that were done, in order.
    pub(crate) log: Vec<u64>,
    /// By client and cookie.
    pub(crate) watchers: BTreeMap<(usize, u64), Watcher>,
}

/// A notification that waits for answers.
#[derive(Debug)]
pub(crate) struct Notify {
    pub(crate) object: ObjectName,
    pub(crate) conn: u64,
    pub(crate) cookie: u64,
    pub(crate) waiting: BTreeSet<(usize, u64)>,
    pub(crate) payload: Vec<u8>,
    /// What watchers answered.
    pub(crate) answers: Vec<((usize, u64), Vec<u8>)>,
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) objects: BTreeMap<ObjectName, Object>,
    pub(crate) done: BTreeMap<ReqId, i32>,
    pub(crate) notifies: BTreeMap<u64, Notify>,
    pub(crate) last_notify: u64,
    /// All notifications that there were of each object.
    pub(crate) told: BTreeMap<ObjectName, Vec<u64>>,
}

impl Store {
    pub(crate) fn object(&mut self, name: &ObjectName) -> &mut Object {
        self.objects.entry(name.clone()).or_default()
    }

    /// A write, unless it was done before.
    pub(crate) fn write(&mut self, reqid: ReqId, name: &ObjectName, id: u64) -> i32 {
        if let Some(&result) = self.done.get(&reqid) {
            return result;
        }
        self.object(name).log.push(id);
        self.done.insert(reqid, 0);
        0
    }

    /// Forgets watchers that were away for too long.
    pub(crate) fn expire_watchers(&mut self, now: Duration) {
        for object in self.objects.values_mut() {
            object.watchers.retain(|_, watcher| now < watcher.seen + WATCH_TIMEOUT);
        }
    }

    /// A connection is gone.
    pub(crate) fn disconnect(&mut self, now: Duration, gone: impl Fn(&ObjectName, u64) -> bool) {
        for (name, object) in &mut self.objects {
            for watcher in object.watchers.values_mut() {
                if watcher.conn.is_some_and(|conn| gone(name, conn)) {
                    (watcher.conn, watcher.seen) = (None, now);
                }
            }
        }
        self.notifies.retain(|_, notify| !gone(&notify.object, notify.conn));
    }
}
