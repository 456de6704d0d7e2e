//! A pool, and how its objects are to be read and written.

use super::cluster::{Cluster, Placement};
use super::engine::Engine;
use crate::encoding::{NOSNAP, ObjectLocator, ObjectName, SNAPDIR, Utime};
use crate::error::{Error, Result};
use crate::objecter::ShareId;
use crate::osd::{Op, OpCode, OpFlags, OpResult, OsdRequest, Reply, SnapContext};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Who answers reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadPolicy {
    /// The primary OSD.
    #[default]
    Primary,
    /// Any OSD of the group: the load is spread.
    Balanced,
    /// An OSD near [`Config::location`](super::Config::location), if there is one.
    Localized,
}

/// A pool with a namespace, a snapshot to read, the snapshots that writes keep, and the like: an "I/O context". Clones
/// are cheap, and what `with_...` and the like give is another context.
#[derive(Clone, Debug)]
pub struct Pool {
    pub(super) cluster: Cluster,
    pub(super) locator: ObjectLocator,
    snap: u64,
    context: SnapContext,
    reads: ReadPolicy,
    pub(super) flags: OpFlags,
    timeout: Option<Duration>,
    share: Arc<Share>,
}

/// A pool's part of what may be in flight; its clones, and what `with_...` makes of it, have it together.
struct Share {
    engine: Arc<Engine>,
    id: ShareId,
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.id)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.engine.state.lock().client.objecter_mut().close_share(self.id);
    }
}

impl Pool {
    pub(super) fn new(cluster: Cluster, id: i64) -> Self {
        let engine = Arc::clone(&cluster.engine);
        let share = engine.state.lock().client.objecter_mut().open_share();
        Self {
            timeout: cluster.op_timeout,
            share: Arc::new(Share { engine, id: share }),
            cluster,
            locator: ObjectLocator::new(id, ""),
            snap: NOSNAP,
            context: SnapContext::default(),
            reads: ReadPolicy::default(),
            flags: OpFlags::empty(),
        }
    }

    /// The pool's number.
    #[must_use]
    pub const fn id(&self) -> i64 {
        self.locator.pool
    }

    /// The cluster.
    #[must_use]
    pub const fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Objects of a namespace; "" is the default one.
    #[must_use]
    pub fn with_namespace(mut self, namespace: impl Into<ObjectName>) -> Self {
        self.locator.namespace = namespace.into();
        self
    }

    /// Objects that are placed by a key instead of their names, so that all with the same key are in one group. They are
    /// found only with it. "" for none.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<ObjectName>) -> Self {
        self.locator.key = key.into();
        self
    }

    /// Reads go to a snapshot.
    #[must_use]
    pub fn at_snapshot(mut self, snapshot: u64) -> Self {
        self.snap = snapshot;
        self
    }

    /// Reads go to objects as they are now.
    #[must_use]
    pub fn at_head(self) -> Self {
        self.at_snapshot(NOSNAP)
    }

    /// Writes keep these snapshots.
    #[must_use]
    pub fn with_snapshots(mut self, context: SnapContext) -> Self {
        self.context = context;
        self
    }

    /// Who answers reads.
    #[must_use]
    pub fn with_reads(mut self, reads: ReadPolicy) -> Self {
        self.reads = reads;
        self
    }

    /// How long an operation may take; none for ever.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    /// Further flags of each request, and of watches and notifications, such as [`OpFlags::FULL_TRY`].
    #[must_use]
    pub fn with_flags(mut self, flags: OpFlags) -> Self {
        self.flags = flags;
        self
    }

    /// Where an object is, by the map in use.
    ///
    /// # Errors
    /// The pool is gone.
    pub fn locate(&self, object: &(impl AsRef<[u8]> + Sync + ?Sized)) -> Result<Placement> {
        self.cluster.locate(&self.locator, object)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.timeout.map(|timeout| Instant::now() + timeout)
    }

    /// Does operations on an object together, of which at least one writes: all of them are done, or none.
    ///
    /// # Errors
    /// One of them fails: the error is the OSD's. There is no such pool; or they are not done in time.
    pub async fn operate(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        ops: Vec<Op>,
    ) -> Result<Reply> {
        let mut request = OsdRequest::new(self.locator.clone(), object, ops);
        request.flags |= self.flags | OpFlags::WRITE;
        request.context = self.context.clone();
        request.mtime =
            SystemTime::now().duration_since(UNIX_EPOCH).map(Utime::from).unwrap_or_default();
        self.submit(request).await
    }

    /// Does operations on an object together, none of which writes.
    ///
    /// # Errors
    /// As [`operate`](Self::operate).
    pub async fn query(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        ops: Vec<Op>,
    ) -> Result<Reply> {
        let mut request = OsdRequest::new(self.locator.clone(), object, ops);
        let clones = request.ops.iter().any(|op| op.code == OpCode::LIST_SNAPS);
        request.snap = if clones { SNAPDIR } else { self.snap };
        request.flags |= self.flags
            | match self.reads {
                ReadPolicy::Primary => OpFlags::empty(),
                ReadPolicy::Balanced => OpFlags::BALANCE_READS,
                ReadPolicy::Localized => OpFlags::LOCALIZE_READS,
            };
        self.submit(request).await
    }

    /// Where the pool's objects are looked for: pool, namespace and key.
    #[must_use]
    pub const fn locator(&self) -> &ObjectLocator {
        &self.locator
    }

    /// Submits a request as it is, when it is its turn: of the pool's settings only the time that it may take, and whose share
    /// it is, count.
    ///
    /// # Errors
    /// As [`operate`](Self::operate).
    pub async fn submit(&self, request: OsdRequest) -> Result<Reply> {
        let (deadline, share) = (self.deadline(), self.share());
        let engine = &self.cluster.engine;
        let done = engine
            .perform(|client, now| {
                client.objecter_mut().submit_shared(now, share, request, deadline)
            })
            .await?;
        let reply = done.result?;
        if reply.result < 0 {
            let state = engine.state.lock();
            return Err(state.client.objecter().refusal(&done.request, reply.result));
        }
        Ok(reply)
    }

    pub(super) fn share(&self) -> ShareId {
        self.share.id
    }
}

/// The result of the first operation.
pub(super) fn first(reply: Reply) -> Result<OpResult> {
    let first = reply.ops.into_iter().next();
    first.ok_or_else(|| {
        Error::violation("reading an OSD's reply", "a reply has an answer to each operation", 0)
    })
}
