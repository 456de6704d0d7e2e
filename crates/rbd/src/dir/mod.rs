//! A store of objects in a directory: what a machine without a cluster has.
//!
//! Objects' bytes are files with holes; all else is in one database, redb: `docs/object-store.md` draws both. Several
//! processes may have a store open.
//!
//! - A request of one write to bytes that no snapshot needs goes to the file, in place, and is durable after a flush.
//! - Every other request is a transaction of the database. Bytes that it changes go to a new file, which is made durable
//!   before the commit that puts it in the place of the old one: so what is bytes and what is not changes together, and
//!   an object's clone is its old file. What a transaction did survives a power cut when it is answered.

mod disk;
mod errors;
mod files;
mod overlap;
mod owner;
mod peers;
mod record;
mod store;
mod subject;
mod tables;
mod watch;

#[cfg(test)]
pub(crate) mod tests;

pub use disk::{Directory, Disk, DiskFile};
pub use owner::Owned;
pub use watch::DirWatch;

use crate::class::Caller;
use crate::error::{Error, Result};
use crate::store::{
    Answer, ListPlace, NotifyAnswers, ObjectName, ObjectStore, Op, Query, Request, Watcher,
};
use blockyard_rados::encoding::Fsid;
use bytes::Bytes;
use peers::{Peer, Peers};
use rustix::io::Errno;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use store::{Store, key};
use watch::Watches;

/// The number of the one pool that a store in a directory has.
pub const POOL: i64 = 1;

/// A namespace of a store in a directory.
pub struct DirStore<D: Disk = Directory> {
    store: Arc<Store<D>>,
    watches: Watches,
    /// The other processes, if there can be some.
    peers: Option<Arc<Peers>>,
    namespace: Arc<str>,
}

impl<D: Disk> Clone for DirStore<D> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            watches: self.watches.clone(),
            peers: self.peers.clone(),
            namespace: Arc::clone(&self.namespace),
        }
    }
}

impl DirStore {
    /// Opens the store in a directory; makes one in it if `create` and there is none.
    ///
    /// # Errors
    /// There is no directory, or no store; the store is damaged, or of a newer version.
    pub fn open(path: &Path, create: bool) -> Result<Self> {
        let at = |error: Error| error.at(format_args!("object store {}", path.display()));
        let is_there = path.join(store::DATABASE).try_exists();
        if !create && !is_there.map_err(Error::io("opening the store")).map_err(at)? {
            return Err(at(Error::bad("no object store here")));
        }
        Self::on(Directory::new(path)).map_err(at)
    }
}

impl<D: Disk> DirStore<D> {
    /// Opens the store on a disk, or makes one.
    ///
    /// # Errors
    /// As [`open`](DirStore::open).
    pub fn on(disk: D) -> Result<Self> {
        let store = Arc::new(Store::open(disk)?);
        let peers = store.name().map(|name| Peers::new(name.to_owned(), store.session()));
        Ok(Self { store, watches: Watches::default(), peers, namespace: Arc::from("") })
    }

    /// The store's identity, which no other has.
    #[must_use]
    pub fn id(&self) -> Fsid {
        self.store.id()
    }

    /// Does something to an object, and waits for the disk.
    ///
    /// # Errors
    /// See [`ObjectStore::operate`].
    pub fn operate_blocking(&self, object: &ObjectName, request: &Request) -> Result<Vec<Answer>> {
        let key = key(&self.namespace, object);
        if let [Op::Query(Query::Watchers)] = request.ops() {
            return Ok(vec![Answer::Watchers(self.watches.of(&key, &self.store.caller()))]);
        }
        let done = self.store.operate(&key, request);
        done.map_err(|error| error.at(format_args!("object {object:?}")))
    }

    /// Makes what was answered survive a power cut, and waits for that.
    ///
    /// # Errors
    /// See [`ObjectStore::flush`].
    pub fn flush_blocking(&self) -> Result<()> {
        self.store.flush()
    }

    /// Makes what processes have written that have died since the store was opened survive a power cut: flushes cover what
    /// this process has written, and what was there when it opened the store. To be called by whoever gets an image that
    /// somebody else has had, before it is used.
    ///
    /// # Errors
    /// It may not survive.
    pub fn take_over_blocking(&self) -> Result<()> {
        self.store.take_over()
    }

    /// Does something to an object, as somebody else.
    #[cfg(test)]
    pub(crate) fn operate_as(
        &self,
        caller: &Caller,
        object: &ObjectName,
        request: &Request,
    ) -> Result<Vec<Answer>> {
        *self.store.acting.lock() = Some(caller.clone());
        let done = self.operate_blocking(object, request);
        *self.store.acting.lock() = None;
        done
    }

