//! Images that come and go.

use super::header::Header;
use super::{Image, ask, id_of, may_be_gone, method, tell};
use crate::error::{Error, Result};
use crate::format::{ChildSpec, Features, Layout, MAX_OBJECTS, Snapshot, names};
use crate::store::{ObjectStore, Op};
use blockyard_rados::encoding::Reader;
use rustix::io::Errno;

/// Ids have at most 14 digits, so that names of objects fit where clients of old keep them (ceph: `librbd/Utils.cc`,
/// `generate_image_id`).
const MAX_ID: u64 = (1 << 56) - 1;

/// What an image is to be.
#[derive(Clone, Copy, Debug)]
pub struct CreateOptions {
    /// Bytes.
    pub size: u64,
    /// How it is cut.
    pub layout: Layout,
    /// What it can do. Stripes are added where the layout has some.
    pub features: Features,
}

/// Makes an image.
///
/// # Errors
/// EEXIST if there is one of that name; features that are not known here, or do not go together; more objects than a map can
/// have.
pub async fn create<S: ObjectStore>(store: &S, name: &str, options: &CreateOptions) -> Result<()> {
    create_with_data(store, None, name, options).await
}

/// Makes an image whose bytes are in another pool, if one is given.
///
/// # Errors
/// As [`create`]; there is no such pool.
pub async fn create_with_data<S: ObjectStore>(
    store: &S,
    data_pool: Option<i64>,
    name: &str,
    options: &CreateOptions,
) -> Result<()> {
    let created = create_id(store, data_pool, name, options).await.map(|_| ());
    created.map_err(|error| error.at(format_args!("image {name:?}")))
}

pub(super) async fn create_id<S: ObjectStore>(
    store: &S,
    data_pool: Option<i64>,
    name: &str,
    options: &CreateOptions,
) -> Result<String> {
    let mut features = options.features;
    let (unit, count) = options.layout.stripes();
    features.set(Features::STRIPINGV2, count > 1 || unit != options.layout.object_bytes());
    let data_pool = data_pool.filter(|pool| *pool != store.pool());
    features.set(Features::DATA_POOL, data_pool.is_some());
    check(name, features, options)?;
    if let Some(pool) = data_pool {
        store.in_pool(pool, store.namespace()).await?;
    }
    let id = format!("{:x}", store.unique()? & MAX_ID);
    let set_id = method("set_id", |w| w.string(&id));
    if let Err(error) = tell(store, &names::id(name), vec![Op::create(true), set_id]).await {
        // It may have been done all the same; whose the name is, its id tells.
        if id_of(store, name).await.is_ok_and(|there| there == id) {
            let _taken_back = remove_id(store, name, &id).await;
        }
        return Err(error);
    }
    let made = fill(store, data_pool, name, &id, features, options).await;
    if made.is_err() {
        // What was made is taken back as far as that goes; the first error is the one to tell.
        let _taken_back = remove_id(store, name, &id).await;
    }
    made.map(|()| id)
}

pub(super) fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.contains(['/', '@']) {
        return Err(Error::bad("the name of an image is not empty, and has neither / nor @ in it"));
    }
    Ok(())
}

fn check(name: &str, features: Features, options: &CreateOptions) -> Result<()> {
    check_name(name)?;
    let unknown = features.difference(super::WRITABLE.difference(Features::OPERATIONS));
    if !unknown.is_empty() {
        return Err(crate::error::ErrorKind::Features { names: unknown.names().join(", ") }.into());
    }
    let needs = |feature, other| features.contains(feature) && !features.contains(other);
    if needs(Features::FAST_DIFF, Features::OBJECT_MAP) {
        return Err(Error::bad("fast-diff needs object-map"));
    }
    if needs(Features::OBJECT_MAP, Features::EXCLUSIVE_LOCK) {
        return Err(Error::bad("object-map needs exclusive-lock"));
    }
    let objects = options.layout.objects(options.size);
    if features.contains(Features::OBJECT_MAP) && objects > MAX_OBJECTS {
        return Err(Error::bad(format!(
            "an image of {objects} objects has no object map; make it smaller, its objects larger, or do without object-map"
        )));
    }
    Ok(())
}

async fn fill<S: ObjectStore>(
    store: &S,
    data_pool: Option<i64>,
    name: &str,
    id: &str,
    features: Features,
    options: &CreateOptions,
) -> Result<()> {
    let add = method("dir_add_image", |w| {
        w.string(name);
        w.string(id);
    });
    tell(store, &names::DIRECTORY.into(), vec![add]).await?;
    let mut ops = vec![
        Op::create(true),
        method("create", |w| {
            w.u64(options.size);
            w.u8(options.layout.order());
            w.u64(features.bits());
            let pool_of_image = data_pool.map(|_| store.pool());
            w.string(&names::data_prefix(id, pool_of_image));
            w.i64(data_pool.unwrap_or(-1));
        }),
    ];
    if features.contains(Features::STRIPINGV2) {
        // By itself: an OSD's method does not see what the one before it in a request wrote.
        tell(store, &names::header(id), std::mem::take(&mut ops)).await?;
        ops.push(method("set_stripe_unit_count", |w| {
            let (unit, count) = options.layout.stripes();
            w.u64(unit);
            w.u64(count);
        }));
    }
    tell(store, &names::header(id), ops).await?;
    if features.contains(Features::OBJECT_MAP) {
        let resize = method("object_map_resize", |w| {
            w.u64(options.layout.objects(options.size));
            w.u8(0);
        });
        tell(store, &names::object_map(id, None), vec![resize]).await?;
    }
    Ok(())
}

