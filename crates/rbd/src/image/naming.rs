//! Names of images.

use super::header::Header;
use super::{Image, id_of, may_be_gone, method, name_of, tell};
use crate::error::{Error, Result};
use crate::format::names;
use crate::store::{ObjectStore, Op};
use rustix::io::Errno;

/// The id of an image, and the number of a snapshot of it.
///
/// # Errors
/// ENOENT if there is no such image or snapshot.
pub async fn find<S: ObjectStore>(
    store: &S,
    name: &str,
    snapshot: Option<&str>,
) -> Result<(String, Option<u64>)> {
    let id = id_of(store, name).await?;
    let Some(snapshot) = snapshot else { return Ok((id, None)) };
    let header = Header::read(store, &id).await?;
    let found = header.snapshot(snapshot).map(|found| found.id);
    let place = format_args!("image {name:?}, snapshot {snapshot:?}");
    let found = found.ok_or_else(|| Error::from(Errno::NOENT).at(place))?;
    Ok((id, Some(found)))
}

/// Gives an image another name, in the same pool and namespace.
///
/// # Errors
/// ENOENT if there is none of the old name, EEXIST if there is one of the new one.
pub async fn rename<S: ObjectStore>(store: &S, from: &str, to: &str) -> Result<()> {
    super::create::check_name(to)?;
    let id = id_of(store, from).await?;
    // The new name first, so that the image has one at all times (ceph: `librbd/operation/RenameRequest.cc`).
    let set_id = method("set_id", |w| w.string(&id));
    let taken = tell(store, &names::id(to), vec![Op::create(true), set_id]).await;
    taken.map_err(|error| error.at(format_args!("image {to:?}")))?;
    let in_directory = method("dir_rename_image", |w| {
        w.string(from);
        w.string(to);
        w.string(&id);
    });
    if let Err(error) = tell(store, &names::DIRECTORY.into(), vec![in_directory]).await {
        // The old name stays; the first error is the one to tell.
        let _given_back = tell(store, &names::id(to), vec![Op::remove()]).await;
        return Err(error.at(format_args!("image {from:?}")));
    }
    may_be_gone(tell(store, &names::id(from), vec![Op::remove()]).await)
}

impl<S: ObjectStore> Image<S> {
    /// Gives the image another name. One that it has already is no error: somebody may have been asked for it twice.
    ///
    /// # Errors
    /// EEXIST if there is one of that name; ENOENT if the image is in the trash.
    pub async fn rename(&self, to: &str) -> Result<()> {
        match name_of(&self.store, &self.id).await? {
            (_, true) => Err(Error::from(Errno::NOENT).at("the image is in the trash")),
            (from, false) if from == to => Ok(()),
            (from, false) => rename(&self.store, &from, to).await,
        }
    }
}
