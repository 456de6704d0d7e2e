//! What an image says of itself, for those who look at it.

use super::{Image, ask, tell};
use crate::class::Caller;
use crate::error::{Error, Result};
use crate::format::lock::{BreakOp, GetInfoOp, LockInfo, LockOp, LockType, LockerId};
use crate::format::{ChildSpec, ImageFlags, OpFeatures, Parent, Snapshot, names};
use crate::store::{Answer, NOSNAP, ObjectName, ObjectStore, Op, Query, Request, Watcher};
use blockyard_rados::encoding::{Reader, Utime, encoded};
use rustix::io::Errno;

/// Times of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// When it was made.
    pub created: Utime,
    /// When it was last read, as far as somebody noted that.
    pub accessed: Utime,
    /// When it was last written, as far as somebody noted that.
    pub modified: Utime,
}

/// A parent, by names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentNames {
    /// The pool's number.
    pub pool: i64,
    /// The namespace in it.
    pub namespace: String,
    /// The image, and its id.
    pub image: String,
    /// Its id.
    pub id: String,
    /// The snapshot.
    pub snapshot: String,
    /// Bytes that are seen of it.
    pub overlap: u64,
    /// The image is in the trash.
    pub is_in_trash: bool,
}

async fn number<S: ObjectStore>(store: &S, object: &ObjectName, what: &'static str) -> Result<u64> {
    let answer = ask(store, object, what, |_| {}).await?;
    Ok(Reader::new("reading a number of an image", &answer).u64()?)
}

/// The name of an image by its id; the one in the trash, if it is there.
///
/// # Errors
/// ENOENT if there is none.
pub async fn name_of<S: ObjectStore>(store: &S, id: &str) -> Result<(String, bool)> {
    let directory = names::DIRECTORY.into();
    let named = ask(store, &directory, "dir_get_name", |w| w.string(id)).await;
    match named {
        Err(error) if error.is_not_found() => {
            let entry = super::trash::entry(store, id).await?;
            Ok((entry.name, true))
        }
        named => Ok((Reader::new("reading the name of an image", &named?).string()?, false)),
    }
}

