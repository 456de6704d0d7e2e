//! Images on objects, over any store.
//!
//! What changes an image's header (`&mut self`: resize, snapshots, flatten) has it alone; reads and writes (`&self`) go on
//! beside each other. Nothing here takes the image's lock: whoever owns an image to write it sees to it that nobody else
//! does. The map of objects is its owner's: one who only reads does not believe it, as it changes behind his back.

mod allocation;
mod clone;
mod create;
mod details;
mod diff;
mod header;
mod io;
mod maintain;
mod map;
mod metadata;
pub mod namespace;
mod naming;
mod protection;
mod resize;
mod snapshot;
pub mod trash;

#[cfg(test)]
mod tests;

pub use allocation::Allocated;
pub use create::{CreateOptions, create, create_with_data, list, remove};
pub use details::{ParentNames, Times, name_of};
pub use diff::{Changed, Diff, DiffOptions};
pub use maintain::MapState;
pub use naming::{find, rename};

use crate::error::{Error, Result};
use crate::format::{Features, ObjectMap, names};
use crate::store::{Answer, NOSNAP, ObjectName, ObjectStore, Op, Request};
use blockyard_rados::encoding::{Reader, Writer};
use bytes::Bytes;
use header::Header;
use parking_lot::Mutex;
use rustix::io::Errno;

/// Longest chain of clones; one that is longer goes round.
const MAX_DEPTH: usize = 64;
/// Features of images that are read here.
const READABLE: Features = Features::DEFAULT
    .union(Features::STRIPINGV2)
    .union(Features::DATA_POOL)
    .union(Features::OPERATIONS)
    .union(Features::JOURNALING);
/// Those that are written here.
const WRITABLE: Features = READABLE.difference(Features::JOURNALING);

/// An open image, or a snapshot of one.
pub struct Image<S: ObjectStore> {
    store: S,
    /// Where its bytes are: there, too, or in another pool.
    data: S,
    id: String,
    header: Header,
    /// The snapshot that it is opened at; [`NOSNAP`] for the image as it is.
    snap: u64,
    /// The map of its objects, if it has one that is right.
    map: Mutex<Option<ObjectMap>>,
    parent: Option<Box<Image<S>>>,
    /// A change of the header is under way, has failed or was given up: what the store has may be another one. Nothing is
    /// written before it was read.
    is_stale: bool,
    /// It may be written, and its map is believed.
    is_owner: bool,
}

/// Runs a method that reads.
async fn ask<S: ObjectStore>(
    store: &S,
    object: &ObjectName,
    method: &'static str,
    input: impl FnOnce(&mut Writer),
) -> Result<Bytes> {
    let mut writer = Writer::new();
    input(&mut writer);
    let op = Op::exec("rbd", method, writer.into_bytes());
    let answers = store.operate(object, Request::read(vec![op])).await?;
    Ok(answers.into_iter().next().map(Answer::into_data).unwrap_or_default())
}

/// A method that writes, as an operation.
pub(crate) fn method(method: &'static str, input: impl FnOnce(&mut Writer)) -> Op {
    let mut writer = Writer::new();
    input(&mut writer);
    Op::exec("rbd", method, writer.into_bytes())
}

async fn tell<S: ObjectStore>(store: &S, object: &ObjectName, ops: Vec<Op>) -> Result<()> {
    store.operate(object, Request::write(ops)).await.map(|_| ())
}

/// Done, and if something was not there, that was to be.
fn may_be_gone(done: Result<()>) -> Result<()> {
    match done {
        Err(error) if error.is_not_found() => Ok(()),
        done => done,
    }
}

/// The id of an image.
async fn id_of<S: ObjectStore>(store: &S, name: &str) -> Result<String> {
    let id = ask(store, &names::id(name), "get_id", |_| {}).await;
    let id = id.map_err(|error| error.at(format_args!("image {name:?}")))?;
    Ok(Reader::new("reading the id of an image", &id).string()?)
}

impl<S: ObjectStore> Image<S> {
    /// Opens an image to read it. To be written it has to be [owned](Self::own).
    ///
    /// # Errors
    /// ENOENT if there is none of that name; features that are not known here; a header or a parent that cannot be read.
    pub async fn open(store: &S, name: &str) -> Result<Self> {
        let id = id_of(store, name).await?;
        let image = Self::open_id(store, id, NOSNAP, 0).await;
        image.map_err(|error| error.at(format_args!("image {name:?}")))
    }

