//! Encoded structures. First byte: which one; what can be read is read again from its own encoding.
#![no_main]

use blockyard_rados::encoding::{
    Decode, Encode, EntityAddr, EntityAddrs, Hobject, ObjectLocator, PgId, PgShard, Reader,
    RequestId, encoded,
};
use libfuzzer_sys::fuzz_target;
use std::fmt::Debug;

fn check<T: Decode + Encode + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(value) = Reader::new("fuzzing", bytes).get::<T>() {
        let again = encoded(&value);
        assert_eq!(Reader::new("fuzzing", &again).get::<T>(), Ok(value));
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&which, bytes)) = data.split_first() else { return };
    match which % 7 {
        0 => check::<EntityAddr>(bytes),
        1 => check::<EntityAddrs>(bytes),
        2 => check::<Hobject>(bytes),
        3 => check::<ObjectLocator>(bytes),
        4 => check::<PgId>(bytes),
        5 => check::<PgShard>(bytes),
        _ => check::<RequestId>(bytes),
    }
});
