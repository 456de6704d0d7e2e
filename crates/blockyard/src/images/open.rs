//! Opening stores and images: to read, to have something changed, or to have an image for oneself.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::{Duration, Instant};

use blockyard_rados::ErrorKind as RadosKind;
use blockyard_rbd::dir::{DirStore, Directory, Owned};
use blockyard_rbd::format::{Features, names};
use blockyard_rbd::image::{Image, find};
use blockyard_rbd::live::{LiveImage, Options, owner as live_owner, watchers};
use blockyard_rbd::store::ObjectStore;
use blockyard_rbd::{Error as RbdError, ErrorKind as RbdKind};
use tokio::runtime::Handle;
use tokio::sync::OwnedRwLockWriteGuard;

use super::{ImageSpec, Store};
use crate::error::{Error, ErrorKind, Result, quoted};

/// How long the lock of an image is waited for: that of a process that was killed may be gone in a while.
pub(super) const LOCK_LIMIT: Duration = Duration::from_millis(500);

const ENOENT: i32 = 2;
const EPERM: i32 = 1;
const EACCES: i32 = 13;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const EROFS: i32 = 30;
const ENOTEMPTY: i32 = 39;
const ESHUTDOWN: i32 = 108;
const EDQUOT: i32 = 122;

/// An image that nobody else writes meanwhile.
pub(crate) struct OwnedImage {
    image: OwnedRwLockWriteGuard<Image<Store>>,
    live: LiveImage<Store>,
    _lock: Option<Owned<Directory>>,
}

impl OwnedImage {
    /// Makes all durable, gives the image back, and lets others know that it may have changed.
    ///
    /// # Errors
    /// What was written cannot be made durable.
    pub(crate) async fn close(self) -> std::result::Result<(), RbdError> {
        let Self { image, live, _lock } = self;
        drop(image);
        live.tell_change().await;
        live.close().await
    }
}

impl Deref for OwnedImage {
    type Target = Image<Store>;

    fn deref(&self) -> &Image<Store> {
        &self.image
    }
}

impl DerefMut for OwnedImage {
    fn deref_mut(&mut self) -> &mut Image<Store> {
        &mut self.image
    }
}

/// Waits for what a store does, on a thread of its own: whoever asks may be in a runtime, where nobody may wait.
///
/// # Errors
/// The system has no room for a thread or a runtime.
pub(crate) fn wait<T: Send>(future: impl Future<Output = T> + Send) -> Result<T> {
    let no_room = |err: std::io::Error| Error::failed("cannot start a runtime").caused_by(err);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(future))
        });
        let done = thread.map_err(no_room)?.join();
        done.map_err(|_| Error::failed("a thread has panicked"))?.map_err(no_room)
    })
}

/// The same of what goes on later, in tasks: those are of a runtime, which is driven.
///
/// # Errors
/// The system has no room for a thread.
pub(crate) fn wait_on<T: Send>(
    runtime: &Handle,
    future: impl Future<Output = T> + Send,
) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || runtime.block_on(future));
        let thread = thread.map_err(|err| Error::failed("cannot start a thread").caused_by(err))?;
        thread.join().map_err(|_| Error::failed("a thread has panicked"))
    })
}

/// Opens the store in a directory; makes one, and the directory, if `make` and they are not there.
///
/// # Errors
/// It cannot be opened.
pub(crate) fn open_directory(directory: &Path, namespace: &str, make: bool) -> Result<Store> {
    let place = directory.display();
    if make && !directory.exists() {
        std::fs::create_dir(directory).map_err(|err| {
            Error::failed(format!("cannot create the directory {place}")).caused_by(err)
        })?;
    }
    let store = DirStore::open(directory, make);
    let store = store.map_err(|err| {
        let error = Error::failed(format!("cannot open the store in {place}")).caused_by(err);
        match make {
            true => error,
            false => error.help(format!(
                "create a store: blockyard image create --dir {} --size 10G NAME",
                quoted(directory)
            )),
        }
    })?;
    let store = Store::Dir(store);
    if namespace.is_empty() {
        return Ok(store);
    }
    let pool = store.pool();
    wait(async { store.in_pool(pool, namespace).await })?
        .map_err(|err| rbd_error(format!("cannot open the namespace {namespace}"), err))
}

