//! The parent of a clone, in the clone's header.

use super::{Call, Method, NOTHING};
use crate::error::Result;
use crate::format::{Features, OpFeatures, Parent, ParentSpec};
use crate::store::NOSNAP;
use blockyard_rados::encoding::{Writer, encoded};
use rustix::io::Errno;

pub(super) const METHODS: &[(&str, Method)] = &[
    ("parent_get", Method::reading(parent_get)),
    ("parent_overlap_get", Method::reading(parent_overlap_get)),
    ("parent_attach", Method::writing(parent_attach)),
    ("parent_detach", Method::writing(|call| detach(call, false))),
    ("get_parent", Method::reading(get_parent)),
    ("set_parent", Method::writing(set_parent)),
    ("remove_parent", Method::writing(|call| detach(call, true))),
];

fn parent_get(call: &mut Call<'_>) -> Result<Vec<u8>> {
    call.check_exists()?;
    let mut spec = ParentSpec::default();
    if call.has_feature(Features::LAYERING)? {
        let parent: Option<Parent> = call.key(b"parent")?;
        spec = match parent {
            Some(parent) => parent.spec,
            // Records of old have it in the snapshots.
            None => {
                let of_snapshots =
                    call.snapshots()?.into_iter().map(|snapshot| snapshot.parent.spec);
                of_snapshots.filter(ParentSpec::exists).last().unwrap_or_default()
            }
        };
    }
    Ok(encoded(&spec))
}

fn parent_overlap_get(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let id: u64 = call.input()?;
    call.check_exists()?;
    let mut overlap = None;
    if call.has_feature(Features::LAYERING)? {
        overlap = match id {
            NOSNAP => call.key::<Parent>(b"parent")?.and_then(|parent| parent.overlap),
            id => {
                let snapshot = call.snapshot(id)?;
                let of_old = Some(snapshot.parent).filter(|parent| parent.spec.exists());
                snapshot.parent_overlap.or(of_old.and_then(|parent| parent.overlap))
            }
        };
    }
    let mut out = Writer::new();
    crate::format::put_optional(&mut out, overlap);
    Ok(out.into_bytes())
}

fn parent_attach(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let (spec, overlap) = (call.input()?, call.input()?);
    let again = call.newer_input(0_u8)? != 0;
    attach(call, spec, overlap, again)
}

fn attach(call: &mut Call<'_>, spec: ParentSpec, overlap: u64, again: bool) -> Result<Vec<u8>> {
    call.check_exists()?;
    call.require_feature(Features::LAYERING)?;
    if !spec.exists() || overlap == 0 {
        return Err(Errno::INVAL.into());
    }
    let known: Option<Parent> = call.key(b"parent")?;
    // One that is only the parent of snapshots can be attached again.
    if known.is_some_and(|known| known.overlap.is_some() || known.spec != spec) && !again {
        return Err(Errno::EXIST.into());
    }
    let size: u64 = call.required(b"size")?;
    call.set_key(b"parent", &Parent { spec, overlap: Some(overlap.min(size)) })?;
    Ok(NOTHING)
}

fn detach(call: &mut Call<'_>, is_old: bool) -> Result<Vec<u8>> {
    call.check_exists()?;
    call.require_feature(Features::LAYERING)?;
    let deep = call.has_feature(Features::DEEP_FLATTEN)?;
    let mut parent: Parent = call.required(b"parent")?;
    if is_old && !parent.spec.namespace.is_empty() {
        return Err(Errno::XDEV.into());
    }
    if parent.overlap.is_none() {
        return Err(Errno::NOENT.into());
    }
    let mut snapshots_need_it = false;
    for mut snapshot in call.snapshots()? {
        if snapshot.parent.spec.pool < 0 && snapshot.parent_overlap.is_none() {
            continue;
        }
        if deep {
            snapshot.parent = Parent::default();
            snapshot.parent_overlap = None;
            call.write_snapshot(snapshot)?;
        } else {
            snapshots_need_it = true;
        }
    }
    if snapshots_need_it {
        parent.overlap = None;
        call.set_key(b"parent", &parent)?;
    } else {
        call.remove_key(b"parent")?;
        call.set_op_features(OpFeatures::empty(), OpFeatures::CLONE_CHILD)?;
    }
    Ok(NOTHING)
}

fn get_parent(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let id: u64 = call.input()?;
    call.check_exists()?;
    let mut parent = Parent::default();
    if call.has_feature(Features::LAYERING)? {
        parent = call.key(b"parent")?.unwrap_or_default();
        if !parent.spec.namespace.is_empty() {
            return Err(Errno::XDEV.into());
        }
        if id != NOSNAP {
            parent = of_snapshot(call, id, parent)?;
        }
    }
    let mut out = Writer::new();
    out.i64(parent.spec.pool);
    out.string(&parent.spec.image);
    out.u64(parent.spec.snapshot);
    out.u64(parent.overlap.unwrap_or_default());
    Ok(out.into_bytes())
}

fn of_snapshot(call: &mut Call<'_>, id: u64, parent: Parent) -> Result<Parent> {
    let key = crate::format::names::snapshot_key(id);
    let snapshot: crate::format::Snapshot = call.key(key.as_bytes())?.unwrap_or_default();
    if snapshot.parent.spec.exists() {
        return Ok(snapshot.parent);
    }
    match snapshot.parent_overlap {
        Some(_) if !parent.spec.exists() => Err(Errno::INVAL.into()),
        Some(overlap) => Ok(Parent { overlap: Some(overlap), ..parent }),
        None => Ok(Parent::default()),
    }
}

fn set_parent(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let (pool, image, snapshot) = (call.input()?, call.input()?, call.input()?);
    let spec = ParentSpec { pool, namespace: String::new(), image, snapshot };
    let overlap = call.input()?;
    attach(call, spec, overlap, false)
}
