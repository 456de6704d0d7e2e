//! What users note down about an image (`image-meta`).

use super::{Call, Method, NOTHING};
use crate::error::Result;
use blockyard_rados::encoding::Writer;
use rustix::io::Errno;
use std::collections::BTreeMap;

pub(super) const METHODS: &[(&str, Method)] = &[
    ("metadata_list", Method::reading(list)),
    ("metadata_get", Method::reading(get)),
    ("metadata_set", Method::writing(set)),
    ("metadata_remove", Method::writing(remove)),
];

const PREFIX: &str = "metadata_";

fn key(name: &[u8]) -> Vec<u8> {
    [PREFIX.as_bytes(), name].concat()
}

fn list(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let (after, max): (Vec<u8>, u64) = (call.input_bytes()?, call.input()?);
    let max = if max == 0 { super::PAGE } else { max };
    let page = call.object.omap_list(&key(&after), PREFIX.as_bytes(), max)?;
    let pairs: Vec<_> = page.values.iter().collect();
    let mut out = Writer::new();
    out.vec(&pairs, |w, (key, value)| {
        w.bytes(key.get(PREFIX.len()..).unwrap_or_default());
        w.bytes(value);
    });
    Ok(out.into_bytes())
}

fn get(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let name = call.input_bytes()?;
    let value = call.object.omap_get(&key(&name))?;
    value.map(|value| super::text(&value)).ok_or(Errno::NOENT.into())
}

fn set(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let pairs = call.reader.map(4 + 4, |r| Ok((key(r.bytes()?), r.bytes()?.to_vec())));
    let pairs: BTreeMap<_, _> = pairs.map_err(super::invalid)?;
    call.set_keys(pairs)?;
    Ok(NOTHING)
}

fn remove(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let name = call.input_bytes()?;
    call.remove_key(&key(&name))?;
    Ok(NOTHING)
}
