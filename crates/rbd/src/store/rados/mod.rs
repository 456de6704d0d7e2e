//! A namespace of a pool of a Ceph cluster as a store of objects.
//!
//! Every operation is one request to the OSD that has the object, and is on disk when it is answered: a flush has nothing
//! left to do.

mod client;
mod convert;

pub use client::Client;

use crate::class::Caller;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{
    Answer, ListPlace, NotifyAnswers, ObjectName, ObjectStore, Op, Query, Request, StoreWatch,
    WatchEvent,
};
use blockyard_rados::encoding::{EntityName, EntityType, Hobject, Reader, SNAPDIR, Utime, encoded};
use blockyard_rados::net::{Cluster, Pool, ReadPolicy, Told, Watch};
use blockyard_rados::objecter::Notification;
use blockyard_rados::osd::{OpFlags, OsdRequest, begin_of_pool};
use bytes::Bytes;
use rustix::io::Errno;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a client is kept out whose lock was taken from it (ceph: option `rbd_blocklist_expire_seconds`, whose 0 stands for
/// the monitors' `mon_osd_blocklist_default_expire`).
const FENCED: Duration = Duration::from_secs(3600);

/// A namespace of a pool.
#[derive(Clone, Debug)]
pub struct RadosStore {
    pool: Pool,
    namespace: Arc<str>,
    reads: ReadPolicy,
    /// Keeps the client that it is of.
    client: Option<Arc<Client>>,
}

impl RadosStore {
    /// The default namespace of a pool.
    #[must_use]
    pub fn new(pool: Pool) -> Self {
        let (namespace, reads) = (Arc::from(""), ReadPolicy::default());
        Self { pool: pool.with_namespace(""), namespace, reads, client: None }
    }

    /// A namespace of a pool, over a client that is shared.
    ///
    /// # Errors
    /// There is no such pool, or no monitor answers in time.
    pub async fn open(client: &Arc<Client>, pool: &str, namespace: &str) -> Result<Self> {
        let store = Self::new(client.cluster().pool(pool).await?).with_namespace(namespace);
        Ok(Self { client: Some(Arc::clone(client)), ..store })
    }

    fn with_namespace(self, namespace: &str) -> Self {
        let pool = self.pool.with_namespace(namespace);
        Self { pool, namespace: Arc::from(namespace), ..self }
    }

    /// Who answers reads; watches, locks and headers are always the primary's affair.
    #[must_use]
    pub fn with_reads(self, reads: ReadPolicy) -> Self {
        Self { reads, ..self }
    }

    /// The cluster.
    #[must_use]
    pub const fn cluster(&self) -> &Cluster {
        self.pool.cluster()
    }

    fn request(&self, object: &ObjectName, request: Request) -> Result<OsdRequest> {
        let (snap, context, ops) = match request {
            Request::Read { snap, ops } => (Some(snap), None, ops),
            Request::Write { context, ops } => (None, Some(context), ops),
        };
        let of_clones = ops.iter().any(|op| matches!(op, Op::Query(Query::Snapshots)));
        let reads_bytes =
            |op: &Op| matches!(op, Op::Query(Query::Read { .. } | Query::SparseRead { .. }));
        let from_replica = ops.iter().all(reads_bytes);
        let mut flags = convert::flags(&ops);
        let ops = ops.into_iter().map(convert::op).collect::<Result<_>>()?;
        let mut request = OsdRequest::new(self.pool.locator().clone(), object, ops);
        if let Some(context) = context {
            flags |= OpFlags::WRITE;
            request.context = context;
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            request.mtime = now.map(Utime::from).unwrap_or_default();
        }
        if let Some(snap) = snap {
            request.snap = if of_clones { SNAPDIR } else { snap };
            flags = match self.reads {
                ReadPolicy::Balanced if from_replica => OpFlags::BALANCE_READS,
                ReadPolicy::Localized if from_replica => OpFlags::LOCALIZE_READS,
                _ => OpFlags::empty(),
            };
        }
        request.flags |= flags;
        Ok(request)
    }

    /// Looks whether the cluster has said that the client is kept out (EBLOCKLISTED has the number of ESHUTDOWN).
    fn note<T>(&self, done: Result<T>) -> Result<T> {
        if let (Err(error), Some(client)) = (&done, &self.client)
            && error.errno() == Some(Errno::SHUTDOWN)
        {
            client.note_fenced();
        }
        done
    }

    /// The pool with the flags of watches and notifications, which free a lock, also while the cluster is full.
    fn watching(&self) -> Pool {
        self.pool.clone().with_flags(OpFlags::FULL_TRY)
    }
}

impl ObjectStore for RadosStore {
    type Watch = RadosWatch;

    fn pool(&self) -> i64 {
        self.pool.id()
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    async fn in_pool(&self, pool: i64, namespace: &str) -> Result<Self> {
        let cluster = self.cluster();
        let is_there = || cluster.map(|map| map.pools().contains_key(&pool));
        if !is_there() {
            cluster.newest_map().await?;
            if !is_there() {
                return Err(Error::answer(Errno::NOENT).at(format_args!("pool {pool}")));
            }
        }
        let other =
            if pool == self.pool.id() { self.pool.clone() } else { cluster.pool_by_id(pool) };
        Ok(Self { pool: other, ..self.clone() }.with_namespace(namespace))
    }

    async fn pools(&self) -> Result<Vec<i64>> {
        let cluster = self.cluster();
        cluster.newest_map().await?;
        // What goes to a cache goes to its pool.
        Ok(cluster.map(|map| {
            let no_caches = map.pools().iter().filter(|(_, pool)| pool.tier_of < 0);
            no_caches.map(|(&id, _)| id).collect()
        }))
    }

    fn caller(&self) -> Caller {
        let cluster = self.cluster();
        let number = i64::try_from(cluster.global_id()).unwrap_or_default();
        let client = EntityName { kind: EntityType::CLIENT, number };
        Caller { client, addr: cluster.address().unwrap_or_default() }
    }

    async fn fence(&self, client: &Caller) -> Result<()> {
        if client.client == self.caller().client {
            return Err(Error::answer(Errno::BUSY).at("a client does not keep itself out"));
        }
        self.cluster().blocklist(&client.addr, FENCED).await?;
        Ok(())
    }

    fn unique(&self) -> Result<u64> {
        let mut bytes = [0; 8];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        Ok(u64::from_le_bytes(bytes))
    }

    async fn operate(&self, object: &ObjectName, request: Request) -> Result<Vec<Answer>> {
        let request = self.request(object, request)?;
        let reply = self.note(self.pool.submit(request).await.map_err(convert::error))?;
        reply.ops.into_iter().map(convert::answer).collect()
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn list(
        &self,
        from: Option<&ListPlace>,
        max: usize,
    ) -> Result<(Vec<ObjectName>, Option<ListPlace>)> {
        let mut from: Hobject = match from {
            Some(place) => Reader::new("reading a place in a list of objects", &place.0).get()?,
            None => begin_of_pool(),
        };
        // Groups that have none are passed over, each of which is behind the one before.
        while !from.max {
            let page = self.pool.list_page(&from, max as u64).await?;
            from = page.next;
            if !page.objects.is_empty() {
                let names = page.objects.into_iter().map(|listed| listed.name).collect();
                let next = (!from.max).then(|| ListPlace(encoded(&from).into()));
                return Ok((names, next));
            }
        }
        Ok((Vec::new(), None))
    }

    async fn create_snapshot(&self) -> Result<u64> {
        Ok(self.cluster().create_snapshot_id(self.pool.id()).await?)
    }

    async fn remove_snapshot(&self, id: u64) -> Result<()> {
        Ok(self.cluster().delete_snapshot_id(self.pool.id(), id).await?)
    }

    async fn watch(&self, object: &ObjectName) -> Result<RadosWatch> {
        Ok(RadosWatch(self.note(self.watching().watch(object, None).await.map_err(Into::into))?))
    }

    async fn notify(
        &self,
        object: &ObjectName,
        payload: Bytes,
        limit: Duration,
    ) -> Result<NotifyAnswers> {
        self.note(self.watching().notify(object, &payload, limit).await.map_err(Into::into))
    }
}

/// A watch on an object of a cluster.
#[derive(Debug)]
pub struct RadosWatch(Watch);

impl StoreWatch for RadosWatch {
    fn cookie(&self) -> u64 {
        self.0.cookie()
    }

    async fn next(&mut self) -> Option<WatchEvent> {
        Some(match self.0.next().await? {
            Told::Notified(Notification { notify_id, notifier, payload, .. }) => {
                WatchEvent::Notified { notify_id, notifier, payload }
            }
            Told::Missed => WatchEvent::Missed,
            Told::Lost(error) => WatchEvent::Lost(ErrorKind::Rados(error).into()),
        })
    }

    async fn acknowledge(&mut self, notify_id: u64, payload: Bytes) -> Result<()> {
        let watch = self.0.cookie();
        let told = Notification { watch, notify_id, notifier: 0, payload: Bytes::new() };
        self.0.acknowledge(&told, &payload);
        Ok(())
    }

    async fn close(self) -> Result<()> {
        Ok(self.0.close().await?)
    }
}
