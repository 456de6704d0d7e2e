//! Images that are removed, and can be had back.
//!
//! Each of the ways into the trash and out of it has several steps, and may end between any two of them. The state of the
//! entry says which way the image goes; only the same way is gone on with, so that an image that has a name, or is about
//! to, is never removed (ceph: `src/librbd/api/Trash.cc`).

use super::{Image, ask, create, id_of, may_be_gone, method, name_of, tell};
use crate::error::{Error, Result};
use crate::format::{TrashEntry, names};
use crate::store::{ObjectStore, Op};
use blockyard_rados::encoding::{Reader, Utime};
use rustix::io::Errno;

/// Entries that are read at a time.
const PAGE: u64 = 1024;

/// An image in the trash.
///
/// # Errors
/// ENOENT if it is not there.
pub async fn entry<S: ObjectStore>(store: &S, id: &str) -> Result<TrashEntry> {
    let entry = ask(store, &names::TRASH.into(), "trash_get", |w| w.string(id)).await?;
    Ok(Reader::new("reading the trash", &entry).get()?)
}

/// All images in the trash, and their ids.
///
/// # Errors
/// Those of the store.
pub async fn list<S: ObjectStore>(store: &S) -> Result<Vec<(String, TrashEntry)>> {
    let mut entries: Vec<(String, TrashEntry)> = Vec::new();
    let object = names::TRASH.into();
    loop {
        let after = entries.last().map(|(id, _)| id.clone()).unwrap_or_default();
        let page = ask(store, &object, "trash_list", |w| {
            w.string(&after);
            w.u64(PAGE);
        });
        let page = match page.await {
            Err(error) if error.is_not_found() => return Ok(entries),
            page => page?,
        };
        let page =
            Reader::new("reading the trash", &page).vec(4, |r| Ok((r.string()?, r.get()?)))?;
        let is_last = (page.len() as u64) < PAGE;
        entries.extend(page);
        if is_last {
            return Ok(entries);
        }
    }
}

/// The id of the image that [`put`] moves: that of a name, or that of an entry with this name whose image has lost it, as
/// somebody has begun to move it, and not finished.
///
/// # Errors
/// ENOENT if there is no such image; those of the store.
pub async fn find<S: ObjectStore>(store: &S, name: &str) -> Result<String> {
    let unnamed = match id_of(store, name).await {
        Err(error) if error.is_not_found() => error,
        id => return id,
    };
    for (id, entry) in list(store).await? {
        // One that has another name by now is not what is meant.
        if entry.state == TrashEntry::MOVING
            && entry.name == name
            && name_of(store, &id).await?.0 == name
        {
            return Ok(id);
        }
    }
    Err(unnamed)
}

/// Moves an image into the trash, at a time, to be kept until another: its id. One that was moved in part is moved wholly.
///
/// # Errors
/// ENOENT if there is no such image; those of the store.
pub async fn put<S: ObjectStore>(
    store: &S,
    name: &str,
    now: Utime,
    kept_until: Utime,
) -> Result<String> {
    let id = find(store, name).await?;
    let state = TrashEntry::MOVING;
    let source = TrashEntry::USER;
    let entry = TrashEntry { source, name: name.into(), deleted: now, kept_until, state };
    let add = method("trash_add", |w| {
        w.string(&id);
        w.put(&entry);
    });
    match tell(store, &names::TRASH.into(), vec![add]).await {
        // Somebody has begun, and not finished: this, or to restore it.
        Err(error) if error.errno() == Some(Errno::EXIST) => {
            let there = entry_to(store, &id, &[TrashEntry::MOVING, TrashEntry::RESTORING]).await?;
            set_state(store, &id, TrashEntry::MOVING, there.state).await?;
        }
        added => added?,
    }
    may_be_gone(tell(store, &names::id(name), vec![Op::remove()]).await)?;
    let from_directory = method("dir_remove_image", |w| {
        w.string(name);
        w.string(&id);
    });
    may_be_gone(tell(store, &names::DIRECTORY.into(), vec![from_directory]).await)?;
    set_state(store, &id, TrashEntry::NORMAL, TrashEntry::MOVING).await?;
    Ok(id)
}

/// An entry which is in one of these states, or lies in the trash.
async fn entry_to<S: ObjectStore>(store: &S, id: &str, states: &[u8]) -> Result<TrashEntry> {
    let entry = entry(store, id).await?;
    if entry.state == TrashEntry::NORMAL || states.contains(&entry.state) {
        return Ok(entry);
    }
    let what = match entry.state {
        TrashEntry::MOVING => "was moved to the trash in part; move it again",
        TrashEntry::REMOVING => "was removed in part; remove it from the trash again",
        TrashEntry::RESTORING => "was restored in part; restore it again",
        _ => "is in a state that is not known here",
    };
    Err(Error::answer(Errno::BUSY).at(format_args!("image {:?} {what}", entry.name)))
}

