//! TLS with certificates, by rustls.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockyard_nbd::uri::{Transport, Uri};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

use super::{RECORD_LEN, SEND_BUFFER, Session};
use crate::config::TlsFiles;
use crate::error::{Error, ErrorKind};
use crate::outbox::Unsent;
use crate::socket::Plain;

/// Where certificates are if nobody says, libnbd's places: the first two below the home directory.
const FOLDERS: [&str; 3] = [".pki/libnbd", ".config/pki/libnbd", "/etc/pki/libnbd"];
/// Whom Debian and most others trust.
const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";
/// What sessions with a server are made from.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Setup {
    /// Reads the files that are named, or those in the directory that the URI names: `ca-cert.pem`, and
    /// `client-cert.pem` with `client-key.pem` if they are there.
    pub(super) fn load(uri: &Uri, files: &TlsFiles) -> Result<Self, Error> {
        let params = &uri.tls_params;
        let files = find(uri, files);
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|err| Error::new(ErrorKind::Tls, "TLS cannot be set up").caused_by(err))?;
        let builder = if params.verify_peer == Some(false) {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        } else {
            builder.with_root_certificates(roots(&files.ca)?)
        };
        let config = match &files.certificate {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate)?;
                let secret = PrivateKeyDer::from_pem_file(key).map_err(|err| {
                    bad_file("no private key can be read from", key).caused_by(err)
                })?;
                builder.with_client_auth_cert(chain, secret).map_err(|err| {
                    bad_file("the key does not belong to the certificate in", certificate)
                        .caused_by(err)
                })?
            }
        };
        Ok(Self { config: Arc::new(config), name: server_name(uri)? })
    }

    pub(super) fn session(&self) -> Result<Box<dyn Session>, Error> {
        let session = ClientConnection::new(Arc::clone(&self.config), self.name.clone());
        let mut session = session
            .map_err(|err| Error::new(ErrorKind::Tls, "TLS cannot be set up").caused_by(err))?;
        session.set_buffer_limit(Some(SEND_BUFFER));
        Ok(Box::new(Certified { tls: session, record: vec![0; RECORD_LEN] }))
    }
}

/// The files that are used.
struct Found {
    ca: PathBuf,
    /// Our certificate and its key.
    certificate: Option<(PathBuf, PathBuf)>,
}

fn find(uri: &Uri, files: &TlsFiles) -> Found {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let mut usual = FOLDERS.iter().map(|folder| home.join(folder));
    let folder = match &uri.tls_params.certificates {
        Some(folder) => Some(PathBuf::from(folder)),
        None => usual.find(|folder| folder.join("ca-cert.pem").exists()),
    };
    let inside = |name: &str| folder.as_ref().map(|folder| folder.join(name));
    let pair = inside("client-cert.pem").filter(|path| path.exists()).zip(inside("client-key.pem"));
    Found {
        ca: files.ca.clone().or_else(|| inside("ca-cert.pem")).unwrap_or_else(|| SYSTEM_CA.into()),
        certificate: files.certificate.clone().zip(files.key.clone()).or(pair),
    }
}

/// The name that the server's certificate must have.
fn server_name(uri: &Uri) -> Result<ServerName<'static>, Error> {
    let name = match (&uri.tls_params.hostname, &uri.transport) {
        (Some(name), _) => name.clone(),
        (None, Transport::Tcp { host, .. }) => host.clone(),
        (None, Transport::Unix { .. } | Transport::Vsock { .. }) => "localhost".to_owned(),
    };
    ServerName::try_from(name.clone()).map_err(|err| {
        let what = format!("{name:?} is no name that a certificate can have; set tls-hostname");
        Error::new(ErrorKind::Tls, what).caused_by(err)
    })
}

fn bad_file(problem: &str, path: &Path) -> Error {
    Error::new(ErrorKind::Tls, format!("{problem} {}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let problem = "no certificate can be read from";
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|err| bad_file(problem, path).caused_by(err))?;
    if chain.is_empty() { Err(bad_file(problem, path)) } else { Ok(chain) }
}

fn roots(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|err| {
            bad_file("there is a certificate that cannot be trusted in", path).caused_by(err)
        })?;
    }
    Ok(roots)
}

/// `tls-verify-peer=0`: encrypts, and believes whoever answers.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

struct Certified {
    tls: ClientConnection,
    record: Vec<u8>,
}

impl Certified {
    fn take_records(&mut self, socket: &mut Plain<'_>) -> io::Result<()> {
        if self.tls.read_tls(socket)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Err(err) = self.tls.process_new_packets() {
            // The alert that tells the server why. It may have left by now.
            let _ = self.tls.write_tls(socket);
            return Err(io::Error::new(io::ErrorKind::InvalidData, err));
        }
        Ok(())
    }
}

impl Session for Certified {
    fn shake(&mut self, mut socket: Plain<'_>) -> io::Result<()> {
        while self.tls.is_handshaking() || self.tls.wants_write() {
            if self.tls.wants_write() {
                self.tls.write_tls(&mut socket)?;
            } else {
                self.take_records(&mut socket)?;
            }
        }
        Ok(())
    }

    fn wants_write(&self) -> bool {
        self.tls.wants_write()
    }

    fn read(&mut self, mut socket: Plain<'_>, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(buf) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                // A server that leaves without a goodbye in TLS: every message says how long it is, so that
                // none can be cut short unseen.
                Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                other => return other,
            }
            match self.take_records(&mut socket) {
                Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                other => other?,
            }
        }
    }

    fn write(&mut self, mut socket: Plain<'_>, bytes: &[u8]) -> io::Result<usize> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut socket)?;
        }
        let taken = self.tls.writer().write(bytes)?;
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut socket) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => break,
                other => other?,
            };
        }
        Ok(taken)
    }

    fn send(&mut self, mut socket: Plain<'_>, unsent: &mut dyn Unsent) -> io::Result<()> {
        loop {
            while self.tls.wants_write() {
                self.tls.write_tls(&mut socket)?;
            }
            let len = unsent.copy_to(&mut self.record);
            if len == 0 {
                return Ok(());
            }
            let taken = self.tls.writer().write(&self.record[..len])?;
            unsent.advance(taken);
        }
    }

    fn close(&mut self, mut socket: Plain<'_>) {
        self.tls.send_close_notify();
        while self.tls.wants_write() && self.tls.write_tls(&mut socket).is_ok() {}
    }
}
