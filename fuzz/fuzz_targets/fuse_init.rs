//! INITs of a hostile client, and answers of a hostile server: what one side agrees to, the other accepts.
#![no_main]

use blockyard_fuse::init::{Answer, InitIn, InitOut, ServerConfig, accept};
use blockyard_fuse::wire::InitFlags;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&[flags, page], rest)) = data.split_first_chunk::<2>() else { return };
    let page = 4096 << (page % 5);
    let config = ServerConfig {
        flags: if flags & 1 == 0 { InitFlags::MAX_PAGES } else { InitFlags::ASYNC_READ },
        max_readahead: 128 << 10,
        max_background: 64,
        congestion_threshold: 48,
        max_write: 1 << 20,
        map_alignment: 12,
        max_stack_depth: 0,
        request_timeout: 0,
    };
    let Ok(client) = InitIn::parse(rest) else { return };
    if let Ok(Answer::Agreed(out, protocol)) = config.answer(&client, page) {
        assert_eq!(accept(&client, &out, page).unwrap(), protocol);
        assert!(protocol.read_buffer_len() >= 80 + protocol.limits.max_write as usize);
    }
    if let Ok(out) = InitOut::parse(rest) {
        let client = InitIn::new(0, InitFlags::NAMED);
        if let Ok(protocol) = accept(&client, &out, page) {
            assert!(InitFlags::NAMED.contains(protocol.flags));
        }
    }
});
