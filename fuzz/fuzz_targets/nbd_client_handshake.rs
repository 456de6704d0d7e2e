//! A hostile server. First byte: what the client wants and the size of the pieces; the rest is what it is told.
#![no_main]

use blockyard_nbd::Error;
use blockyard_nbd::client::{Config, Event, Handshake, TlsMode};
use blockyard_nbd::wire::HeaderStyle;
use libfuzzer_sys::fuzz_target;

/// What the client sends and learns, given the bytes in pieces.
fn run(how: u8, bytes: &[u8], step: usize) -> (Vec<u8>, Vec<Event>, Option<Error>) {
    let tls = [TlsMode::Off, TlsMode::Allow, TlsMode::Require][usize::from(how % 3)];
    let best_style = [HeaderStyle::Extended, HeaderStyle::Structured, HeaderStyle::Simple]
        [usize::from(how / 3 % 3)];
    let mut client = Handshake::new(Config { tls, best_style });
    if how & 128 != 0 {
        client.list();
        client.info("disk").expect("a good name");
        client.list_contexts("disk", &[]).expect("good names");
    }
    client.set_contexts("disk", &["base:allocation"]).expect("good names");
    client.go("disk").expect("a good name");
    let (mut sent, mut events) = (Vec::new(), Vec::new());
    let (mut taken, mut given) = (0, 0);
    loop {
        let before = taken;
        match client.receive(&bytes[taken..given]) {
            Ok(consumed) => taken += consumed,
            Err(error) => return (sent, events, Some(error)),
        }
        let mut moved = taken > before || client.poll_transmit(&mut sent);
        while let Some(event) = client.poll_event() {
            moved = true;
            if event == Event::StartTls {
                client.poll_transmit(&mut sent);
                client.tls_started();
            }
            events.push(event);
        }
        if !moved {
            if given == bytes.len() || matches!(events.last(), Some(Event::Done(_))) {
                return (sent, events, None);
            }
            given = bytes.len().min(given.saturating_add(step));
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&how, bytes)) = data.split_first() else { return };
    let whole = run(how, bytes, usize::MAX);
    assert!(whole.0.len() < 1024, "a client asks a fixed number of questions");
    assert_eq!(whole, run(how, bytes, 1 + usize::from(how)));
});
