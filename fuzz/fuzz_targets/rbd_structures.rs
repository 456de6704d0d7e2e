//! Records of images and locks, and what watchers tell each other. First byte: which one; what can be read is read again from its own encoding.
#![no_main]

use blockyard_rados::encoding::{Decode, Encode, Reader, encoded};
use blockyard_rbd::format::lock::{LockInfo, LockOp, SetCookieOp};
use blockyard_rbd::format::notify::Message;
use blockyard_rbd::format::{
    ChildSpec, ObjectMap, Parent, ParentSpec, Snapshot, SnapshotInfo, SnapshotNamespace,
};
use libfuzzer_sys::fuzz_target;
use std::fmt::Debug;

fn check<T: Decode + Encode + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(value) = Reader::new("fuzzing", bytes).get::<T>() {
        let again = encoded(&value);
        assert_eq!(Reader::new("fuzzing", &again).get::<T>(), Ok(value));
    }
}

/// Written anew, a snapshot has no parent of its own.
fn check_snapshot(bytes: &[u8]) {
    if let Ok(snapshot) = Reader::new("fuzzing", bytes).get::<Snapshot>() {
        let again = encoded(&snapshot);
        let without_parent = Snapshot { parent: Parent::default(), ..snapshot };
        assert_eq!(Reader::new("fuzzing", &again).get::<Snapshot>(), Ok(without_parent));
    }
}

fn check_map(bytes: &[u8]) {
    if let Ok(map) = ObjectMap::parse(bytes) {
        let again = ObjectMap::parse(&encoded(&map)).expect("a map reads what it wrote");
        assert_eq!(again, map);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&which, bytes)) = data.split_first() else { return };
    match which % 11 {
        0 => check::<Parent>(bytes),
        1 => check::<ParentSpec>(bytes),
        2 => check::<ChildSpec>(bytes),
        3 => check_snapshot(bytes),
        4 => check::<SnapshotNamespace>(bytes),
        5 => check::<SnapshotInfo>(bytes),
        6 => check::<LockInfo>(bytes),
        7 => check::<LockOp>(bytes),
        8 => check::<SetCookieOp>(bytes),
        9 => check_map(bytes),
        _ => check::<Message>(bytes),
    }
});
