//! Opening stores and images: to read, or to have an image for oneself.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::{Duration, Instant};

use blockyard_rbd::dir::{DirStore, Directory, Owned};
use blockyard_rbd::image::Image;
use blockyard_rbd::store::ObjectStore;
use blockyard_rbd::{Error as RbdError, ErrorKind as RbdKind};

use super::ImageSpec;
use crate::error::{Error, ErrorKind, Result};

/// How long the lock of an image is waited for: that of a process that was killed may be gone in a while.
const LOCK_LIMIT: Duration = Duration::from_millis(500);

const ENOENT: i32 = 2;
const EPERM: i32 = 1;
const EACCES: i32 = 13;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const EROFS: i32 = 30;
const ENOTEMPTY: i32 = 39;
const EDQUOT: i32 = 122;

/// Where images are.
pub(crate) type Store = DirStore;

/// An image that nobody else writes meanwhile.
pub(crate) struct OwnedImage {
    image: Image<Store>,
    lock: Owned<Directory>,
}

impl OwnedImage {
    /// The image, and what keeps others from it as long as it lives.
    pub(crate) fn into_parts(self) -> (Image<Store>, Owned<Directory>) {
        (self.image, self.lock)
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
        done.map_err(|_| Error::failed("a thread has died"))?.map_err(no_room)
    })
}

/// Opens the store in a directory; makes one, and the directory, if `make` and they are not there.
///
/// # Errors
/// It cannot be opened.
pub(crate) fn open_store(directory: &Path, namespace: &str, make: bool) -> Result<Store> {
    let place = directory.display();
    if make && !directory.exists() {
        std::fs::create_dir(directory).map_err(|err| {
            Error::failed(format!("cannot make the directory {place}")).caused_by(err)
        })?;
    }
    let store = DirStore::open(directory, make);
    let store = store.map_err(|err| {
        let error = Error::failed(format!("cannot open the store in {place}")).caused_by(err);
        match make {
            true => error,
            false => error.help("`blockyard image create` and `image import` make one"),
        }
    })?;
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
    opened.map_err(|err| rbd_error(format!("cannot open {spec}"), err))
}

/// Opens an image, and has it as long as it is open.
///
/// # Errors
/// It cannot be opened; somebody else has it.
pub(crate) async fn own(store: &Store, spec: &ImageSpec) -> Result<OwnedImage> {
    if spec.snapshot.is_some() {
        return Err(Error::usage(format!("{spec} is a snapshot, and read-only")));
    }
    let mut image = read(store, spec).await?;
    let lock = lock(store, spec, image.id()).await?;
    let owned = image.own().await;
    owned.map_err(|err| rbd_error(format!("cannot write {spec}"), err))?;
    Ok(OwnedImage { image, lock })
}

/// Takes the lock of an image, which need not be one that can be opened.
///
/// # Errors
/// Somebody else has it.
pub(crate) async fn lock(
    store: &Store,
    what: &impl std::fmt::Display,
    id: &str,
) -> Result<Owned<Directory>> {
    let (store, id, me, begun) = (store.clone(), id.to_owned(), me(), Instant::now());
    let taken = tokio::task::spawn_blocking(move || {
        loop {
            match store.own_blocking(&id, &me) {
                Ok(Err(_)) if begun.elapsed() < LOCK_LIMIT => std::thread::sleep(LOCK_LIMIT / 20),
                taken => return taken,
            }
        }
    });
    let taken = taken.await.map_err(|err| Error::failed("a thread has died").caused_by(err))?;
    taken.map_err(|err| rbd_error(format!("cannot lock {what}"), err))?.map_err(|owner| {
        let owner = if owner.is_empty() { "another process" } else { &owner };
        let what = format!("the image {what} is in use by {owner}");
        Error::new(ErrorKind::Busy, what)
            .help("one at a time writes an image: end that, or read the image or a snapshot of it")
    })
}

/// This process, for those who find an image taken.
fn me() -> String {
    let command = std::env::args().nth(1).unwrap_or_default();
    format!("process {} (blockyard {command})", std::process::id())
}

/// An error of a store or an image, with what to do.
pub(crate) fn rbd_error(what: impl Into<String>, err: RbdError) -> Error {
    let errno = err.errno().map_or(0, |errno| errno.raw_os_error());
    let kind = match (errno, err.kind()) {
        (EBUSY, _) => ErrorKind::Busy,
        (EPERM | EACCES | EROFS, _) => ErrorKind::NotPermitted,
        (_, RbdKind::BadParameter(_)) => ErrorKind::Usage,
        (_, RbdKind::Features { .. }) => ErrorKind::Unavailable,
        _ => ErrorKind::Failed,
    };
    let help = match errno {
        ENOENT => Some("`blockyard image ls` and `image snap ls` show what there is"),
        EEXIST => Some("take another name, or remove the one that is there"),
        ENOTEMPTY => Some("it has snapshots; remove them with blockyard image snap purge"),
        EBUSY => {
            Some("if it is protected or has clones, see `image children`, `image snap unprotect`")
        }
        EDQUOT => Some("the limit of snapshots is reached; see `image snap limit`"),
        _ => None,
    };
    let error = Error::new(kind, what).caused_by(err);
    match help {
        Some(help) => error.help(help),
        None => error,
    }
}
