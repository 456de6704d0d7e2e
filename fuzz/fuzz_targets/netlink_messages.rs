//! Whatever a netlink datagram holds, its messages and their attributes lie within it.
#![no_main]

use blockyard_export_kernel_nbd::genl::{Attributes, Message, messages};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut payload = 0;
    for message in messages(bytes) {
        if let Message::Family { attributes, .. } = message {
            let _ = (attributes.u8(1), attributes.u16(1), attributes.u32(1), attributes.text(10));
            for (kind, value) in attributes {
                payload += value.len();
                let within: usize = Attributes::within(value).map(|(_, value)| value.len()).sum();
                assert!(within <= value.len());
                assert!(attributes.all(kind).count() > 0);
            }
        }
    }
    assert!(payload <= bytes.len());
});
