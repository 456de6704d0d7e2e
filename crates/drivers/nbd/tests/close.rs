//! The last words of a connection with TLS, as its server hears them.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use blockyard_nbd::ExportInfo;
use blockyard_nbd::server::{Config, Event, Export, Handshake, TlsPolicy};
use blockyard_nbd::wire::{Command, HeaderStyle, Request, TransmissionFlags};
use common::{Place, attach};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Serves nothing to one client, and says what came after the handshake, and whether the end of it was told in TLS.
fn hear(listener: &UnixListener, config: Arc<ServerConfig>) -> (Vec<Command>, bool) {
    let (mut plain, _) = listener.accept().unwrap();
    let info = ExportInfo {
        name: String::new(),
        description: String::new(),
        size: 1 << 20,
        flags: TransmissionFlags::HAS_FLAGS,
        block_sizes: None,
    };
    let exports =
        [Export { id: 0, info, contexts: vec![], tls_only: false, block_sizes_required: false }];
    let best_style = HeaderStyle::Structured;
    let mut shake = Handshake::new(Config { tls: TlsPolicy::Require, best_style });
    assert!(matches!(negotiate(&mut shake, &exports, &mut plain), Event::StartTls));
    let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), plain);
    shake.tls_started();
    let Event::Done(negotiated) = negotiate(&mut shake, &exports, &mut stream) else { panic!() };
    let (mut input, mut requests) = (Vec::new(), Vec::new());
    loop {
        while let Some(request) = Request::parse(negotiated.style, &input).unwrap() {
            input.drain(..negotiated.style.request_len());
            requests.push(request.command);
        }
        let mut buf = [0; 4096];
        match stream.read(&mut buf) {
            Ok(0) => return (requests, true),
            Ok(len) => input.extend_from_slice(&buf[..len]),
            // rustls tells an end without a close_notify so.
            Err(err) if err.kind() == std::io::ErrorKind::UnexpectedEof => {
                return (requests, false);
            }
            Err(err) => panic!("{err}"),
        }
    }
}

fn negotiate(shake: &mut Handshake, exports: &[Export], stream: &mut (impl Read + Write)) -> Event {
    let (mut input, mut output) = (Vec::new(), Vec::new());
    loop {
        output.clear();
        shake.poll_transmit(&mut output);
        stream.write_all(&output).unwrap();
        stream.flush().unwrap();
        if let Some(event) = shake.poll_event() {
            return event;
        }
        let taken = shake.receive(exports, &input).unwrap();
        input.drain(..taken);
        if taken == 0 {
            let mut buf = [0; 4096];
            let len = stream.read(&mut buf).unwrap();
            input.extend_from_slice(&buf[..len]);
        }
    }
}

#[test]
fn a_disk_that_ends_says_goodbye_in_nbd_and_in_tls() {
    let place = Place::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(place.path("ca-cert.pem"), certificate.pem()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = Arc::new(builder.with_single_cert(vec![certificate.der().clone()], key).unwrap());
    let listener = UnixListener::bind(place.path("s")).unwrap();
    let server = std::thread::spawn(move || hear(&listener, config));
    let uri = format!(
        "nbds+unix:///?socket={}&tls-certificates={}",
        place.path("s").display(),
        place.path("").display()
    );
    let disk = attach(blockyard_driver_nbd::NbdConfig::new(uri.parse().unwrap()), 1);
    assert!(disk.export.tls);
    disk.block_on(disk.nbd.disconnect());
    assert_eq!(server.join().unwrap(), (vec![Command::Disc], true));
}