    /// Opens an image by its id, as one that has no name, to read it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn by_id(store: &S, id: &str) -> Result<Self> {
        let image = Self::open_id(store, id.to_owned(), NOSNAP, 0).await;
        image.map_err(|error| error.at(format_args!("image {id:?}")))
    }

    /// Opens an image to remove it. Nothing of its parent is read, which may be damaged or gone: whoever has the image keeps it
    /// from being removed, whatever its parent is.
    ///
    /// # Errors
    /// ENOENT if there is none of that name, or it has no header any more; a header that cannot be read.
    pub(crate) async fn open_to_remove(store: &S, name: &str) -> Result<Self> {
        let id = id_of(store, name).await?;
        let image = Self::by_id_to_remove(store, &id).await;
        image.map_err(|error| error.at(format_args!("image {name:?}")))
    }

    /// The same by its id, as of one that has no name.
    ///
    /// # Errors
    /// As [`open_to_remove`](Self::open_to_remove).
    pub(crate) async fn by_id_to_remove(store: &S, id: &str) -> Result<Self> {
        let header = Header::read(store, id).await?;
        Self::without_parent(store, id.to_owned(), header, NOSNAP).await
    }

    /// Has the image from now on: it can be written, and its map of objects is used and kept. Others may read it. The caller
    /// sees to it that nobody else has it.
    ///
    /// # Errors
    /// EROFS at a snapshot; the header or the map cannot be read.
    pub async fn own(&mut self) -> Result<()> {
        if self.snap != NOSNAP {
            return Err(Errno::ROFS.into());
        }
        self.is_owner = false;
        // What was read when it was opened may be older than what the last owner did.
        self.refresh().await?;
        self.load_map().await?;
        self.is_owner = true;
        Ok(())
    }

    /// Has the image no longer: it is only read, and its map is not believed.
    pub fn disown(&mut self) {
        self.is_owner = false;
        *self.map.lock() = None;
    }

    /// Whether it may be written.
    #[must_use]
    pub const fn is_owner(&self) -> bool {
        self.is_owner
    }

    /// Opens a snapshot of an image, which is only read.
    ///
    /// # Errors
    /// As [`open`](Self::open); ENOENT if there is no such snapshot.
    pub async fn open_snapshot(store: &S, name: &str, snapshot: &str) -> Result<Self> {
        let place = |error: Error| error.at(format_args!("image {name:?}, snapshot {snapshot:?}"));
        let id = id_of(store, name).await?;
        let header = Header::read(store, &id).await.map_err(place)?;
        let found = header.snapshot(snapshot).map(|snapshot| snapshot.id).ok_or(Errno::NOENT);
        let found = found.map_err(|errno| place(errno.into()))?;
        Self::open_id(store, id, found, 0).await.map_err(place)
    }

    pub(super) async fn open_id(store: &S, id: String, snap: u64, depth: usize) -> Result<Self> {
        if depth > MAX_DEPTH {
            return Err(Error::damaged(format!(
                "more than {MAX_DEPTH} parents, or a loop of parents; flatten one of them"
            )));
        }
        let header = Header::read(store, &id).await?;
        let mut image = Self::without_parent(store, id, header, snap).await?;
        image.open_parent(depth).await?;
        Ok(image)
    }

    async fn without_parent(store: &S, id: String, mut header: Header, snap: u64) -> Result<Self> {
        header.check(snap)?;
        if snap != NOSNAP {
            header.look_at(snap)?;
        }
        let data = match header.data_pool {
            Some(pool) => store.in_pool(pool, store.namespace()).await?,
            None => store.clone(),
        };
        Ok(Self {
            store: store.clone(),
            data,
            id,
            header,
            snap,
            map: Mutex::new(None),
            parent: None,
            is_stale: false,
            is_owner: false,
        })
    }

    async fn open_parent(&mut self, depth: usize) -> Result<()> {
        self.parent = None;
        let Some(parent) = self.header.parent.clone().filter(|parent| parent.overlap.is_some())
        else {
            return Ok(());
        };
        let spec = parent.spec;
        let place = format!("parent {}", spec.image);
        let store = self.store.in_pool(spec.pool, &spec.namespace).await?;
        let opening = Box::pin(Self::open_id(&store, spec.image, spec.snapshot, depth + 1));
        let opened = opening.await.map_err(|error| error.at(place))?;
        self.parent = Some(Box::new(opened));
        Ok(())
    }

    /// Bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.header.size
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its features.
    #[must_use]
    pub const fn features(&self) -> Features {
        self.header.features
    }

    /// The snapshots that somebody has made: number, name and size, the oldest first.
    pub fn snapshots(&self) -> impl Iterator<Item = (u64, &str, u64)> {
        let all = self.header.user_snapshots();
        all.map(|snapshot| (snapshot.id, &*snapshot.name, snapshot.image_size))
    }

    /// Bytes that come from the parent where the image has none of its own.
    #[must_use]
    pub fn overlap(&self) -> u64 {
        self.header.overlap()
    }

    fn header_object(&self) -> ObjectName {
        names::header(&self.id)
    }

    fn check_writable(&self) -> Result<()> {
        if !self.is_owner {
            return Err(Errno::ROFS.into());
        }
        if self.is_stale {
            return Err(Error::answer(Errno::STALE).at("a change of the header was not finished"));
        }
        Ok(())
    }

    /// Whether a change of the header was not finished: [`refresh`](Self::refresh) is due before anything is written.
    #[must_use]
    pub const fn is_stale(&self) -> bool {
        self.is_stale
    }

    /// Reads the header again. An operation that changes it and fails, or is given up, may leave it unknown: writes are
    /// refused with ESTALE then, until this was done.
    ///
    /// # Errors
    /// The header cannot be read; the image has got features that are not known here.
    pub async fn refresh(&mut self) -> Result<()> {
        let mut header = Header::read(&self.store, &self.id).await?;
        header.check(self.snap)?;
        if self.snap != NOSNAP {
            header.look_at(self.snap)?;
        }
        self.header = header;
        self.is_stale = false;
        if self.overlap() == 0 {
            self.parent = None;
        }
        Ok(())
    }

    /// Begins what changes the header.
    async fn begin(&mut self) -> Result<()> {
        if self.is_stale {
            self.refresh().await?;
        }
        self.check_writable()
    }

    /// Changes the header, and reads it again. After an error, too: an answer may be lost, and what was done is there.
    async fn change_header(&mut self, op: Op) -> Result<()> {
        self.is_stale = true;
        let changed = tell(&self.store, &self.header_object(), vec![op]).await;
        let read = self.refresh().await;
        changed.and(read)
    }
}
