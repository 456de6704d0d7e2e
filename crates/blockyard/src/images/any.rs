//! Either of the stores, so that commands and disks need not know which it is.

use std::time::Duration;

use blockyard_rados::maps::OsdMap;
use blockyard_rbd::Result;
use blockyard_rbd::dir::{DirStore, DirWatch};
use blockyard_rbd::store::rados::{RadosStore, RadosWatch};
use blockyard_rbd::store::{
    Answer, Caller, ListPlace, NotifyAnswers, ObjectName, ObjectStore, Request, StoreWatch,
    WatchEvent,
};
use bytes::Bytes;

/// A store of images.
#[derive(Clone)]
pub(crate) enum Store {
    /// In a directory.
    Dir(DirStore),
    /// A pool of a cluster.
    Rados(Box<RadosStore>),
}

impl Store {
    /// The one in a directory, if it is that.
    pub(crate) const fn directory(&self) -> Option<&DirStore> {
        match self {
            Self::Dir(store) => Some(store),
            Self::Rados(_) => None,
        }
    }

    /// The identity of its cluster; nothing if it is in a directory.
    pub(crate) fn cluster_id(&self) -> String {
        match self {
            Self::Dir(_) => String::new(),
            Self::Rados(store) => store.cluster().map(|map| map.fsid().to_string()),
        }
    }

    /// The name of a pool; none of a directory, which has one without a name.
    pub(crate) fn pool_name(&self, pool: i64) -> String {
        match self {
            Self::Dir(_) => String::new(),
            Self::Rados(store) => {
                let name = |map: &OsdMap| map.pool_name(pool).map(str::to_owned);
                store.cluster().map(name).unwrap_or_else(|| pool.to_string())
            }
        }
    }
}

/// A watch of a store.
pub(crate) enum AnyWatch {
    Dir(DirWatch),
    Rados(Box<RadosWatch>),
}

/// Does the same with either.
macro_rules! either {
    ($this:expr, $store:ident => $done:expr) => {
        match $this {
            Self::Dir($store) => $done,
            Self::Rados($store) => $done,
        }
    };
}

impl ObjectStore for Store {
    type Watch = AnyWatch;

    fn pool(&self) -> i64 {
        either!(self, store => store.pool())
    }

    fn namespace(&self) -> &str {
        either!(self, store => store.namespace())
    }

    async fn in_pool(&self, pool: i64, namespace: &str) -> Result<Self> {
        Ok(match self {
            Self::Dir(store) => Self::Dir(store.in_pool(pool, namespace).await?),
            Self::Rados(store) => Self::Rados(Box::new(store.in_pool(pool, namespace).await?)),
        })
    }

    async fn pools(&self) -> Result<Vec<i64>> {
        either!(self, store => store.pools().await)
    }

    fn caller(&self) -> Caller {
        either!(self, store => store.caller())
    }

    async fn fence(&self, client: &Caller) -> Result<()> {
        either!(self, store => store.fence(client).await)
    }

    fn unique(&self) -> Result<u64> {
        either!(self, store => store.unique())
    }

    async fn operate(&self, object: &ObjectName, request: Request) -> Result<Vec<Answer>> {
        either!(self, store => store.operate(object, request).await)
    }

    async fn flush(&self) -> Result<()> {
        either!(self, store => store.flush().await)
    }

    async fn list(
        &self,
        from: Option<&ListPlace>,
        max: usize,
    ) -> Result<(Vec<ObjectName>, Option<ListPlace>)> {
        either!(self, store => store.list(from, max).await)
    }

    async fn create_snapshot(&self) -> Result<u64> {
        either!(self, store => store.create_snapshot().await)
    }

    async fn remove_snapshot(&self, id: u64) -> Result<()> {
        either!(self, store => store.remove_snapshot(id).await)
    }

    async fn watch(&self, object: &ObjectName) -> Result<AnyWatch> {
        Ok(match self {
            Self::Dir(store) => AnyWatch::Dir(store.watch(object).await?),
            Self::Rados(store) => AnyWatch::Rados(Box::new(store.watch(object).await?)),
        })
    }

    async fn notify(
        &self,
        object: &ObjectName,
        payload: Bytes,
        limit: Duration,
    ) -> Result<NotifyAnswers> {
        either!(self, store => store.notify(object, payload, limit).await)
    }
}

impl StoreWatch for AnyWatch {
    fn cookie(&self) -> u64 {
        either!(self, watch => watch.cookie())
    }

    async fn next(&mut self) -> Option<WatchEvent> {
        either!(self, watch => watch.next().await)
    }

    async fn acknowledge(&mut self, notify_id: u64, payload: Bytes) -> Result<()> {
        either!(self, watch => watch.acknowledge(notify_id, payload).await)
    }

    async fn close(self) -> Result<()> {
        either!(self, watch => watch.close().await)
    }
}
