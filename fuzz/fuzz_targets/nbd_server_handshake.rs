//! A hostile client. First byte: TLS policy and size of the pieces; the rest is what it sends.
#![no_main]

use blockyard_nbd::server::{Config, Event, Export, Handshake, TlsPolicy};
use blockyard_nbd::wire::TransmissionFlags;
use blockyard_nbd::{Error, ExportInfo};
use libfuzzer_sys::fuzz_target;

fn exports() -> [Export; 2] {
    ["disk", "secret"].map(|name| Export {
        id: 0,
        info: ExportInfo {
            name: name.into(),
            description: "a disk".into(),
            size: 1 << 20,
            flags: TransmissionFlags::all(),
            block_sizes: None,
        },
        contexts: vec!["base:allocation".into(), "x-test:other".into()],
        tls_only: name == "secret",
        block_sizes_required: false,
    })
}

/// What the server sends and how it ends, given the bytes in pieces.
fn run(tls: TlsPolicy, bytes: &[u8], step: usize) -> (Vec<u8>, Vec<Event>, Option<Error>) {
    let exports = exports();
    let mut server = Handshake::new(Config { tls, ..Config::default() });
    let (mut sent, mut events) = (Vec::new(), Vec::new());
    let (mut taken, mut given) = (0, 0);
    loop {
        let mut moved = server.poll_transmit(&mut sent);
        match server.receive(exports.as_slice(), &bytes[taken..given]) {
            Ok(consumed) => taken += consumed,
            Err(error) => return (sent, events, Some(error)),
        }
        moved |= server.poll_transmit(&mut sent);
        if let Some(event) = server.poll_event() {
            if event == Event::StartTls {
                server.tls_started();
            }
            let last = event != Event::StartTls;
            events.push(event);
            if last {
                return (sent, events, None);
            }
            moved = true;
        }
        if !moved {
            if given == bytes.len() {
                return (sent, events, None);
            }
            given = bytes.len().min(given + step);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&how, bytes)) = data.split_first() else { return };
    let tls = [TlsPolicy::Off, TlsPolicy::Allow, TlsPolicy::Require][usize::from(how % 3)];
    let whole = run(tls, bytes, usize::MAX);
    assert!(whole.0.len() < 1024 * (bytes.len() + 1), "an answer out of proportion");
    assert_eq!(whole, run(tls, bytes, 1 + usize::from(how / 3)));
});
