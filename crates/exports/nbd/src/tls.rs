//! TLS: its files, and a session over a socket that does not block.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use crate::error::{Error, ErrorKind};

/// The files of an X.509 identity, all in PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's certificate, and those between it and what clients trust.
    pub certificate: PathBuf,
    /// The key of the certificate: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
    /// Whose certificates clients must have; none are asked for without it.
    pub client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// [`ErrorKind::Tls`], which names the file.
    pub fn load(&self) -> Result<Arc<ServerConfig>, Error> {
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|err| bad_file("no private key can be read from", &self.key).caused_by(err))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|err| Error::new(ErrorKind::Tls, "TLS cannot be set up").caused_by(err))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|err| {
                        bad_file("there is a certificate that cannot be trusted in", path)
                            .caused_by(err)
                    })?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .map_err(|err| {
                            bad_file("no certificate authority can be made from", path)
                                .caused_by(err)
                        })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder.with_single_cert(chain, key).map_err(|err| {
            bad_file("the key does not belong to the certificate in", &self.certificate)
                .caused_by(err)
        })?;
        Ok(Arc::new(config))
    }
}

fn bad_file(problem: &str, path: &Path) -> Error {
    Error::new(ErrorKind::Tls, format!("{problem} {}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let problem = "no certificate can be read from";
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|err| bad_file(problem, path).caused_by(err))?;
    if chain.is_empty() {
        return Err(bad_file(problem, path));
    }
    Ok(chain)
}

/// A TLS session. It holds some tens of KiB: records that are not complete, and those that the socket had no
/// room for.
pub(crate) struct Session(Box<ServerConnection>);

impl Session {
    pub(crate) fn new(config: Arc<ServerConfig>) -> io::Result<Self> {
        let mut session = ServerConnection::new(config).map_err(io::Error::other)?;
        session.set_buffer_limit(Some(SEND_BUFFER));
        Ok(Self(Box::new(session)))
    }

    /// Whether there are records for the socket.
    pub(crate) fn wants_write(&self) -> bool {
        self.0.wants_write()
    }

    /// Moves the TLS handshake on, as far as it goes now.
    pub(crate) fn shake(&mut self, mut socket: impl Read + Write) -> io::Result<()> {
        while self.0.is_handshaking() || self.0.wants_write() {
            if self.0.wants_write() {
                self.0.write_tls(&mut socket)?;
            } else if self.0.read_tls(&mut socket)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            } else if let Err(err) = self.0.process_new_packets() {
                // The alert that tells the client why.
                let _ = self.0.write_tls(&mut socket);
                return Err(io::Error::new(io::ErrorKind::InvalidData, err));
            }
        }
        Ok(())
    }

    /// Receives plain bytes; 0 at the end.
    pub(crate) fn read(
        &mut self,
        mut socket: impl Read + Write,
        buf: &mut [u8],
    ) -> io::Result<usize> {
        loop {
            match self.0.reader().read(buf) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                // A client that leaves without saying goodbye in TLS: there is nothing that it could have cut
                // short unseen.
                Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                other => return other,
            }
            if self.0.read_tls(&mut socket)? == 0 {
                return Ok(0);
            }
            if let Err(err) = self.0.process_new_packets() {
                let _ = self.0.write_tls(&mut socket);
                return Err(io::Error::new(io::ErrorKind::InvalidData, err));
            }
        }
    }

    /// Takes plain bytes to send, as many as there is room for.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.writer().write(bytes)
    }

    /// Hands records to the socket until there are none.
    pub(crate) fn flush(&mut self, mut socket: impl Read + Write) -> io::Result<()> {
        while self.0.wants_write() {
            self.0.write_tls(&mut socket)?;
        }
        Ok(())
    }

    /// Says goodbye.
    pub(crate) fn close(&mut self, socket: impl Read + Write) {
        self.0.send_close_notify();
        // Whoever has left does not hear it.
        let _ = self.flush(socket);
    }
}

/// Bytes that wait for the socket within the session.
const SEND_BUFFER: usize = 64 << 10;