/// Opens an image, or a snapshot, to read it.
///
/// # Errors
/// It cannot be opened.
pub(crate) async fn read(store: &Store, spec: &ImageSpec) -> Result<Image<Store>> {
    let opened = match &spec.snapshot {
        Some(snapshot) => Image::open_snapshot(store, &spec.image, snapshot).await,
        None => Image::open(store, &spec.image).await,
    };
    let err = match opened {
        Ok(image) => return Ok(image),
        Err(err) => err,
    };
    if !err.is_not_found() {
        return Err(rbd_error(format!("cannot open {spec}"), err));
    }
    let image = ImageSpec { snapshot: None, ..spec.clone() };
    match (find(store, &spec.image, None).await, &spec.snapshot) {
        (Err(missing), _) if missing.is_not_found() => {
            Err(Error::failed(format!("no image named {image}")).help(list_images(store)))
        }
        (Ok(_), Some(snapshot)) => Err(Error::failed(format!(
            "image {image} has no snapshot named {snapshot}"
        ))
        .help(format!("list snapshots: blockyard image snap ls {}", quoted(image.to_string())))),
        _ => Err(rbd_error(format!("cannot open {spec}"), err)),
    }
}

/// Opens an image, and has it alone as long as it is open. One that is somebody's disk is not taken from him.
///
/// # Errors
/// It cannot be opened; somebody else has it.
pub(crate) async fn own(store: &Store, spec: &ImageSpec) -> Result<OwnedImage> {
    let image = writable(store, spec).await?;
    let _lock = unused(store, spec, image.id()).await?;
    let cannot = |err| rbd_error(format!("cannot write {spec}"), err);
    let live = LiveImage::open(store, &spec.image, Options::default()).await.map_err(cannot)?;
    match live.alone().await {
        Ok(image) => Ok(OwnedImage { image, live, _lock }),
        Err(err) => {
            // What went wrong before that is what is to be told.
            let _closed = live.close().await;
            Err(cannot(err))
        }
    }
}

/// Has something changed in an image by whoever has its lock, as what changes it is asked of him; or does it, if nobody has.
///
/// # Errors
/// It cannot be opened or changed; it has no lock, and somebody else has it.
pub(crate) async fn change<T>(
    store: &Store,
    spec: &ImageSpec,
    doing: &str,
    work: impl AsyncFnOnce(&LiveImage<Store>) -> std::result::Result<T, RbdError>,
) -> Result<T> {
    let image = writable(store, spec).await?;
    let cannot = |err| rbd_error(format!("cannot {doing}"), err);
    // Of one without the feature nobody can be asked.
    let _lock = match image.features().contains(Features::EXCLUSIVE_LOCK) {
        true => {
            can_be_asked(store, spec, image.id()).await?;
            None
        }
        false => lock(store, spec, image.id()).await?,
    };
    let live = LiveImage::open(store, &spec.image, Options::default()).await.map_err(cannot)?;
    let done = work(&live).await;
    let closed = live.close().await;
    done.and_then(|done| closed.map(|()| done)).map_err(cannot)
}

/// Sees to it that whoever has an image of a directory as a disk can be asked to change it: a process of another user, or of
/// another runtime directory, hears nothing.
///
/// # Errors
/// Somebody has it who does not watch it.
async fn can_be_asked(store: &Store, spec: &ImageSpec, id: &str) -> Result<()> {
    let Some(directory) = store.directory() else { return Ok(()) };
    let begun = Instant::now();
    loop {
        let found = directory.owner_blocking(id);
        let found = found.map_err(|err| rbd_error(format!("cannot read the lock of {id}"), err));
        let Some(owner) = found? else { return Ok(()) };
        let watchers = watchers(store, &names::header(id)).await;
        let watchers =
            watchers.map_err(|err| rbd_error(format!("cannot list the clients of {spec}"), err))?;
        if !watchers.is_empty() {
            return Ok(());
        }
        // One who opens it at this moment watches it a moment later.
        if begun.elapsed() >= LOCK_LIMIT {
            return Err(in_use(spec, &owner));
        }
        tokio::time::sleep(LOCK_LIMIT / 20).await;
    }
}