    #[cfg(test)]
    pub(crate) fn create_snapshot_blocking(&self) -> Result<u64> {
        self.store.create_snapshot()
    }

    #[cfg(test)]
    pub(crate) fn remove_snapshot_blocking(&self, id: u64) -> Result<()> {
        self.store.remove_snapshot(id)
    }

    /// How many have it, those included that do something on threads that nobody waits for.
    #[cfg(test)]
    pub(crate) fn users(&self) -> usize {
        Arc::strong_count(&self.store)
    }

    /// The other processes that have the store open, or had it and were killed.
    async fn others(&self) -> Result<Vec<Peer>> {
        self.elsewhere(|store| store.store.others()).await
    }

    /// Who watches an object, in all processes.
    async fn watchers(&self, object: &ObjectName) -> Result<Vec<Watcher>> {
        let key = key(&self.namespace, object);
        let mut watchers = self.watches.of(&key, &self.store.caller());
        if self.peers.is_some() {
            watchers.extend(Peers::watchers(self.others().await?, &key).await);
        }
        Ok(watchers)
    }

    /// Calls something that waits for the disk on a thread that may.
    async fn elsewhere<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || call(&store)).await;
        done.map_err(|error| Error::damaged(format!("a thread of the store has died: {error}")))?
    }
}

impl<D: Disk> ObjectStore for DirStore<D> {
    type Watch = DirWatch;

    fn pool(&self) -> i64 {
        POOL
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn caller(&self) -> Caller {
        self.store.caller()
    }

    async fn pools(&self) -> Result<Vec<i64>> {
        Ok(vec![POOL])
    }

    async fn fence(&self, client: &Caller) -> Result<()> {
        let session = client.client.number;
        self.elsewhere(move |store| {
            if store.store.lives(session)? {
                return Err(Errno::BUSY.into());
            }
            // What it wrote before it died is flushed by whoever comes after it.
            store.take_over_blocking()
        })
        .await
    }

    fn unique(&self) -> Result<u64> {
        // So many bits that nobody draws the same.
        let mut bytes = [0; 8];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        Ok(u64::from_le_bytes(bytes))
    }

    async fn in_pool(&self, pool: i64, namespace: &str) -> Result<Self> {
        if pool != POOL {
            return Err(Error::answer(Errno::NOENT).at(format_args!("pool {pool}")));
        }
        Ok(Self { namespace: Arc::from(namespace), ..self.clone() })
    }

    async fn operate(&self, object: &ObjectName, request: Request) -> Result<Vec<Answer>> {
        if let [Op::Query(Query::Watchers)] = request.ops() {
            return Ok(vec![Answer::Watchers(self.watchers(object).await?)]);
        }
        let object = object.clone();
        self.elsewhere(move |store| store.operate_blocking(&object, &request)).await
    }

    async fn flush(&self) -> Result<()> {
        self.elsewhere(Self::flush_blocking).await
    }

    async fn list(
        &self,
        from: Option<&ListPlace>,
        max: usize,
    ) -> Result<(Vec<ObjectName>, Option<ListPlace>)> {
        let from = from.map(|place| place.0.clone());
        let list = move |store: &Self| store.store.list(&store.namespace, from.as_deref(), max);
        let (names, next) = self.elsewhere(list).await?;
        Ok((names, next.map(ListPlace)))
    }

    async fn create_snapshot(&self) -> Result<u64> {
        self.elsewhere(|store| store.store.create_snapshot()).await
    }

    async fn remove_snapshot(&self, id: u64) -> Result<()> {
        self.elsewhere(move |store| store.store.remove_snapshot(id)).await
    }

    async fn watch(&self, object: &ObjectName) -> Result<DirWatch> {
        self.operate(object, Request::read(vec![Op::assert_exists()])).await?;
        if let Some(peers) = &self.peers {
            peers.listen(&self.watches, &self.store.caller())?;
        }
        Ok(self.watches.add(key(&self.namespace, object)))
    }

    async fn notify(
        &self,
        object: &ObjectName,
        payload: Bytes,
        limit: Duration,
    ) -> Result<NotifyAnswers> {
        self.operate(object, Request::read(vec![Op::assert_exists()])).await?;
        let key = key(&self.namespace, object);
        let caller = self.store.caller();
        let me = u64::try_from(caller.client.number).unwrap_or_default();
        let here = self.watches.notify(&key, &payload, limit, &caller, me);
        let Some(peers) = &self.peers else { return Ok(here.await) };
        let others = self.others().await?;
        let there = peers.notify(others, &key, payload.clone(), limit);
        let (mut answers, there) = tokio::join!(here, there);
        answers.answered.extend(there.answered);
        answers.silent.extend(there.silent);
        Ok(answers)
    }
}
