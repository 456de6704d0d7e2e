//! Names of objects and keys.

use blockyard_rados::encoding::ObjectName;

/// The object with all names and ids.
pub const DIRECTORY: &str = "rbd_directory";
/// The object that pools with images have, which says that they may.
pub const INFO: &str = "rbd_info";
/// The object with the clones of snapshots (version 1).
pub const CHILDREN: &str = "rbd_children";
/// The object with removed images that can be had back.
pub const TRASH: &str = "rbd_trash";
/// The object with the pool's namespaces.
pub const NAMESPACE: &str = "rbd_namespace";
/// The name of an image's lock.
pub const LOCK: &str = "rbd_lock";
/// The tag of locks that clients take by themselves.
pub const LOCK_TAG: &str = "internal";
/// In front of the number of a watch, which is the cookie of such a lock.
pub const LOCK_COOKIE: &str = "auto ";

/// The object with the id of an image.
#[must_use]
pub fn id(name: &str) -> ObjectName {
    format!("rbd_id.{name}").as_str().into()
}

/// The object that says what an image is.
#[must_use]
pub fn header(id: &str) -> ObjectName {
    format!("rbd_header.{id}").as_str().into()
}

/// What the names of an image's data start with, which its header says. Data in another pool has the number of the
/// image's pool in it, so that images of several pools do not meet there.
#[must_use]
pub fn data_prefix(id: &str, image_pool_of_data_elsewhere: Option<i64>) -> String {
    match image_pool_of_data_elsewhere {
        None => format!("rbd_data.{id}"),
        Some(pool) => format!("rbd_data.{pool}.{id}"),
    }
}

/// An object with data.
#[must_use]
pub fn data(prefix: &str, number: u64) -> ObjectName {
    format!("{prefix}.{number:016x}").as_str().into()
}

/// The number of an object with data; `None` if it is none of the prefix.
#[must_use]
pub fn data_number(prefix: &str, object: &[u8]) -> Option<u64> {
    let digits = object.strip_prefix(prefix.as_bytes())?.strip_prefix(b".")?;
    let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok().filter(|number| format!("{number:016x}") == digits)
}

/// The map of the objects of an image, or of a snapshot of it.
#[must_use]
pub fn object_map(id: &str, snapshot: Option<u64>) -> ObjectName {
    match snapshot {
        None => format!("rbd_object_map.{id}"),
        Some(snapshot) => format!("rbd_object_map.{id}.{snapshot:016x}"),
    }
    .as_str()
    .into()
}

/// The header's key of a snapshot.
#[must_use]
pub fn snapshot_key(snapshot: u64) -> String {
    format!("{SNAPSHOT_KEYS}{snapshot:016x}")
}

/// In front of the keys of snapshots.
pub const SNAPSHOT_KEYS: &str = "snapshot_";

/// The header's key of a snapshot's clones.
#[must_use]
pub fn snapshot_children_key(snapshot: u64) -> String {
    format!("snap_children_{snapshot:016x}")
}

/// Whether it can be an id (ceph: `cls_rbd.cc`, `is_valid_id`).
#[must_use]
pub fn is_id(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_ceph() {
        let text = |name: &ObjectName| String::from_utf8(name.to_vec()).unwrap();
        assert_eq!(text(&id("a b")), "rbd_id.a b");
        assert_eq!(text(&header("10ab")), "rbd_header.10ab");
        assert_eq!(text(&data(&data_prefix("10ab", None), 258)), "rbd_data.10ab.0000000000000102");
        assert_eq!(data_prefix("10ab", Some(3)), "rbd_data.3.10ab");
        assert_eq!(text(&object_map("10ab", None)), "rbd_object_map.10ab");
        assert_eq!(text(&object_map("10ab", Some(20))), "rbd_object_map.10ab.0000000000000014");
        assert_eq!(snapshot_key(20), "snapshot_0000000000000014");
        assert!(is_id("10abZ") && !is_id("") && !is_id("a_b"));
    }

    #[test]
    fn only_names_of_data_have_numbers() {
        let number = |name: &str| data_number("rbd_data.1", name.as_bytes());
        assert_eq!(number("rbd_data.1.00000000000000ff"), Some(255));
        for other in [
            "rbd_data.1.ff",
            "rbd_data.10.00000000000000ff",
            "rbd_data.1.00000000000000FF",
            "rbd_data.1.+0000000000000ff",
        ] {
            assert_eq!(number(other), None, "{other}");
        }
    }
}