async fn writable(store: &Store, spec: &ImageSpec) -> Result<Image<Store>> {
    match spec.snapshot {
        Some(_) => Err(Error::usage(format!("{spec} is a snapshot, and read-only"))),
        None => read(store, spec).await,
    }
}

/// Sees to it that nobody has an image as a disk: in a directory it is locked, in a cluster nobody else may watch it.
///
/// # Errors
/// Somebody has it.
pub(crate) async fn unused(
    store: &Store,
    what: &impl std::fmt::Display,
    id: &str,
) -> Result<Option<Owned<Directory>>> {
    let lock = lock(store, what, id).await?;
    if lock.is_some() {
        return Ok(lock);
    }
    let watchers = match watchers(store, &names::header(id)).await {
        // What is left of one that was removed in part.
        Err(err) if err.is_not_found() => return Ok(None),
        watchers => {
            watchers.map_err(|err| rbd_error(format!("cannot list the clients of {what}"), err))?
        }
    };
    let me = store.caller().client;
    let Some(watcher) = watchers.iter().find(|watcher| watcher.client != me) else {
        return Ok(None);
    };
    let (client, place) = (watcher.client, watcher.addr);
    let said = format!("image {what} is in use by {client} at {place}");
    Err(Error::new(ErrorKind::Busy, said).help(format!(
        "stop that client; one that was killed is listed for 30 seconds: blockyard image status {}",
        quoted(what.to_string())
    )))
}

/// Who writes an image: in a directory the process that has it as a disk, in a cluster the owner of its lock.
///
/// # Errors
/// That cannot be found out.
pub(crate) async fn owner(store: &Store, id: &str) -> Result<Option<String>> {
    let found = match store.directory() {
        Some(directory) => directory.owner_blocking(id),
        None => match live_owner(store, &names::header(id)).await {
            // It is locked by hand: `lock ls` shows that.
            Err(err) if err.errno().is_some_and(|errno| errno.raw_os_error() == EBUSY) => Ok(None),
            found => found.map(|owner| owner.map(|owner| owner.to_string())),
        },
    };
    found.map_err(|err| rbd_error(format!("cannot read the lock of {id}"), err))
}

/// Takes the lock of an image of a store in a directory, which need not be one that can be opened. In a cluster there is none but
/// the image's own.
///
/// # Errors
/// Somebody else has it.
pub(crate) async fn lock(
    store: &Store,
    what: &impl std::fmt::Display,
    id: &str,
) -> Result<Option<Owned<Directory>>> {
    let Some(directory) = store.directory() else { return Ok(None) };
    let (store, id, me, begun) = (directory.clone(), id.to_owned(), me(), Instant::now());
    let taken = tokio::task::spawn_blocking(move || {
        loop {
            match store.own_blocking(&id, &me) {
                Ok(Err(_)) if begun.elapsed() < LOCK_LIMIT => std::thread::sleep(LOCK_LIMIT / 20),
                taken => return taken,
            }
        }
    });
    let taken = taken.await.map_err(|err| Error::failed("a thread has panicked").caused_by(err))?;
    let taken = taken.map_err(|err| rbd_error(format!("cannot lock {what}"), err))?;
    taken.map(Some).map_err(|owner| in_use(what, &owner))
}

/// Somebody else writes an image.
pub(super) fn in_use(what: &impl std::fmt::Display, owner: &str) -> Error {
    let owner = if owner.is_empty() { "another process" } else { owner };
    Error::new(ErrorKind::Busy, format!("image {what} is in use by {owner}"))
        .help("stop that process, or open the image or a snapshot of it read-only")
}

