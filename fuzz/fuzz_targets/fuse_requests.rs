//! Requests of a hostile guest: the first byte says how many bytes of data lie elsewhere, the second which protocol.
#![no_main]

use blockyard_fuse::wire::InitFlags;
use blockyard_fuse::{Caller, Protocol, Request, extension};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&[elsewhere, version], head)) = data.split_first_chunk::<2>() else { return };
    let flags = if version & 1 == 0 { InitFlags::empty() } else { InitFlags::SETXATTR_EXT };
    let protocol = Protocol { minor: 27 + u32::from(version >> 1) % 19, flags, max_write: 1 << 20 };
    let Ok(request) = Request::parse(head, elsewhere.into(), &protocol) else { return };
    let _ = extension::parse(request.extensions);
    let header = request.header;
    let caller = Caller {
        unique: header.unique,
        nodeid: header.nodeid,
        uid: header.uid,
        gid: header.gid,
        pid: header.pid,
    };
    // What came before extensions had a length cannot be written again.
    if request.extensions.len() == usize::from(header.total_extlen) * 8 {
        let mut bytes = Vec::new();
        request.operation.encode(&caller, request.extensions, &protocol, &mut bytes);
        let again = Request::parse(&bytes, elsewhere.into(), &protocol).unwrap();
        assert_eq!(again.operation, request.operation);
        assert_eq!(again.extensions, request.extensions);
    }
});
