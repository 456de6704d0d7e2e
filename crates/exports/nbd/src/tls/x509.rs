//! TLS with certificates, by rustls.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockyard_nbd::certificates::{self, BadFile, Reader, UsedFiles};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ServerConfig, ServerConnection};
use socket2::Socket;

use super::renewal::Setup;
use super::{Engine, Moved, SEND_BUFFER, Session, TlsConfig, TlsIdentity};
use crate::error::{Error, ErrorKind};

const READ: Reader = |path| std::fs::read(path);

/// The files of an X.509 identity, all in PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's certificate, and those between it and what clients trust.
    pub certificate: PathBuf,
    /// The key of the certificate: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
    /// Whose certificates clients must have; none are asked for without it. A file `ca-crl.pem` beside it names those that are
    /// revoked.
    pub client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// As [`TlsIdentity::load`].
    ///
    /// # Errors
    /// [`ErrorKind::Tls`], which names the file.
    pub fn load(&self) -> Result<TlsConfig, Error> {
        TlsIdentity::Certificate(self.clone()).load()
    }

    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let mut paths = vec![self.certificate.clone(), self.key.clone()];
        if let Some(ca) = &self.client_ca {
            paths.extend([ca.clone(), certificates::revocations_path(ca)]);
        }
        paths
    }

    pub(super) fn setup(&self) -> Result<Setup, Error> {
        let provider = certificates::provider();
        let chain = certificates::chain(&self.certificate, READ)?;
        let key = certificates::private_key(&self.key, &provider, READ)?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|err| Error::new(ErrorKind::Tls, "cannot set up TLS").caused_by(err))?;
        let mut revoked = None;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let (verifier, list) = client_verifier(path, provider)?;
                revoked = list;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder
            .with_single_cert(chain, key)
            .map_err(|err| certificates::bad_pair(err, &self.certificate))?;
        let used = UsedFiles {
            trusted: self.client_ca.clone(),
            revoked,
            own: Some((self.certificate.clone(), self.key.clone())),
        };
        Ok(Setup { engine: Arc::new(X509(Arc::new(config))), used })
    }
}

/// Lets in whom an authority knows and has not revoked. A list that is out of date lets nobody in, as with GnuTLS. Also says
/// which list there is.
fn client_verifier(
    ca: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<(Arc<dyn ClientCertVerifier>, Option<PathBuf>), Error> {
    let roots = certificates::roots(&certificates::chain(ca, READ)?, ca)?;
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots, provider);
    let mut revoked = None;
    if let Some((path, lists)) = certificates::revocations(ca, READ)? {
        builder = builder.with_crls(lists).allow_unknown_revocation_status();
        builder = builder.enforce_revocation_expiration();
        revoked = Some(path);
    }
    let verifier = builder.build().map_err(|err| {
        let blamed = revoked.as_deref().unwrap_or(ca);
        BadFile::new("cannot verify clients with the certificates in", blamed).caused_by(err)
    })?;
    Ok((verifier, revoked))
}

struct X509(Arc<ServerConfig>);

impl Engine for X509 {
    fn session(&self) -> io::Result<Box<dyn Session>> {
        let mut tls = ServerConnection::new(Arc::clone(&self.0)).map_err(io::Error::other)?;
        tls.set_buffer_limit(Some(SEND_BUFFER));
        Ok(Box::new(X509Session { tls, moved: Moved::default() }))
    }
}

struct X509Session {
    tls: ServerConnection,
    moved: Moved,
}

impl X509Session {
    /// Receives records, and says whether there may be more.
    fn receive(&mut self, mut socket: &Socket) -> io::Result<bool> {
        if self.tls.read_tls(&mut socket)? == 0 {
            return Ok(false);
        }
        self.moved.received = true;
        if let Err(err) = self.tls.process_new_packets() {
            // The alert that tells the client why.
            let _ = self.tls.write_tls(&mut socket);
            return Err(io::Error::new(io::ErrorKind::InvalidData, err));
        }
        Ok(true)
    }

    fn send(&mut self, mut socket: &Socket) -> io::Result<()> {
        self.moved.sent |= self.tls.write_tls(&mut socket)? > 0;
        Ok(())
    }
}

impl Session for X509Session {
    fn wants_write(&self) -> bool {
        self.tls.wants_write()
    }

    fn shake(&mut self, socket: &Socket) -> io::Result<()> {
        while self.tls.is_handshaking() || self.tls.wants_write() {
            if self.tls.wants_write() {
                self.send(socket)?;
            } else if !self.receive(socket)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    fn read(&mut self, socket: &Socket, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(buf) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                // A client that leaves without saying goodbye in TLS: there is nothing that it could have cut
                // short unseen.
                Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                other => return other,
            }
            if !self.receive(socket)? {
                return Ok(0);
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tls.writer().write(bytes)
    }

    fn flush(&mut self, socket: &Socket) -> io::Result<()> {
        while self.tls.wants_write() {
            self.send(socket)?;
        }
        Ok(())
    }

    fn take_moved(&mut self) -> Moved {
        std::mem::take(&mut self.moved)
    }

    fn close(&mut self, socket: &Socket) {
        self.tls.send_close_notify();
        // Whoever has left does not hear it.
        let _ = self.flush(socket);
    }
}
