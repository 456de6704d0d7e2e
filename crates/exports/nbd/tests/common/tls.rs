//! A client that speaks TLS.

use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use blockyard_export_nbd::HeaderStyle;
use blockyard_nbd::client::{Config, Event, Handshake, TlsMode as Wanted};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::{Client, Yard, negotiate};

/// Trusts `ca.pem` of the directory, and has the certificate of that name.
pub(crate) fn client_config(dir: &Path, certificate: Option<&str>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = if let Some(name) = certificate {
        let chain = vec![CertificateDer::from_pem_file(dir.join(format!("{name}.pem"))).unwrap()];
        let key = PrivateKeyDer::from_pem_file(dir.join(format!("{name}.key"))).unwrap();
        builder.with_client_auth_cert(chain, key).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    Arc::new(config)
}

/// A client that starts TLS before anything else.
pub(crate) fn tls_client(
    yard: &Yard,
    config: &Arc<ClientConfig>,
    export: &str,
) -> io::Result<Client> {
    let mut plain = yard.connect();
    let style = HeaderStyle::Extended;
    let mut handshake = Handshake::new(Config { tls: Wanted::Require, best_style: style });
    let mut input = Vec::new();
    match negotiate(&mut plain, &mut handshake, &mut input)? {
        Event::StartTls => {}
        other => return Err(io::Error::other(format!("{other:?}"))),
    }
    assert!(input.is_empty());
    let name = "localhost".try_into().unwrap();
    let session = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut stream = StreamOwned::new(session, plain);
    stream.flush()?;
    handshake.tls_started();
    Client::go(Box::new(stream), handshake, export, style)
}

/// Runs a program that has to succeed.
pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}
