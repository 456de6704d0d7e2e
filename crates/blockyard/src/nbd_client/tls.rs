//! Whom to trust and who we are: files in PEM, named as libnbd and QEMU name them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockyard_nbd::uri::{TlsParams, Transport, Uri};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::TlsOptions;
use crate::error::{Error, Result};

/// Whom Debian and most others trust.
const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The files that are used, from the options first, then from the directory in the URI, then from libnbd's own
/// places.
struct Files {
    ca: PathBuf,
    certificate: Option<(PathBuf, PathBuf)>,
}

impl Files {
    fn find(params: &TlsParams, options: &TlsOptions) -> Self {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let usual = home
            .iter()
            .flat_map(|home| [home.join(".pki/libnbd"), home.join(".config/pki/libnbd")]);
        let directory = match &params.certificates {
            Some(directory) => Some(PathBuf::from(directory)),
            None => usual
                .chain([PathBuf::from("/etc/pki/libnbd")])
                .find(|dir| dir.join("ca-cert.pem").exists()),
        };
        let inside = |name: &str| directory.as_ref().map(|directory| directory.join(name));
        let ca = options.ca.clone().or_else(|| inside("ca-cert.pem"));
        let found =
            inside("client-cert.pem").filter(|path| path.exists()).zip(inside("client-key.pem"));
        Self {
            ca: ca.unwrap_or_else(|| SYSTEM_CA.into()),
            certificate: options.certificate.clone().zip(options.key.clone()).or(found),
        }
    }
}

pub(super) fn client_config(params: &TlsParams, options: &TlsOptions) -> Result<Arc<ClientConfig>> {
    let failed = |err: rustls::Error| Error::failed("TLS cannot be set up").caused_by(err);
    let files = Files::find(params, options);
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(failed)?;
    let builder = if params.verify_peer == Some(false) {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
    } else {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&files.ca)? {
            roots.add(certificate).map_err(failed)?;
        }
        builder.with_root_certificates(roots)
    };
    let config = match &files.certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            let key =
                PrivateKeyDer::from_pem_file(key).map_err(|err| unreadable(key).caused_by(err))?;
            builder.with_client_auth_cert(chain, key).map_err(failed)?
        }
    };
    Ok(Arc::new(config))
}

/// The name that the server's certificate must have.
pub(super) fn server_name(uri: &Uri) -> Result<ServerName<'static>> {
    let name = match (&uri.tls_params.hostname, &uri.transport) {
        (Some(name), _) => name.as_str(),
        (None, Transport::Tcp { host, .. }) => host,
        (None, _) => "localhost",
    };
    ServerName::try_from(name.to_owned()).map_err(|err| {
        Error::usage(format!("{name:?} is no name for a certificate")).caused_by(err)
    })
}

fn unreadable(path: &Path) -> Error {
    Error::failed(format!("nothing in PEM can be read from {}", path.display()))
        .help("use --tls-ca, --tls-certificate and --tls-key, or name a directory: tls-certificates=DIR in the URI")
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = all.map_err(|err| unreadable(path).caused_by(err))?;
    if all.is_empty() { Err(unreadable(path)) } else { Ok(all) }
}

/// `tls-verify-peer=0`: encrypted, but with whom is not looked at.
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
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