/// The names of all images, and their ids.
///
/// # Errors
/// The store cannot be read.
pub async fn list<S: ObjectStore>(store: &S) -> Result<Vec<(String, String)>> {
    const PAGE: u64 = 1024;
    let mut images: Vec<(String, String)> = Vec::new();
    let directory = names::DIRECTORY.into();
    loop {
        let after = images.last().map(|(name, _)| name.clone()).unwrap_or_default();
        let page = ask(store, &directory, "dir_list", |w| {
            w.string(&after);
            w.u64(PAGE);
        });
        let page = match page.await {
            Err(error) if error.is_not_found() => return Ok(images),
            page => page?,
        };
        let mut reader = Reader::new("reading the directory of images", &page);
        let page = reader.vec(8, |r| Ok((r.string()?, r.string()?)))?;
        let is_last = (page.len() as u64) < PAGE;
        images.extend(page);
        if is_last {
            return Ok(images);
        }
    }
}

/// Removes an image, which nobody has, or gets meanwhile.
///
/// # Errors
/// ENOTEMPTY if it has snapshots. One that is removed in part can be removed again.
pub async fn remove<S: ObjectStore>(store: &S, name: &str) -> Result<()> {
    let at = |error: Error| error.at(format_args!("image {name:?}"));
    let id = id_of(store, name).await?;
    if let Some(mut image) = removable(store, &id).await.map_err(at)? {
        image.own().await.map_err(at)?;
        image.begin_removal().await.map_err(at)?;
        image.empty().await.map_err(at)?;
    }
    remove_id(store, name, &id).await.map_err(at)
}

/// Removes what is left of an image that has no name, and is empty.
pub(super) async fn remove_unnamed<S: ObjectStore>(store: &S, id: &str) -> Result<()> {
    may_be_gone(tell(store, &names::object_map(id, None), vec![Op::remove()]).await)?;
    may_be_gone(tell(store, &names::header(id), vec![Op::remove()]).await)
}

/// An image whose objects can be removed; `None` if it has no header any more.
///
/// # Errors
/// ENOTEMPTY if it has snapshots; features that are not known here.
pub(super) async fn removable<S: ObjectStore>(store: &S, id: &str) -> Result<Option<Image<S>>> {
    // The header alone says whether there is something to remove: a parent may be gone, and is not needed.
    match Image::by_id_to_remove(store, id).await {
        Err(error) if error.is_not_found() => Ok(None),
        image => {
            let image = image?;
            check_removable(&image.header)?;
            Ok(Some(image))
        }
    }
}

/// Snapshots in the trash that nobody needs go with the image (ceph: `src/librbd/image/PreRemoveRequest.cc`).
fn check_removable(header: &Header) -> Result<()> {
    let mut needed = header.snapshots.iter().filter(|it| !it.is_unneeded()).peekable();
    if needed.peek().is_none() {
        return Ok(());
    }
    let error = Error::answer(Errno::NOTEMPTY);
    match needed.all(Snapshot::is_in_trash) {
        true => Err(error.at("a snapshot that was removed has clones")),
        false => Err(error.at("it has snapshots")),
    }
}

pub(super) async fn remove_id<S: ObjectStore>(store: &S, name: &str, id: &str) -> Result<()> {
    may_be_gone(tell(store, &names::object_map(id, None), vec![Op::remove()]).await)?;
    may_be_gone(tell(store, &names::header(id), vec![Op::remove()]).await)?;
    let from_directory = method("dir_remove_image", |w| {
        w.string(name);
        w.string(id);
    });
    may_be_gone(tell(store, &names::DIRECTORY.into(), vec![from_directory]).await)?;
    may_be_gone(tell(store, &names::id(name), vec![Op::remove()]).await)
}

impl<S: ObjectStore> Image<S> {
    /// Removes the image, which is owned, and has this name.
    ///
    /// # Errors
    /// As [`remove`]; EROFS if it is not owned; ENOENT if the name is another one's.
    pub async fn remove(&mut self, name: &str) -> Result<()> {
        let at = |error: Error| error.at(format_args!("image {name:?}"));
        self.begin_removal().await.map_err(at)?;
        if id_of(&self.store, name).await? != self.id {
            return Err(at(Errno::NOENT.into()));
        }
        self.empty().await.map_err(at)?;
        self.disown();
        remove_id(&self.store, name, &self.id).await.map_err(at)
    }

    /// Looks whether the image can be removed, and removes what nobody needs of its snapshots.
    pub(super) async fn begin_removal(&mut self) -> Result<()> {
        self.begin().await?;
        self.refresh().await?;
        check_removable(&self.header)?;
        self.empty_trash().await
    }

    /// Removes all objects. The header keeps its size, so that one that is removed in part can be removed again.
    pub(super) async fn empty(&mut self) -> Result<()> {
        self.cut(0, self.objects_up_to(self.size())).await?;
        self.leave_parent().await
    }

    /// This image as its parent names it.
    pub(super) fn as_child(&self) -> ChildSpec {
        ChildSpec {
            pool: self.store.pool(),
            namespace: self.store.namespace().to_owned(),
            image: self.id.clone(),
        }
    }
}