/// This process, for those who find an image taken.
pub(super) fn me() -> String {
    let command = std::env::args().nth(1).unwrap_or_default();
    format!("process {} (blockyard {command})", std::process::id())
}

/// Of which kind an error of a cluster is.
fn of_cluster(err: &blockyard_rados::Error) -> ErrorKind {
    match err.kind() {
        RadosKind::BadParameter { .. } => ErrorKind::Usage,
        RadosKind::NotPermitted { .. } | RadosKind::WrongKey { .. } => ErrorKind::NotPermitted,
        _ => ErrorKind::Failed,
    }
}

/// How to see what images there are.
fn list_images(store: &Store) -> &'static str {
    match store.directory() {
        Some(_) => "list images: blockyard image ls --dir DIR",
        None => "list images: blockyard image ls POOL",
    }
}

/// An error of a store or an image, with what to do.
pub(crate) fn rbd_error(what: impl Into<String>, err: RbdError) -> Error {
    let errno = err.errno().map_or(0, |errno| errno.raw_os_error());
    let kind = match (errno, err.kind()) {
        (EBUSY, _) => ErrorKind::Busy,
        (EPERM | EACCES | EROFS, _) => ErrorKind::NotPermitted,
        (_, RbdKind::BadParameter(_)) => ErrorKind::Usage,
        (_, RbdKind::Rados(rados)) => of_cluster(rados),
        (_, RbdKind::Features { .. }) => ErrorKind::Unavailable,
        _ => ErrorKind::Failed,
    };
    let help = match errno {
        ENOENT => Some("list images: blockyard image ls"),
        EEXIST => Some("choose another name, or remove the existing one"),
        ENOTEMPTY => Some(
            "remove its snapshots: blockyard image snap purge IMAGE; or list clones of removed snapshots: \
             blockyard image children IMAGE",
        ),
        EBUSY => Some(
            "list locks: blockyard image lock ls IMAGE; or clones: blockyard image children IMAGE; or allow removal: \
             blockyard image snap unprotect IMAGE@SNAPSHOT",
        ),
        ESHUTDOWN => Some("open the image again; the cluster has blocklisted this client"),
        EDQUOT => Some(
            "raise the quota of the pool, or the limit of snapshots: blockyard image snap limit set --limit N IMAGE",
        ),
        _ => None,
    };
    let error = Error::new(kind, what).caused_by(err);
    match help {
        Some(help) => error.help(help),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockyard_rbd::format::Layout;
    use blockyard_rbd::image::{CreateOptions, create};

    #[test]
    fn who_has_an_image_and_cannot_be_asked_is_named_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = open_directory(dir.path(), "", true).unwrap();
        let spec = ImageSpec::parse("", "a").unwrap();
        let snapshot = async |store: &Store, name: &str| {
            change(store, &spec, "make it", async |live| live.create_snapshot(name).await).await
        };
        wait(async {
            let layout = Layout::new(12).unwrap();
            let options = CreateOptions { size: 1 << 16, layout, features: Features::DEFAULT };
            create(&store, "a", &options).await.unwrap();
            let id = read(&store, &spec).await.unwrap().id().to_owned();
            let other = open_directory(dir.path(), "", false).unwrap();
            let owned = lock(&other, &spec, &id).await.unwrap();
            let error = snapshot(&store, "s").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
            let process = format!("process {}", std::process::id());
            assert!(error.to_string().contains(&process), "{error}");
            // One who watches it is asked.
            let live = LiveImage::open(&store, "a", Options::default()).await.unwrap();
            live.acquire().await.unwrap();
            snapshot(&store, "s").await.unwrap();
            assert!(live.owner().is_some());
            live.close().await.unwrap();
            drop(owned);
            snapshot(&store, "t").await.unwrap();
        })
        .unwrap();
    }
}
