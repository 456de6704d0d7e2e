//! The clones of snapshots: in the parent's header (version 2), or in an object of their pool (version 1).

use super::{Call, Method, NOTHING};
use crate::error::Result;
use crate::format::{ChildSpec, OpFeatures, SnapshotNamespace, names};
use blockyard_rados::encoding::{Decode, Encode, Reader, Writer, encoded};
use rustix::io::Errno;
use std::collections::BTreeSet;

pub(super) const METHODS: &[(&str, Method)] = &[
    ("child_attach", Method::writing(child_attach)),
    ("child_detach", Method::writing(child_detach)),
    ("children_list", Method::reading(children_list)),
    ("add_child", Method::writing(add_child)),
    ("remove_child", Method::writing(remove_child)),
    ("get_children", Method::reading(get_children)),
];

/// A set: a count, then the elements in order.
struct Set<T>(BTreeSet<T>);

impl<T> Default for Set<T> {
    fn default() -> Self {
        Self(BTreeSet::new())
    }
}

impl<T: Encode> Encode for Set<T> {
    fn encode(&self, writer: &mut Writer) {
        let elements: Vec<&T> = self.0.iter().collect();
        writer.vec(&elements, |w, element| w.put(*element));
    }
}

impl<T: Decode + Ord> Decode for Set<T> {
    fn decode(reader: &mut Reader<'_>) -> blockyard_rados::Result<Self> {
        Ok(Self(reader.vec(4, T::decode)?.into_iter().collect()))
    }
}

/// An image's id.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Id(String);

impl Encode for Id {
    fn encode(&self, writer: &mut Writer) {
        writer.string(&self.0);
    }
}

impl Decode for Id {
    fn decode(reader: &mut Reader<'_>) -> blockyard_rados::Result<Self> {
        reader.string().map(Self)
    }
}

fn child_attach(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let (id, child): (u64, ChildSpec) = (call.input()?, call.input()?);
    let mut snapshot = call.snapshot(id)?;
    if matches!(snapshot.namespace, SnapshotNamespace::Trash { .. }) {
        return Err(Errno::NOENT.into());
    }
    let key = names::snapshot_children_key(id);
    let mut children: Set<ChildSpec> = call.key(key.as_bytes())?.unwrap_or_default();
    if !children.0.insert(child) {
        return Err(Errno::EXIST.into());
    }
    call.set_key(key.as_bytes(), &children)?;
    snapshot.child_count = snapshot.child_count.saturating_add(1);
    call.write_snapshot(snapshot)?;
    call.set_op_features(OpFeatures::CLONE_PARENT, OpFeatures::CLONE_PARENT)?;
    Ok(NOTHING)
}

fn child_detach(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let (id, child): (u64, ChildSpec) = (call.input()?, call.input()?);
    let mut snapshot = call.snapshot(id)?;
    let key = names::snapshot_children_key(id);
    let mut children: Set<ChildSpec> = call.key(key.as_bytes())?.unwrap_or_default();
    if u64::from(snapshot.child_count) != children.0.len() as u64 {
        return Err(Errno::INVAL.into());
    }
    if !children.0.remove(&child) {
        return Err(Errno::NOENT.into());
    }
    let is_last = children.0.is_empty();
    if is_last {
        call.remove_key(key.as_bytes())?;
    } else {
        call.set_key(key.as_bytes(), &children)?;
    }
    snapshot.child_count = snapshot.child_count.saturating_sub(1);
    call.write_snapshot(snapshot)?;
    let others_have_some =
        call.snapshots()?.iter().any(|other| other.id != id && other.child_count > 0);
    if is_last && !others_have_some {
        call.set_op_features(OpFeatures::empty(), OpFeatures::CLONE_PARENT)?;
    }
    Ok(NOTHING)
}

fn children_list(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let id: u64 = call.input()?;
    call.snapshot(id)?;
    let key = names::snapshot_children_key(id);
    let children: Set<ChildSpec> = call.required(key.as_bytes())?;
    Ok(encoded(&children))
}

/// The key of a parent in `rbd_children`: the parent, encoded.
fn parent_key(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let (pool, image, snapshot): (u64, Vec<u8>, u64) =
        (call.input()?, call.input_bytes()?, call.input()?);
    let mut key = Writer::new();
    key.u64(pool);
    key.bytes(&image);
    key.u64(snapshot);
    Ok(key.into_bytes())
}

fn add_child(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let key = parent_key(call)?;
    let child = call.input()?;
    let mut children: Set<Id> = call.key(&key)?.unwrap_or_default();
    if !children.0.insert(child) {
        return Err(Errno::EXIST.into());
    }
    call.set_key(&key, &children)?;
    Ok(NOTHING)
}

fn remove_child(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let key = parent_key(call)?;
    let child: Id = call.input()?;
    let mut children: Set<Id> = call.required(&key)?;
    if !children.0.remove(&child) {
        return Err(Errno::NOENT.into());
    }
    if children.0.is_empty() {
        call.remove_key(&key)?;
    } else {
        call.set_key(&key, &children)?;
    }
    Ok(NOTHING)
}

fn get_children(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let key = parent_key(call)?;
    let children: Set<Id> = call.required(&key)?;
    Ok(encoded(&children))
}
