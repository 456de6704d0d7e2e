//! Operations of a store as OSDs know them, and their results.

use crate::error::{Error, ErrorKind, Result};
use crate::store::{
    Answer, Extents, Guard, Mutation, Op, Query, Snapshots, Stat, ValuePage, Watcher,
};
use blockyard_rados::osd::{self, OpCode, OpFlags, OpResult};

/// As an OSD takes it.
pub(super) fn op(op: Op) -> Result<osd::Op> {
    Ok(match op {
        Op::Guard(Guard::Exists) => osd::Op::stat(),
        Op::Guard(Guard::CompareExtent { offset, data }) => osd::Op::compare_extent(offset, data),
        Op::Query(query) => self::query(&query),
        Op::Mutate(mutation) => self::mutation(mutation),
        Op::Exec { class, method, input } => osd::Op::call(class, method, &input)?,
    })
}

fn query(query: &Query) -> osd::Op {
    match query {
        Query::Read { offset, length } => osd::Op::read(*offset, *length),
        Query::SparseRead { offset, length } => osd::Op::sparse_read(*offset, *length),
        Query::Stat => osd::Op::stat(),
        Query::Xattr(name) => osd::Op::get_xattr(name),
        Query::OmapGet(keys) => osd::Op::omap_get_vals_by_keys(keys),
        Query::OmapList { after, prefix, max } => osd::Op::omap_get_vals(after, *max, prefix),
        Query::Snapshots => osd::Op::list_snapshots(),
        Query::Watchers => osd::Op::list_watchers(),
    }
}

fn mutation(mutation: Mutation) -> osd::Op {
    match mutation {
        Mutation::Create { exclusive } => osd::Op::create(exclusive),
        Mutation::Write { offset, data } => osd::Op::write(offset, data),
        Mutation::WriteFull(data) => osd::Op::write_full(data),
        Mutation::WriteSame { offset, length, data } => osd::Op::write_same(offset, length, data),
        Mutation::Zero { offset, length } => osd::Op::zero(offset, length),
        Mutation::Truncate { size } => osd::Op::truncate(size),
        Mutation::Remove => osd::Op::delete(),
        Mutation::Rollback { snap } => osd::Op::rollback(snap),
        Mutation::SetXattr(name, value) => osd::Op::set_xattr(&name, &value),
        Mutation::RemoveXattr(name) => osd::Op::remove_xattr(&name),
        Mutation::OmapSet(pairs) => osd::Op::omap_set(&pairs),
        Mutation::OmapRemove(keys) => osd::Op::omap_remove(&keys),
        Mutation::OmapClear => osd::Op::omap_clear(),
    }
}

/// What an operation gave.
pub(super) fn answer(result: OpResult) -> Result<Answer> {
    let data = result.data;
    Ok(match result.code {
        OpCode::READ | OpCode::GET_XATTR | OpCode::CALL => Answer::Data(data),
        OpCode::SPARSE_READ => Answer::Extents(Extents::parse(&data)?),
        OpCode::STAT if !data.is_empty() => Answer::Stat(Stat::parse(&data)?),
        OpCode::OMAP_GET_VALS_BY_KEYS => {
            Answer::Omap(ValuePage { values: osd::values(&data)?, more: false })
        }
        OpCode::OMAP_GET_VALS => Answer::Omap(ValuePage::parse(&data)?),
        OpCode::LIST_SNAPS => Answer::Snapshots(Snapshots::parse(&data)?),
        OpCode::LIST_WATCHERS => Answer::Watchers(watchers(&data)?),
        _ => Answer::Done,
    })
}

fn watchers(data: &[u8]) -> Result<Vec<Watcher>> {
    Ok(osd::watchers(data)?)
}

/// Only data waits while the cluster is full. What frees space, and what changes headers, maps and locks, goes on, and fails
/// where it would need more: whoever waits for that may be in the way of what frees some (ceph: `librbd/io/ObjectRequest.cc`,
/// `librbd/ImageCtx.cc`, `set_pool_full_try`).
pub(super) fn flags(ops: &[Op]) -> OpFlags {
    let goes_on = |op: &Op| match op {
        Op::Guard(_) | Op::Query(_) => true,
        Op::Mutate(mutation) => {
            matches!(
                mutation,
                Mutation::Remove
                    | Mutation::Truncate { .. }
                    | Mutation::Zero { .. }
                    | Mutation::OmapRemove(_)
                    | Mutation::OmapClear
                    | Mutation::RemoveXattr(_)
                    // Names, headers and maps; data is made without it, and written in parts.
                    | Mutation::Create { exclusive: true }
                    | Mutation::WriteFull(_)
            )
        }
        Op::Exec { class, method, .. } => match *class {
            "lock" => true,
            "rbd" => *method != "copyup",
            _ => false,
        },
    };
    if ops.iter().all(goes_on) { OpFlags::FULL_TRY } else { OpFlags::empty() }
}

/// What an OSD refused, as this crate says it.
pub(super) fn error(error: blockyard_rados::Error) -> Error {
    if let blockyard_rados::ErrorKind::Osd { errno } = error.kind()
        && let Some(at) = osd::mismatch(errno.saturating_neg())
    {
        return ErrorKind::Mismatch { at }.into();
    }
    error.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn only_data_waits_while_the_cluster_is_full() {
        let full_try = |ops: &[Op]| flags(ops) == OpFlags::FULL_TRY;
        assert!(full_try(&[Op::remove()]));
        assert!(full_try(&[Op::assert_exists(), Op::zero(0, 5)]));
        assert!(full_try(&[Op::exec("lock", "unlock", Bytes::new())]));
        assert!(!full_try(&[Op::write(0, Bytes::from_static(b"x"))]));
        assert!(!full_try(&[Op::exec("rbd", "copyup", Bytes::new())]));
        assert!(!full_try(&[Op::create(false)]));
        assert!(!full_try(&[Op::create(false), Op::write(0, Bytes::from_static(b"x"))]));
        // The name of an image, its header, the map of a snapshot.
        let set_id = Op::exec("rbd", "set_id", Bytes::new());
        assert!(full_try(&[Op::create(true), set_id]));
        assert!(full_try(&[Op::write_full(Bytes::from_static(b"map"))]));
        // Whoever makes a snapshot has the image alone, and whoever removes one or a clone frees space.
        for method in [
            "snapshot_add",
            "snapshot_rename",
            "object_map_snap_add",
            "object_map_snap_remove",
            "object_map_update",
            "object_map_resize",
            "set_size",
            "set_flags",
            "set_protection_status",
            "snapshot_trash_add",
            "snapshot_remove",
            "parent_detach",
            "child_detach",
            "remove_child",
            "dir_remove_image",
            "dir_rename_image",
            "trash_add",
            "trash_state_set",
            "trash_remove",
            "op_features_set",
            "metadata_set",
        ] {
            assert!(full_try(&[Op::exec("rbd", method, Bytes::new())]), "{method}");
        }
    }

    #[test]
    fn operations_have_the_codes_of_osds() {
        for (ours, code) in [
            (Op::assert_exists(), OpCode::STAT),
            (Op::compare_extent(0, Bytes::new()), OpCode::CMPEXT),
            (Op::sparse_read(0, 1), OpCode::SPARSE_READ),
            (Query::Watchers.into(), OpCode::LIST_WATCHERS),
            (Op::truncate(3), OpCode::TRUNCATE),
            (Op::rollback(3), OpCode::ROLLBACK),
            (Op::exec("rbd", "get_id", Bytes::new()), OpCode::CALL),
        ] {
            assert_eq!(op(ours).unwrap().code, code);
        }
    }
}
