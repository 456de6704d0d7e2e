//! Images that are removed, and can be had back.

use super::{ask, id_of, may_be_gone, method, tell};
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

/// Moves an image into the trash, at a time, to be kept until another: its id.
///
/// # Errors
/// ENOENT if there is no such image; those of the store.
pub async fn put<S: ObjectStore>(
    store: &S,
    name: &str,
    now: Utime,
    kept_until: Utime,
) -> Result<String> {
    let id = id_of(store, name).await?;
    let state = TrashEntry::MOVING;
    let source = TrashEntry::USER;
    let entry = TrashEntry { source, name: name.into(), deleted: now, kept_until, state };
    let add = method("trash_add", |w| {
        w.string(&id);
        w.put(&entry);
    });
    match tell(store, &names::TRASH.into(), vec![add]).await {
        // Somebody has begun, and not finished.
        Err(error) if error.errno() == Some(Errno::EXIST) => {}
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
/// ENOENT if it is not there; EEXIST if there is an image of that name.
pub async fn restore<S: ObjectStore>(store: &S, id: &str, name: Option<&str>) -> Result<String> {
    let entry = entry(store, id).await?;
    let name = name.unwrap_or(&entry.name).to_owned();
    super::create::check_name(&name)?;
    let place = |error: Error| error.at(format_args!("image {name:?}"));
    match id_of(store, &name).await {
        // Somebody has begun, and not finished.
        Ok(there) if there == id => {}
        Ok(_) => return Err(place(Errno::EXIST.into())),
        Err(error) if error.is_not_found() => {
            let set_id = method("set_id", |w| w.string(id));
            let named = tell(store, &names::id(&name), vec![Op::create(true), set_id]).await;
            named.map_err(place)?;
        }
        Err(error) => return Err(error),
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

async fn forget<S: ObjectStore>(store: &S, id: &str) -> Result<()> {
    let remove = method("trash_remove", |w| w.string(id));
    may_be_gone(tell(store, &names::TRASH.into(), vec![remove]).await)
}

/// Removes an image in the trash for good.
///
/// # Errors
/// ENOENT if it is not there; ENOTEMPTY if it has snapshots.
pub async fn remove<S: ObjectStore>(store: &S, id: &str) -> Result<()> {
    let entry = entry(store, id).await?;
    super::create::remove_by_id(store, id)
        .await
        .map_err(|error| error.at(format_args!("image {:?}", entry.name)))?;
    forget(store, id).await
}
