//! A stream of requests. First byte: the headers; the rest is what the client sends.
#![no_main]

use blockyard_nbd::server::{Export, Negotiated, RequestRules, Then};
use blockyard_nbd::wire::{Command, CommandFlags, HeaderStyle, Request, TransmissionFlags};
use blockyard_nbd::{BlockSizes, ExportInfo, MetaContext};
use libfuzzer_sys::fuzz_target;

const SIZE: u64 = 1 << 30;
const MAX_PAYLOAD: u32 = 1 << 20;

fn negotiated(style: HeaderStyle, read_only: bool) -> Negotiated {
    let mut flags = TransmissionFlags::all();
    flags.set(TransmissionFlags::READ_ONLY, read_only);
    let contexts = vec!["base:allocation".to_owned(), "x-test:other".to_owned()];
    let ids = (0..).zip(contexts.clone()).map(|(id, name)| MetaContext { id, name }).collect();
    let block_sizes = BlockSizes::new(512, 4096, MAX_PAYLOAD).ok();
    let info = ExportInfo {
        name: String::new(),
        description: String::new(),
        size: SIZE,
        flags,
        block_sizes,
    };
    Negotiated {
        export: Export { id: 0, info, contexts, tls_only: false, block_sizes_required: false },
        flags,
        style,
        contexts: ids,
        tls: false,
        block_sizes_agreed: true,
        hears_shutdown: false,
        no_zeroes: true,
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&how, mut bytes)) = data.split_first() else { return };
    let style =
        [HeaderStyle::Simple, HeaderStyle::Structured, HeaderStyle::Extended][usize::from(how % 3)];
    let negotiated = negotiated(style, how >= 128);
    let rules = RequestRules::new(&negotiated);
    while let Ok(Some(request)) = Request::parse(style, bytes) {
        let header = request.encode(style).expect("what was parsed can be encoded");
        if request.command == Command::Write {
            assert_eq!(bytes[..4], header[..4], "the flags may get PAYLOAD_LEN");
            assert_eq!(bytes[6..header.len()], header[6..]);
        } else {
            assert_eq!(bytes[..header.len()], *header);
        }
        bytes = &bytes[header.len()..];
        let payload = request.payload_len(style);
        let skip = match rules.check(&request) {
            Ok(()) => {
                assert!(payload <= u64::from(MAX_PAYLOAD));
                let query = request.flags.contains(CommandFlags::PAYLOAD_LEN)
                    && request.command == Command::BlockStatus;
                if query {
                    let Some(payload) = bytes.get(..payload as usize) else { return };
                    if let Ok(query) = rules.status_query(&request, payload, &negotiated.contexts) {
                        assert!(request.offset + query.length <= SIZE);
                        assert!(query.contexts.len() <= 2);
                    }
                } else if !matches!(request.command, Command::Disc | Command::Flush) {
                    // Where a flush is, and of how much, means nothing.
                    assert!(request.offset + request.length <= SIZE);
                }
                payload
            }
            Err(rejection) => match rejection.then {
                Then::Skip(skip) => {
                    assert_eq!(skip, payload);
                    skip
                }
                Then::Close => return,
            },
        };
        let Some(rest) = usize::try_from(skip).ok().and_then(|skip| bytes.get(skip..)) else {
            return;
        };
        bytes = rest;
    }
});
