//! Removed images that can be had back: the object `rbd_trash`.

use super::{Call, Method, NOTHING};
use crate::error::Result;
use crate::format::TrashEntry;
use crate::store::Mutation;
use blockyard_rados::encoding::{Reader, Writer, encoded};
use rustix::io::Errno;

pub(super) const METHODS: &[(&str, Method)] = &[
    ("trash_add", Method::writing(add)),
    ("trash_remove", Method::writing(remove)),
    ("trash_list", Method::reading(list)),
    ("trash_get", Method::reading(get)),
    ("trash_state_set", Method::writing(state_set)),
];

const PREFIX: &str = "id_";

fn key(id: &[u8]) -> Vec<u8> {
    [PREFIX.as_bytes(), id].concat()
}

fn add(call: &mut Call<'_>) -> Result<Vec<u8>> {
    call.object.apply(Mutation::Create { exclusive: false })?;
    let (id, entry): (Vec<u8>, TrashEntry) = (call.input_bytes()?, call.input()?);
    if call.object.omap_get(&key(&id))?.is_some() {
        return Err(Errno::EXIST.into());
    }
    call.set_key(&key(&id), &entry)?;
    Ok(NOTHING)
}

fn remove(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let id = call.input_bytes()?;
    call.required::<TrashEntry>(&key(&id))?;
    call.remove_key(&key(&id))?;
    Ok(NOTHING)
}

fn list(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let (after, max): (Vec<u8>, u64) = (call.input_bytes()?, call.input()?);
    call.check_exists()?;
    let page = call.object.omap_list(&key(&after), PREFIX.as_bytes(), max)?;
    let mut entries = Vec::new();
    for (key, value) in &page.values {
        let entry: TrashEntry =
            Reader::new("reading the trash", value).get().map_err(|_| Errno::IO)?;
        entries.push((key.get(PREFIX.len()..).unwrap_or_default(), entry));
    }
    let mut out = Writer::new();
    out.vec(&entries, |w, (id, entry)| {
        w.bytes(id);
        w.put(entry);
    });
    Ok(out.into_bytes())
}

fn get(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let id = call.input_bytes()?;
    Ok(encoded(&call.required::<TrashEntry>(&key(&id))?))
}

fn state_set(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let (id, new, expected): (Vec<u8>, u8, u8) =
        (call.input_bytes()?, call.input()?, call.input()?);
    let mut entry: TrashEntry = call.required(&key(&id))?;
    if entry.state == new {
        return Ok(NOTHING);
    }
    if entry.state != expected {
        return Err(Errno::STALE.into());
    }
    entry.state = new;
    call.set_key(&key(&id), &entry)?;
    Ok(NOTHING)
}
