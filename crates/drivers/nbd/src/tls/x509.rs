//! TLS with certificates, by rustls.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockyard_nbd::certificates::{self, BadFile, Reader, UsedFiles};
use blockyard_nbd::uri::{Transport, Uri};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, OtherError,
    SignatureScheme,
};

use super::{RECORD_LEN, SEND_BUFFER, Session};
use crate::config::TlsFiles;
use crate::error::{Error, ErrorKind};
use crate::outbox::Unsent;
use crate::socket::Plain;

/// Where certificates are if nobody says, libnbd's places: below the home directory, and the system's.
const HOME_FOLDERS: [&str; 2] = [".pki/libnbd", ".config/pki/libnbd"];
const SYSTEM_FOLDER: &str = "/etc/pki/libnbd";
/// Whom Debian and most others trust.
const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";
const READ: Reader = |path| std::fs::read(path);

/// What sessions with a server are made from.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    /// What it was made from.
    used: UsedFiles,
}

impl Setup {
    /// Reads the files that are named, or those in the directory that the URI names: `ca-cert.pem`, and
    /// `client-cert.pem` with `client-key.pem` if they are there. Beside the authority's, `ca-crl.pem` names what it has revoked.
    /// What was used before is not done without.
    pub(super) fn load(uri: &Uri, files: &TlsFiles, before: Option<&Self>) -> Result<Self, Error> {
        let setup = Self::load_from(uri, files, &usual_folders())?;
        if let Some(before) = before {
            setup.used.may_follow(&before.used, Path::exists)?;
        }
        Ok(setup)
    }

    fn load_from(uri: &Uri, files: &TlsFiles, usual: &[PathBuf]) -> Result<Self, Error> {
        let params = &uri.tls_params;
        let found = find(uri, files, usual)?;
        let provider = certificates::provider();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|err| Error::new(ErrorKind::Tls, "cannot set up TLS").caused_by(err))?;
        let mut used = UsedFiles { own: found.certificate.clone(), ..UsedFiles::default() };
        let verifier: Arc<dyn ServerCertVerifier> = if params.verify_peer == Some(false) {
            Arc::new(AnyServer(Arc::clone(&provider)))
        } else {
            let (known, revoked) = KnownServer::load(&found.ca, Arc::clone(&provider))?;
            (used.trusted, used.revoked) = (Some(found.ca), revoked);
            Arc::new(known)
        };
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let config = match &found.certificate {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates::chain(certificate, READ)?;
                let secret = certificates::private_key(key, &provider, READ)?;
                builder
                    .with_client_auth_cert(chain, secret)
                    .map_err(|err| certificates::bad_pair(err, certificate))?
            }
        };
        Ok(Self { config: Arc::new(config), name: server_name(uri)?, used })
    }

    pub(super) fn session(&self) -> Result<Box<dyn Session>, Error> {
        let session = ClientConnection::new(Arc::clone(&self.config), self.name.clone());
        let mut session = session
            .map_err(|err| Error::new(ErrorKind::Tls, "cannot set up TLS").caused_by(err))?;
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

/// The folders where certificates are looked for.
fn usual_folders() -> Vec<PathBuf> {
    let is_root = rustix::process::geteuid().is_root();
    folders_of(std::env::var_os("HOME").map(PathBuf::from), is_root)
}

/// Root trusts whom the system trusts: `HOME` may be that of whoever has become root. Without a home there is none: what is
/// relative would start at the working directory, which may be anybody's.
fn folders_of(home: Option<PathBuf>, is_root: bool) -> Vec<PathBuf> {
    let home = home.filter(|home| !is_root && home.is_absolute());
    let own = home.iter().flat_map(|home| HOME_FOLDERS.map(|folder| home.join(folder)));
    own.chain([SYSTEM_FOLDER.into()]).collect()
}

fn find(uri: &Uri, files: &TlsFiles, usual: &[PathBuf]) -> Result<Found, Error> {
    let folder = match &uri.tls_params.certificates {
        Some(folder) => Some(Path::new(folder)),
        None => usual.iter().map(PathBuf::as_path).find(|place| place.join("ca-cert.pem").exists()),
    };
    let inside = |name: &str| folder.map(|folder| folder.join(name));
    let there = |name: &str| inside(name).filter(|path| path.exists());
    let (certificate, key) = match (&files.certificate, &files.key) {
        (None, None) => (there("client-cert.pem"), there("client-key.pem")),
        (certificate, key) => (certificate.clone(), key.clone()),
    };
    let certificate = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(path), None) => return Err(BadFile::new("no key for the certificate", &path).into()),
        (None, Some(path)) => return Err(BadFile::new("no certificate for the key", &path).into()),
    };
    let ca = files.ca.clone().or_else(|| inside("ca-cert.pem"));
    Ok(Found { ca: ca.unwrap_or_else(|| SYSTEM_CA.into()), certificate })
}

