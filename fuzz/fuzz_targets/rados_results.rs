//! What a hostile OSD may say that operations give. First byte: which operation.
#![no_main]

use blockyard_rados::osd::{
    Extents, KeyPage, NotifyAnswers, Page, Snapshots, Stat, ValuePage, values, watchers, xattrs,
};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&which, rest)) = data.split_first() else { return };
    let rest = Bytes::copy_from_slice(rest);
    match which % 10 {
        0 => drop(Stat::parse(&rest)),
        1 => {
            if let Ok(extents) = Extents::parse(&rest) {
                let total: u64 = extents.ranges.iter().map(|range| range.1).sum();
                assert_eq!(total, extents.data.len() as u64);
            }
        }
        2 => drop(KeyPage::parse(&rest)),
        3 => drop(ValuePage::parse(&rest)),
        4 => drop(values(&rest)),
        5 => drop(xattrs(&rest)),
        6 => drop(watchers(&rest)),
        7 => drop(Snapshots::parse(&rest)),
        8 => drop(Page::parse(&rest)),
        _ => drop(NotifyAnswers::parse(&rest)),
    }
});
