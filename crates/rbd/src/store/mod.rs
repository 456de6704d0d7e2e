//! What images need of a store of objects.
//!
//! A store has pools, a pool has namespaces, and those have objects: bytes, sorted keys ("omap"), attributes, and clones
//! of the bytes for snapshots. That is RADOS; a directory does the same for those who have no cluster.
//!
//! The methods give futures. A cluster's answer comes over a socket on the thread's own runtime, a directory's from the
//! page cache or, if it has to wait for a disk, from a thread that may: to its caller both are one thing to poll, which it
//! can keep wherever it keeps its request, without a box or a queue of completions. The trait knows no runtime. It is
//! used through generics, not objects: whoever opens a store knows which it is.

mod op;
pub mod rados;
mod watch;

pub use op::{Answer, Guard, Mutation, Op, Query, Request};
pub use watch::{StoreWatch, WatchEvent};

pub use blockyard_rados::encoding::{NOSNAP, ObjectName};
pub use blockyard_rados::osd::{
    Clone as ObjectClone, Extents, NotifyAnswers, SnapContext, Snapshots, Stat, ValuePage, Watcher,
};

pub use crate::class::Caller;
use crate::error::Result;
use bytes::Bytes;
use std::future::Future;
use std::time::Duration;

/// Most bytes of an object: RADOS' default of `osd_max_object_size`, and more than an image of order 25 has in one.
pub const MAX_OBJECT_BYTES: u64 = 128 << 20;

/// A namespace of a pool.
///
/// Operations on one object are done one after the other, each with all of its parts or with none. Those that are under
/// way at once are done in any order. What was answered is seen by everybody who asks after that.
pub trait ObjectStore: Clone + Send + Sync + 'static {
    /// A watch of the store's.
    type Watch: StoreWatch;

    /// The pool's number.
    fn pool(&self) -> i64;

    /// The namespace; empty for the default one.
    fn namespace(&self) -> &str;

    /// Another pool or namespace of the same store.
    ///
    /// # Errors
    /// There is no such pool: ENOENT.
    fn in_pool(&self, pool: i64, namespace: &str) -> impl Future<Output = Result<Self>> + Send;

    /// All pools of the store that images may be in.
    ///
    /// # Errors
    /// Those of the store.
    fn pools(&self) -> impl Future<Output = Result<Vec<i64>>> + Send;

    /// Who uses the store, as its locks and watches name it.
    fn caller(&self) -> Caller;

    /// Keeps a client out that somebody else is and that is taken for dead: when this is done, nothing of what it has sent, or
    /// sends, is done any more. Only then is a lock of its taken from it.
    ///
    /// # Errors
    /// EBUSY if it is known to live, and cannot be kept out; those of the store.
    fn fence(&self, client: &Caller) -> impl Future<Output = Result<()>> + Send;

    /// A number that nobody has been given, for the id of an image.
    ///
    /// # Errors
    /// The system has no random bytes to give.
    fn unique(&self) -> Result<u64>;

    /// Does something to an object: one answer to each operation of the request.
    ///
    /// # Errors
    /// The one of the first operation that failed; none of them is done then. ENOENT if something is to be read of an
    /// object that is not there.
    fn operate(
        &self,
        object: &ObjectName,
        request: Request,
    ) -> impl Future<Output = Result<Vec<Answer>>> + Send;

    /// Makes what was answered before survive a power cut.
    ///
    /// # Errors
    /// It may not survive. The next flush covers it again.
    fn flush(&self) -> impl Future<Output = Result<()>> + Send;

    /// At most `max` objects, in the store's order, from a place that an earlier call gave; and the next place, if there are
    /// more.
    ///
    /// # Errors
    /// The store cannot be read, or the place is of another kind of store.
    fn list(
        &self,
        from: Option<&ListPlace>,
        max: usize,
    ) -> impl Future<Output = Result<(Vec<ObjectName>, Option<ListPlace>)>> + Send;

    /// A number for a new snapshot of objects of the pool ("self-managed").
    ///
    /// # Errors
    /// The store cannot be written.
    fn create_snapshot(&self) -> impl Future<Output = Result<u64>> + Send;

    /// Gives a snapshot's number back, and what is kept only for it.
    ///
    /// # Errors
    /// The store cannot be written.
    fn remove_snapshot(&self, id: u64) -> impl Future<Output = Result<()>> + Send;

    /// Watches an object, which has to be there.
    ///
    /// # Errors
    /// As operations.
    fn watch(&self, object: &ObjectName) -> impl Future<Output = Result<Self::Watch>> + Send;

    /// Tells all who watch an object, and waits for their answers for so long.
    ///
    /// # Errors
    /// As operations. That somebody did not answer is none: it is in the answers.
    fn notify(
        &self,
        object: &ObjectName,
        payload: Bytes,
        limit: Duration,
    ) -> impl Future<Output = Result<NotifyAnswers>> + Send;
}

/// A place in a list of objects, in the store's own form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListPlace(pub Bytes);
