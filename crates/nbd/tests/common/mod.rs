//! A server to negotiate with, and bytes of golden messages.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use blockyard_nbd::server::{Config, Event, Export, Handshake, Negotiated, TlsPolicy};
use blockyard_nbd::wire::{HeaderStyle, TransmissionFlags};
use blockyard_nbd::{BlockSizes, Error, ExportInfo};

/// An export of 1 MiB with all abilities.
pub(crate) fn export(name: &str) -> Export {
    Export {
        id: name.len() as u64,
        info: ExportInfo {
            name: name.into(),
            description: format!("the disk {name}"),
            size: 1 << 20,
            flags: TransmissionFlags::all() - TransmissionFlags::READ_ONLY,
            block_sizes: Some(BlockSizes::new(512, 4096, 1 << 25).unwrap()),
        },
        contexts: vec!["base:allocation".into(), "qemu:allocation-depth".into()],
        tls_only: false,
        block_sizes_required: false,
    }
}

/// `disk` is the default; `secret` is only for TLS; `strict` wants its block sizes known.
pub(crate) fn exports() -> Vec<Export> {
    let secret = Export { tls_only: true, ..export("secret") };
    let strict = Export { block_sizes_required: true, ..export("strict") };
    vec![export("disk"), secret, strict]
}

pub(crate) const OFFERS: [TlsPolicy; 3] = [TlsPolicy::Off, TlsPolicy::Allow, TlsPolicy::Require];
pub(crate) const STYLES: [HeaderStyle; 3] =
    [HeaderStyle::Simple, HeaderStyle::Structured, HeaderStyle::Extended];

pub(crate) fn config(tls: TlsPolicy) -> Config {
    Config { tls, ..Config::default() }
}

/// An option as it goes over the wire ("Newstyle negotiation").
pub(crate) fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    [&b"IHAVEOPT"[..], &number.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

/// A reply to an option ("Fixed newstyle negotiation").
pub(crate) fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
    [&magic[..], &option.to_be_bytes(), &kind.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

/// Data of INFO and GO.
pub(crate) fn info(name: &str, wanted: &[u16]) -> Vec<u8> {
    let len = u32::try_from(name.len()).unwrap();
    let count = u16::try_from(wanted.len()).unwrap();
    let mut data = [&len.to_be_bytes()[..], name.as_bytes(), &count.to_be_bytes()].concat();
    data.extend(wanted.iter().flat_map(|info| info.to_be_bytes()));
    data
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(crate) fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let string = |text: &str| {
        [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
    };
    let mut data = string(name);
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

/// What a server said and did.
#[derive(Debug, PartialEq)]
pub(crate) struct Served {
    pub(crate) sent: Vec<u8>,
    pub(crate) result: Result<(), Error>,
    pub(crate) done: Option<Negotiated>,
    pub(crate) aborted: bool,
    /// Bytes that were not taken.
    pub(crate) rest: Vec<u8>,
}

/// Feeds `bytes` to a server in pieces of `step` bytes, starting TLS whenever it is agreed on.
pub(crate) fn serve(config: Config, bytes: &[u8], step: usize) -> Served {
    let exports = exports();
    let mut server = Handshake::new(config);
    let mut served =
        Served { sent: Vec::new(), result: Ok(()), done: None, aborted: false, rest: Vec::new() };
    server.poll_transmit(&mut served.sent);
    assert_eq!(served.sent, b"NBDMAGICIHAVEOPT\0\x03", "the greeting");
    served.sent.clear();
    let mut taken = 0;
    let mut given = 0;
    loop {
        match server.receive(exports.as_slice(), &bytes[taken..given]) {
            Ok(consumed) => taken += consumed,
            Err(error) => {
                served.result = Err(error);
                server.poll_transmit(&mut served.sent);
                return served;
            }
        }
        let sent = server.poll_transmit(&mut served.sent);
        let event = server.poll_event();
        let progress = sent || event.is_some();
        match event {
            Some(Event::StartTls) => server.tls_started(),
            Some(Event::Done(negotiated)) => {
                served.done = Some(*negotiated);
                break;
            }
            Some(Event::Aborted) => {
                served.aborted = true;
                break;
            }
            None => {}
        }
        if !progress {
            assert_eq!(taken, given, "bytes are left only for a reason");
            if given == bytes.len() {
                break;
            }
            given = bytes.len().min(given + step);
        }
    }
    served.rest = bytes[taken..].to_vec();
    served
}
