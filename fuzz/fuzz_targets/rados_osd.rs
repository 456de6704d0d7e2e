//! Messages of a hostile OSD. First byte: which one; then the version, and where data begins.
#![no_main]

use blockyard_rados::msgr::Message;
use blockyard_rados::osd::{Backoff, Reply, WatchNotify};
use libfuzzer_sys::fuzz_target;

const OP_REPLY: u16 = 43;
const WATCH_NOTIFY: u16 = 44;
const BACKOFF: u16 = 61;

fuzz_target!(|data: &[u8]| {
    let Some((&[which, version, cut], bytes)) = data.split_first_chunk::<3>() else { return };
    let (front, data) = bytes.split_at(bytes.len().saturating_sub(cut.into()));
    let message = |kind| Message {
        data: data.to_vec().into(),
        ..Message::new(kind, version.into(), 1, front.to_vec())
    };
    match which % 3 {
        0 => {
            if let Ok(reply) = Reply::parse(&message(OP_REPLY)) {
                let given: usize = reply.ops.iter().map(|op| op.data.len()).sum();
                assert!(given <= data.len());
            }
        }
        1 => {
            if let Ok(told) = WatchNotify::parse(&message(WATCH_NOTIFY)) {
                assert_eq!(WatchNotify::parse(&told.message()), Ok(told));
            }
        }
        _ => {
            if let Ok(backoff) = Backoff::parse(&message(BACKOFF)) {
                assert_eq!(Backoff::parse(&backoff.message()).as_ref(), Ok(&backoff));
                assert!(backoff.contains(&backoff.begin) || backoff.begin.max);
            }
        }
    }
});
