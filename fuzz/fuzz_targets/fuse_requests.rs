//! Requests of a hostile guest: the first byte says how many bytes of data lie elsewhere, the second which protocol.
#![no_main]

use blockyard_fuse::wire::InitFlags;
use blockyard_fuse::{Caller, Limits, Protocol, Request, extension};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&[elsewhere, version], head)) = data.split_first_chunk::<2>() else { return };
    let with = |bit: u8, flag| if version & bit == 0 { InitFlags::empty() } else { flag };
    let flags = with(1, InitFlags::SETXATTR_EXT | InitFlags::EXPORT_SUPPORT)
        | with(2, InitFlags::SECURITY_CTX)
        | with(4, InitFlags::CREATE_SUPP_GROUP);
    let limits = Limits { max_write: 1 << 20, max_read: 1 << 20, head: Limits::HEAD };
    let protocol = Protocol { minor: 27 + u32::from(version >> 1) % 19, flags, limits };
    let request = match Request::parse(head, elsewhere.into(), &protocol) {
        Ok(request) => request,
        Err(rejected) => {
            assert!(!rejected.to_string().is_empty());
            assert!(
                !rejected.wants_reply() || rejected.header.is_some_and(|header| header.unique != 0)
            );
            return;
        }
    };
    let are_extensions = extension::iter(request.extensions).all(|extension| {
        extension.is_ok_and(|extension| !matches!(extension, extension::Extension::Unknown(_)))
    });
    let header = request.header;
    let caller = Caller {
        unique: header.unique,
        nodeid: header.nodeid,
        uid: header.uid,
        gid: header.gid,
        pid: header.pid,
    };
    let mut bytes = Vec::new();
    let units = request.extensions.len() / 8 * 8;
    request.operation.encode(&caller, &request.extensions[..units], &protocol, &mut bytes);
    let again = Request::parse(&bytes, elsewhere.into(), &protocol).unwrap();
    assert_eq!(again.operation, request.operation);
    // What nobody has agreed on, and what is no extension, is not written again.
    if are_extensions && units == request.extensions.len() {
        assert!(again.extensions.len() <= request.extensions.len());
    }
});
