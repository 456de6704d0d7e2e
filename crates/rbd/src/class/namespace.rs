//! The namespaces of a pool that may have images: the object `rbd_namespace`.

use super::{Call, Method, NOTHING};
use crate::error::Result;
use crate::store::Mutation;
use blockyard_rados::encoding::Writer;
use rustix::io::Errno;

pub(super) const METHODS: &[(&str, Method)] = &[
    ("namespace_add", Method::writing(add)),
    ("namespace_remove", Method::writing(remove)),
    ("namespace_list", Method::reading(list)),
];

const PREFIX: &str = "name_";

fn key(name: &[u8]) -> Vec<u8> {
    [PREFIX.as_bytes(), name].concat()
}

fn add(call: &mut Call<'_>) -> Result<Vec<u8>> {
    call.object.apply(Mutation::Create { exclusive: false })?;
    let name = call.input_bytes()?;
    if call.object.omap_get(&key(&name))?.is_some() {
        return Err(Errno::EXIST.into());
    }
    call.set_keys([(key(&name), Vec::new())])?;
    Ok(NOTHING)
}

fn remove(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let name = call.input_bytes()?;
    call.object.omap_get(&key(&name))?.ok_or(Errno::NOENT)?;
    call.remove_key(&key(&name))?;
    Ok(NOTHING)
}

fn list(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let (after, max): (Vec<u8>, u64) = (call.input_bytes()?, call.input()?);
    call.check_exists()?;
    let page = call.object.omap_list(&key(&after), PREFIX.as_bytes(), max)?;
    let names: Vec<_> = page.values.keys().collect();
    let mut out = Writer::new();
    out.vec(&names, |w, key| w.bytes(key.get(PREFIX.len()..).unwrap_or_default()));
    Ok(out.into_bytes())
}
