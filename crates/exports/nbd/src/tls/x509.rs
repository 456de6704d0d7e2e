//! TLS with certificates, by rustls.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ServerConfig, ServerConnection};
use socket2::Socket;

use super::{Engine, SEND_BUFFER, Session, TlsConfig, files};
use crate::error::{Error, ErrorKind};

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
    /// Reads and checks the files.
    ///
    /// # Errors
    /// [`ErrorKind::Tls`], which names the file.
    pub fn load(&self) -> Result<TlsConfig, Error> {
        let provider = files::provider();
        let chain = files::certificates(&self.certificate)?;
        let key = files::private_key(&self.key, &provider)?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|err| Error::new(ErrorKind::Tls, "TLS cannot be set up").caused_by(err))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => builder.with_client_cert_verifier(client_verifier(path, provider)?),
        };
        let config = builder
            .with_single_cert(chain, key)
            .map_err(|err| files::bad_pair(err, &self.certificate))?;
        Ok(TlsConfig(Arc::new(X509(Arc::new(config)))))
    }
}

/// Lets in whom an authority knows and has not revoked. A list that is out of date lets nobody in, as with GnuTLS.
fn client_verifier(
    ca: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let roots = files::roots(&files::certificates(ca)?, ca)?;
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots, provider);
    let mut blamed = ca.to_owned();
    if let Some((path, lists)) = files::revocations(ca)? {
        builder = builder.with_crls(lists).allow_unknown_revocation_status();
        builder = builder.enforce_revocation_expiration();
        blamed = path;
    }
    builder.build().map_err(|err| {
        files::bad_file("clients cannot be verified by what is in", &blamed).caused_by(err)
    })
}

struct X509(Arc<ServerConfig>);

impl Engine for X509 {
    fn session(&self) -> io::Result<Box<dyn Session>> {
        let mut session = ServerConnection::new(Arc::clone(&self.0)).map_err(io::Error::other)?;
        session.set_buffer_limit(Some(SEND_BUFFER));
        Ok(Box::new(session))
    }
}

impl Session for ServerConnection {
    fn wants_write(&self) -> bool {
        (**self).wants_write()
    }

    fn shake(&mut self, mut socket: &Socket) -> io::Result<()> {
        while self.is_handshaking() || (**self).wants_write() {
            if (**self).wants_write() {
                self.write_tls(&mut socket)?;
            } else if self.read_tls(&mut socket)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            } else if let Err(err) = self.process_new_packets() {
                // The alert that tells the client why.
                let _ = self.write_tls(&mut socket);
                return Err(io::Error::new(io::ErrorKind::InvalidData, err));
            }
        }
        Ok(())
    }

    fn read(&mut self, mut socket: &Socket, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.reader().read(buf) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                // A client that leaves without saying goodbye in TLS: there is nothing that it could have cut
                // short unseen.
                Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                other => return other,
            }
            if self.read_tls(&mut socket)? == 0 {
                return Ok(0);
            }
            if let Err(err) = self.process_new_packets() {
                let _ = self.write_tls(&mut socket);
                return Err(io::Error::new(io::ErrorKind::InvalidData, err));
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer().write(bytes)
    }

    fn flush(&mut self, mut socket: &Socket) -> io::Result<()> {
        while (**self).wants_write() {
            self.write_tls(&mut socket)?;
        }
        Ok(())
    }

    fn close(&mut self, socket: &Socket) {
        self.send_close_notify();
        // Whoever has left does not hear it.
        let _ = Session::flush(self, socket);
    }
}