/// The name that the server's certificate must have.
fn server_name(uri: &Uri) -> Result<ServerName<'static>, Error> {
    let name = match (&uri.tls_params.hostname, &uri.transport) {
        (Some(name), _) => name.clone(),
        (None, Transport::Tcp { host, .. }) => host.clone(),
        (None, Transport::Unix { .. } | Transport::Vsock { .. }) => "localhost".to_owned(),
    };
    ServerName::try_from(name.clone()).map_err(|err| {
        let what = format!("{name:?} is not a valid name of a certificate; set tls-hostname");
        Error::new(ErrorKind::Tls, what).caused_by(err)
    })
}

/// Believes a server whose certificate is of an authority that is trusted, and not revoked. A list of revoked certificates that
/// is out of date lets nobody in, as with GnuTLS.
#[derive(Debug)]
struct KnownServer {
    webpki: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
}

impl KnownServer {
    /// Also says which list of revoked certificates there is.
    fn load(ca: &Path, provider: Arc<CryptoProvider>) -> Result<(Self, Option<PathBuf>), Error> {
        let trusted = certificates::chain(ca, READ)?;
        let roots = certificates::roots(&trusted, ca)?;
        let mut builder = WebPkiServerVerifier::builder_with_provider(roots, provider);
        let mut revoked = None;
        if let Some((path, lists)) = certificates::revocations(ca, READ)? {
            builder = builder.with_crls(lists).allow_unknown_revocation_status();
            builder = builder.enforce_revocation_expiration();
            revoked = Some(path);
        }
        let webpki = builder.build().map_err(|err| {
            let blamed = revoked.as_deref().unwrap_or(ca);
            BadFile::new("cannot verify servers with the certificates in", blamed).caused_by(err)
        })?;
        Ok((Self { webpki, trusted }, revoked))
    }

    /// Whether the one reason against the certificate is that it is an authority's, which webpki tells after it has looked at its
    /// dates; and it is one that is trusted, as it is. Whoever makes one certificate for one server makes such a one.
    fn is_trusted_itself(&self, certificate: &CertificateDer<'_>, err: &rustls::Error) -> bool {
        let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(err))) = err
        else {
            return false;
        };
        let is_authority = matches!(err.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity));
        is_authority && self.trusted.iter().any(|trusted| trusted == certificate)
    }
}

impl ServerCertVerifier for KnownServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.webpki.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            Err(err) if self.is_trusted_itself(end_entity, &err) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_never_starts_at_the_working_directory_and_root_has_the_systems() {
        let system = || vec![PathBuf::from(SYSTEM_FOLDER)];
        assert_eq!(folders_of(None, false), system());
        for home in ["", ".", "tmp"] {
            assert_eq!(folders_of(Some(home.into()), false), system(), "{home:?}");
        }
        assert_eq!(folders_of(Some("/home/a".into()), true), system());
        let own = ["/home/a/.pki/libnbd", "/home/a/.config/pki/libnbd", SYSTEM_FOLDER];
        assert_eq!(folders_of(Some("/home/a".into()), false), own.map(PathBuf::from));
    }

    #[test]
    fn half_of_a_pair_is_an_error_that_names_it() {
        let place = tempfile::TempDir::new().unwrap();
        let uri: Uri = "nbds://h".parse().unwrap();
        let usual = [place.path().to_owned()];
        let found = |files: &TlsFiles| find(&uri, files, &usual).map(|found| found.certificate);
        let none = TlsFiles::default();
        std::fs::write(place.path().join("ca-cert.pem"), "").unwrap();
        assert_eq!(found(&none).unwrap(), None);
        let path = |name: &str| place.path().join(name);
        std::fs::write(path("client-cert.pem"), "").unwrap();
        let err = found(&none).unwrap_err().to_string();
        assert!(err.contains("no key for") && err.contains("client-cert.pem"), "{err}");
        std::fs::write(path("client-key.pem"), "").unwrap();
        let pair = Some((path("client-cert.pem"), path("client-key.pem")));
        assert_eq!(found(&none).unwrap(), pair);
        std::fs::remove_file(path("client-cert.pem")).unwrap();
        assert!(found(&none).unwrap_err().to_string().contains("no certificate for"));
        // Files that are named have nothing to do with those in the folder.
        let named = TlsFiles { certificate: Some("c".into()), key: Some("k".into()), ca: None };
        assert_eq!(found(&named).unwrap(), Some(("c".into(), "k".into())));
        let half = TlsFiles { key: None, ..named };
        assert!(found(&half).unwrap_err().to_string().contains("no key for the certificate c"));
    }
}
