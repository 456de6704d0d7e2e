//! Names and ids of images: the objects `rbd_directory` and `rbd_id.NAME`.

use super::{Call, Method, NOTHING, text};
use crate::error::Result;
use crate::format::names;
use crate::store::Mutation;
use blockyard_rados::encoding::{Reader, Writer, encoded};
use rustix::io::Errno;
use std::collections::BTreeMap;

pub(super) const METHODS: &[(&str, Method)] = &[
    ("get_id", Method::reading(get_id)),
    ("set_id", Method::writing(set_id)),
    ("dir_get_id", Method::reading(dir_get_id)),
    ("dir_get_name", Method::reading(dir_get_name)),
    ("dir_list", Method::reading(dir_list)),
    ("dir_add_image", Method::writing(dir_add_image)),
    ("dir_remove_image", Method::writing(dir_remove_image)),
    ("dir_rename_image", Method::writing(dir_rename_image)),
    ("dir_state_assert", Method::reading(dir_state_assert)),
    ("dir_state_set", Method::writing(dir_state_set)),
];

const NAMES: &str = "name_";
const IDS: &str = "id_";
/// States of the directory (ceph: `cls_rbd_types.h`, `DirectoryState`).
const READY: u32 = 0;
const ADD_DISABLED: u32 = 1;

fn key(prefix: &str, name: &[u8]) -> Vec<u8> {
    [prefix.as_bytes(), name].concat()
}

fn is_id(id: &[u8]) -> bool {
    std::str::from_utf8(id).is_ok_and(names::is_id)
}

fn get_id(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let stored = call.read_all()?;
    let id = Reader::new("reading the id of an image", &stored).bytes();
    id.map(text).map_err(|_| Errno::IO.into())
}

fn set_id(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let size = call.check_exists()?;
    let id = call.input_bytes()?;
    if !is_id(&id) {
        return Err(Errno::INVAL.into());
    }
    if size != 0 {
        return Err(Errno::EXIST.into());
    }
    call.object.apply(Mutation::Write { offset: 0, data: text(&id).into() })?;
    Ok(NOTHING)
}

impl Call<'_> {
    /// A value that is text, which is any bytes.
    fn text_key(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some(value) = self.object.omap_get(key)? else { return Ok(None) };
        let read =
            Reader::new("reading the directory of images", &value).bytes().map(<[u8]>::to_vec);
        read.map(Some).map_err(|_| Errno::IO.into())
    }
}

fn dir_get_id(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let name = call.input_bytes()?;
    call.text_key(&key(NAMES, &name))?.map(|id| text(&id)).ok_or(Errno::NOENT.into())
}

fn dir_get_name(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let id = call.input_bytes()?;
    call.text_key(&key(IDS, &id))?.map(|name| text(&name)).ok_or(Errno::NOENT.into())
}

fn dir_list(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let (after, max): (Vec<u8>, u64) = (call.input_bytes()?, call.input()?);
    call.check_exists()?;
    let mut images = BTreeMap::new();
    let mut last = key(NAMES, &after);
    while (images.len() as u64) < max {
        let left = max - images.len() as u64;
        let page = call.object.omap_list(&last, NAMES.as_bytes(), left.min(super::PAGE))?;
        for (name, id) in &page.values {
            let id = Reader::new("reading the directory of images", id).bytes();
            let id = id.map_err(|_| Errno::IO)?.to_vec();
            images.insert(name.get(NAMES.len()..).unwrap_or_default().to_vec(), id);
        }
        match page.values.last_key_value() {
            Some((name, _)) if page.more => last = name.to_vec(),
            _ => break,
        }
    }
    let images: Vec<_> = images.into_iter().collect();
    let mut out = Writer::new();
    out.vec(&images, |w, (name, id)| {
        w.bytes(name);
        w.bytes(id);
    });
    Ok(out.into_bytes())
}

fn add(call: &mut Call<'_>, name: &[u8], id: &[u8]) -> Result<()> {
    call.set_keys([(key(NAMES, name), text(id)), (key(IDS, id), text(name))])
}

fn dir_add_image(call: &mut Call<'_>) -> Result<Vec<u8>> {
    call.object.apply(Mutation::Create { exclusive: false })?;
    let (name, id) = (call.input_bytes()?, call.input_bytes()?);
    if name.is_empty() || !is_id(&id) {
        return Err(Errno::INVAL.into());
    }
    if call.text_key(&key(NAMES, &name))?.is_some() {
        return Err(Errno::EXIST.into());
    }
    if call.text_key(&key(IDS, &id))?.is_some() {
        return Err(Errno::BADF.into());
    }
    add(call, &name, &id)?;
    Ok(NOTHING)
}

fn remove(call: &mut Call<'_>, name: &[u8], id: &[u8]) -> Result<()> {
    let (name_key, id_key) = (key(NAMES, name), key(IDS, id));
    let known_id = call.text_key(&name_key)?.ok_or(Errno::NOENT)?;
    let known_name = call.text_key(&id_key)?.ok_or(Errno::NOENT)?;
    // Somebody renames it.
    if known_id != id || known_name != name {
        return Err(Errno::STALE.into());
    }
    call.remove_key(&name_key)?;
    call.remove_key(&id_key)
}

fn dir_remove_image(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let (name, id) = (call.input_bytes()?, call.input_bytes()?);
    remove(call, &name, &id)?;
    Ok(NOTHING)
}

fn dir_rename_image(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let (from, to, id) = (call.input_bytes()?, call.input_bytes()?, call.input_bytes()?);
    if to.is_empty() || !is_id(&id) {
        return Err(Errno::INVAL.into());
    }
    // As in an OSD, where what a method has removed is there until it ends: a name is not renamed to itself.
    let is_taken = call.text_key(&key(NAMES, &to))?.is_some();
    remove(call, &from, &id)?;
    if is_taken {
        return Err(Errno::EXIST.into());
    }
    add(call, &to, &id)?;
    Ok(NOTHING)
}

fn dir_state_assert(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let state: u32 = call.input()?;
    if call.required::<u32>(b"state")? == state { Ok(NOTHING) } else { Err(Errno::NOENT.into()) }
}

fn dir_state_set(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let state: u32 = call.input()?;
    match state {
        READY => {}
        ADD_DISABLED => {
            call.check_exists()?;
            let names = call.object.omap_list(NAMES.as_bytes(), NAMES.as_bytes(), 1)?;
            if !names.values.is_empty() {
                return Err(Errno::BUSY.into());
            }
        }
        _ => return Err(Errno::INVAL.into()),
    }
    call.set_keys([(b"state".to_vec(), encoded(&state))])?;
    Ok(NOTHING)
}
