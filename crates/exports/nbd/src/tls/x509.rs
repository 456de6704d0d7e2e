//! TLS with certificates, by rustls.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use socket2::Socket;

use super::{Engine, SEND_BUFFER, Session, TlsConfig};
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
    pub fn load(&self) -> Result<TlsConfig, Error> {
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
        Ok(TlsConfig(Arc::new(X509(Arc::new(config)))))
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

struct X509(Arc<ServerConfig>);

impl Engine for X509 {
    fn session(&self) -> io::Result<Box<dyn Session>> {
        let mut tls = ServerConnection::new(Arc::clone(&self.0)).map_err(io::Error::other)?;
        tls.set_buffer_limit(Some(SEND_BUFFER));
        Ok(Box::new(X509Session { tls, moved: false }))
    }
}

struct X509Session {
    tls: ServerConnection,
    moved: bool,
}

impl X509Session {
    /// Receives records, and says whether there may be more.
    fn receive(&mut self, mut socket: &Socket) -> io::Result<bool> {
        if self.tls.read_tls(&mut socket)? == 0 {
            return Ok(false);
        }
        self.moved = true;
        if let Err(err) = self.tls.process_new_packets() {
            // The alert that tells the client why.
            let _ = self.tls.write_tls(&mut socket);
            return Err(io::Error::new(io::ErrorKind::InvalidData, err));
        }
        Ok(true)
    }

    fn send(&mut self, mut socket: &Socket) -> io::Result<()> {
        self.moved |= self.tls.write_tls(&mut socket)? > 0;
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

    fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    fn close(&mut self, socket: &Socket) {
        self.tls.send_close_notify();
        // Whoever has left does not hear it.
        let _ = self.flush(socket);
    }
}
