//! Ceph's format of images (ceph: `src/include/rbd_types.h`, `src/cls/rbd/cls_rbd_types.h`, `src/cls/rbd/cls_rbd.h`).
//!
//! An image is some objects: `rbd_id.NAME` has its id, `rbd_header.ID` what it is, as keys and values; `rbd_directory` has all
//! names and ids; `rbd_data.ID.NUMBER` have the bytes; `rbd_object_map.ID` says which of those there are.

pub mod features;
pub mod lock;
pub mod names;
pub mod notify;
mod object_map;
mod parent;
mod snapshot;
mod striping;
mod trash;

pub use features::{Features, ImageFlags, OpFeatures};
pub use object_map::{MAX_OBJECTS, ObjectMap, ObjectState};
pub use parent::{ChildSpec, Parent, ParentSpec};
pub use snapshot::{Protection, Snapshot, SnapshotInfo, SnapshotNamespace};
pub use striping::{Layout, MAX_ORDER, MIN_ORDER, ObjectExtent};
pub use trash::TrashEntry;

use blockyard_rados::Result;
use blockyard_rados::encoding::{Reader, Writer};

/// Takes a number that may be missing (`std::optional`): a byte that says so, then the number.
pub(crate) fn optional(reader: &mut Reader<'_>) -> Result<Option<u64>> {
    Ok(if reader.bool()? { Some(reader.u64()?) } else { None })
}

/// Appends a number that may be missing.
pub(crate) fn put_optional(writer: &mut Writer, value: Option<u64>) {
    writer.bool(value.is_some());
    if let Some(value) = value {
        writer.u64(value);
    }
}