async fn set_state<S: ObjectStore>(store: &S, id: &str, new: u8, expected: u8) -> Result<()> {
    let set = method("trash_state_set", |w| {
        w.string(id);
        w.u8(new);
        w.u8(expected);
    });
    tell(store, &names::TRASH.into(), vec![set]).await
}

/// Takes an image out of the trash again, under its name or another: its name.
///
/// # Errors
/// ENOENT if it is not there; EEXIST if there is an image of that name; EBUSY if it was moved or removed in part.
pub async fn restore<S: ObjectStore>(store: &S, id: &str, name: Option<&str>) -> Result<String> {
    let entry = entry_to(store, id, &[TrashEntry::RESTORING]).await?;
    let name = name.unwrap_or(&entry.name).to_owned();
    create::check_name(&name)?;
    let place = |error: Error| error.at(format_args!("image {name:?}"));
    // Before it has a name, so that it is not removed when it has one.
    set_state(store, id, TrashEntry::RESTORING, TrashEntry::NORMAL).await?;
    if let Err(error) = set_name(store, id, &name).await {
        if error.errno() == Some(Errno::EXIST) && entry.state == TrashEntry::NORMAL {
            // Nothing was done; the first error is the one to tell.
            let _stays = set_state(store, id, TrashEntry::NORMAL, TrashEntry::RESTORING).await;
        }
        return Err(place(error));
    }
    let add = method("dir_add_image", |w| {
        w.string(&name);
        w.string(id);
    });
    match tell(store, &names::DIRECTORY.into(), vec![add]).await {
        Err(error) if error.errno() == Some(Errno::EXIST) => {}
        added => added.map_err(place)?,
    }
    forget(store, id).await?;
    Ok(name)
}

/// Gives an image a name, if it has it not yet.
async fn set_name<S: ObjectStore>(store: &S, id: &str, name: &str) -> Result<()> {
    match id_of(store, name).await {
        // Somebody has begun, and not finished.
        Ok(there) if there == id => Ok(()),
        Ok(_) => Err(Errno::EXIST.into()),
        Err(error) if error.is_not_found() => {
            let set_id = method("set_id", |w| w.string(id));
            tell(store, &names::id(name), vec![Op::create(true), set_id]).await
        }
        Err(error) => Err(error),
    }
}

async fn forget<S: ObjectStore>(store: &S, id: &str) -> Result<()> {
    let remove = method("trash_remove", |w| w.string(id));
    may_be_gone(tell(store, &names::TRASH.into(), vec![remove]).await)
}

/// The name of an image that can be removed from the trash.
async fn check_removable<S: ObjectStore>(store: &S, id: &str) -> Result<String> {
    let entry = entry_to(store, id, &[TrashEntry::REMOVING]).await?;
    let (name, is_in_trash) = name_of(store, id).await?;
    if !is_in_trash {
        // Older versions restored images without saying so.
        let place = format_args!("image {name:?} was restored in part; restore it again");
        return Err(Error::answer(Errno::BUSY).at(place));
    }
    Ok(entry.name)
}

/// Removes an image in the trash for good, which nobody has, or gets meanwhile.
///
/// # Errors
/// ENOENT if it is not there; ENOTEMPTY if it has snapshots; EBUSY if it was moved or restored in part, or has a name.
pub async fn remove<S: ObjectStore>(store: &S, id: &str) -> Result<()> {
    let name = check_removable(store, id).await?;
    let place = |error: Error| error.at(format_args!("image {name:?}"));
    // One that cannot be removed can still be restored.
    let image = create::removable(store, id).await.map_err(place)?;
    set_state(store, id, TrashEntry::REMOVING, TrashEntry::NORMAL).await?;
    if let Some(mut image) = image {
        image.own().await.map_err(place)?;
        image.begin_removal().await.map_err(place)?;
        image.empty().await.map_err(place)?;
    }
    create::remove_unnamed(store, id).await.map_err(place)?;
    forget(store, id).await
}

impl<S: ObjectStore> Image<S> {
    /// Removes the image, which is owned, and in the trash, for good.
    ///
    /// # Errors
    /// As [`remove`]; EROFS if it is not owned.
    pub async fn remove_from_trash(&mut self) -> Result<()> {
        let name = check_removable(&self.store, &self.id).await?;
        let place = |error: Error| error.at(format_args!("image {name:?}"));
        self.begin_removal().await.map_err(place)?;
        set_state(&self.store, &self.id, TrashEntry::REMOVING, TrashEntry::NORMAL).await?;
        self.empty().await.map_err(place)?;
        self.disown();
        create::remove_unnamed(&self.store, &self.id).await.map_err(place)?;
        forget(&self.store, &self.id).await
    }
}