impl<S: ObjectStore> Image<S> {
    /// What the names of its objects start with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.header.prefix
    }

    /// What is wrong with it.
    #[must_use]
    pub const fn flags(&self) -> ImageFlags {
        self.header.flags
    }

    /// The snapshots that somebody has made, the oldest first.
    pub fn user_snapshots(&self) -> impl Iterator<Item = &Snapshot> {
        self.header.user_snapshots()
    }

    /// All of its snapshots, also those of mirrors and groups and in the trash, the oldest first.
    #[must_use]
    pub fn snapshot_records(&self) -> &[Snapshot] {
        &self.header.snapshots
    }

    /// The snapshot that somebody has made under a name.
    ///
    /// # Errors
    /// ENOENT if there is none.
    pub fn snapshot_record(&self, name: &str) -> Result<&Snapshot> {
        let place = || Error::from(Errno::NOENT).at(format_args!("snapshot {name:?}"));
        self.header.snapshot(name).ok_or_else(place)
    }

    /// The snapshot that it was opened at.
    #[must_use]
    pub fn opened_snapshot(&self) -> Option<&Snapshot> {
        self.header.snapshots.iter().find(|snapshot| snapshot.id == self.snap)
    }

    /// The parent, by numbers.
    #[must_use]
    pub const fn parent_record(&self) -> Option<&Parent> {
        self.header.parent.as_ref()
    }

    /// Features that operations have given it.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn op_features(&self) -> Result<OpFeatures> {
        let found = number(&self.store, &self.header_object(), "op_features_get").await?;
        Ok(OpFeatures::from_bits_retain(found))
    }

    /// Most snapshots that it may have; `None` for as many as one likes.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn snapshot_limit(&self) -> Result<Option<u64>> {
        let limit = number(&self.store, &self.header_object(), "snapshot_get_limit").await?;
        Ok(Some(limit).filter(|limit| *limit != u64::MAX))
    }

    /// Its times.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn times(&self) -> Result<Times> {
        let header = self.header_object();
        let mut times = [Utime::default(); 3];
        let methods = ["get_create_timestamp", "get_access_timestamp", "get_modify_timestamp"];
        for (time, what) in times.iter_mut().zip(methods) {
            let answer = ask(&self.store, &header, what, |_| {}).await?;
            *time = Reader::new("reading a time of an image", &answer).get()?;
        }
        let [created, accessed, modified] = times;
        Ok(Times { created, accessed, modified })
    }

    /// The names of its parent, if it has one that is seen.
    ///
    /// # Errors
    /// The parent is gone; those of the store.
    pub async fn parent_names(&self) -> Result<Option<ParentNames>> {
        let Some(parent) = &self.parent else { return Ok(None) };
        let (image, is_in_trash) = name_of(&parent.store, &parent.id).await?;
        let snapshot = parent.opened_snapshot().map(|snapshot| snapshot.name.clone());
        Ok(Some(ParentNames {
            pool: parent.store.pool(),
            namespace: parent.store.namespace().to_owned(),
            image,
            id: parent.id.clone(),
            snapshot: snapshot.unwrap_or_default(),
            overlap: self.overlap(),
            is_in_trash,
        }))
    }

    /// The clones of a snapshot: those that its header knows (version 2), and those that their pools know (version 1).
    ///
    /// # Errors
    /// Those of the store.
    pub async fn children(&self, snapshot: u64) -> Result<Vec<ChildSpec>> {
        let header = self.header_object();
        let mut children = self.old_children(snapshot).await?;
        match ask(&self.store, &header, "children_list", |w| w.u64(snapshot)).await {
            Err(error) if error.is_not_found() => {}
            listed => {
                let listed = listed?;
                let mut reader = Reader::new("reading the clones of a snapshot", &listed);
                children.extend(reader.vec(6, Reader::get)?);
            }
        }
        Ok(children)
    }

    /// Who watches it.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn watchers(&self) -> Result<Vec<Watcher>> {
        let request = Request::read(vec![Query::Watchers.into()]);
        let answers = self.store.operate(&self.header_object(), request).await?;
        match answers.into_iter().next() {
            Some(Answer::Watchers(watchers)) => Ok(watchers),
            _ => Ok(Vec::new()),
        }
    }

    /// Who has its lock, the one that clients take by themselves or by hand.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn lock_info(&self) -> Result<LockInfo> {
        let op = GetInfoOp { name: names::LOCK.into() };
        let op = Op::exec("lock", "get_info", encoded(&op));
        let answers = self.store.operate(&self.header_object(), Request::read(vec![op])).await?;
        let answer = answers.into_iter().next().map(Answer::into_data).unwrap_or_default();
        Ok(Reader::new("reading a lock", &answer).get()?)
    }

    /// Takes its lock by hand: alone, or with all who give the same tag.
    ///
    /// # Errors
    /// EBUSY if others have it; EEXIST if it is taken already.
    pub async fn add_lock(&self, cookie: &str, shared_tag: Option<&str>) -> Result<()> {
        let kind = if shared_tag.is_some() { LockType::SHARED } else { LockType::EXCLUSIVE };
        let op = LockOp {
            name: names::LOCK.into(),
            kind,
            cookie: cookie.into(),
            tag: shared_tag.unwrap_or_default().into(),
            description: String::new(),
            duration: Utime::default(),
            flags: 0,
        };
        let op = Op::exec("lock", "lock", encoded(&op));
        tell(&self.store, &self.header_object(), vec![Op::assert_exists(), op]).await
    }

    /// Takes its lock from one who has it. He is kept out first, as he may live: what he has sent, or sends, is not written
    /// beside the next one (ceph: `src/librbd/internal.cc`, `break_lock`).
    ///
    /// # Errors
    /// ENOENT if that one does not have it; EBUSY if he lives, and cannot be kept out; those of the store.
    pub async fn break_lock(&self, locker: &LockerId) -> Result<()> {
        let lock = self.lock_info().await?;
        let found = lock.lockers.get(locker).ok_or(Errno::NOENT)?;
        if locker.client != self.store.caller().client {
            let owner = Caller { client: locker.client, addr: found.addr };
            self.store.fence(&owner).await?;
        }
        let (locker, cookie) = (locker.client, locker.cookie.clone());
        let op = BreakOp { name: names::LOCK.into(), locker, cookie };
        let op = Op::exec("lock", "break_lock", encoded(&op));
        tell(&self.store, &self.header_object(), vec![op]).await
    }

    /// Whether it is a snapshot.
    #[must_use]
    pub const fn is_snapshot(&self) -> bool {
        self.snap != NOSNAP
    }
}
