//! The files of certificates: what is read from them, and what can be wrong with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use crate::error::{Error, ErrorKind};

/// Where the revoked certificates of an authority are, beside its own: GnuTLS' programs put them there.
const REVOCATIONS: &str = "ca-crl.pem";

/// What does the arithmetic: it takes the keys that OpenSSL and GnuTLS make, whatever their size.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

pub(super) fn bad_file(problem: &str, path: &Path) -> Error {
    Error::new(ErrorKind::Tls, format!("{problem} {}", path.display()))
}

/// The certificates in a file, one at least.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let problem = "no certificate can be read from";
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|err| bad_file(problem, path).caused_by(err))?;
    if chain.is_empty() { Err(bad_file(problem, path)) } else { Ok(chain) }
}

/// A key that the provider can use.
pub(super) fn private_key(
    path: &Path,
    provider: &CryptoProvider,
) -> Result<PrivateKeyDer<'static>, Error> {
    let key = PrivateKeyDer::from_pem_file(path)
        .map_err(|err| bad_file("no private key can be read from", path).caused_by(err))?;
    provider.key_provider.load_private_key(key.clone_key()).map_err(|err| {
        let problem = "the key is damaged, or of a kind that is not supported (RSA of 2048 to 8192 bits, ECDSA with P-256, \
                       P-384 or P-521, and Ed25519 are), in";
        bad_file(problem, path).caused_by(err)
    })?;
    Ok(key)
}

/// Why certificate and key cannot be used together.
pub(super) fn bad_pair(err: rustls::Error, certificate: &Path) -> Error {
    let problem = match err {
        rustls::Error::InconsistentKeys(_) => "the key does not belong to the certificate in",
        _ => "the certificate cannot be used in",
    };
    bad_file(problem, certificate).caused_by(err)
}

/// Whom to trust.
pub(super) fn roots(
    certificates: &[CertificateDer<'static>],
    path: &Path,
) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate.clone()).map_err(|err| {
            bad_file("there is a certificate that cannot be trusted in", path).caused_by(err)
        })?;
    }
    Ok(Arc::new(roots))
}

/// The certificates that an authority has revoked: none if there is no such file beside its own.
pub(super) fn revocations(
    ca: &Path,
) -> Result<Option<(PathBuf, Vec<CertificateRevocationListDer<'static>>)>, Error> {
    let path = ca.with_file_name(REVOCATIONS);
    match path.try_exists() {
        Ok(false) => return Ok(None),
        Ok(true) => {}
        // What is there but cannot be looked at revokes something, for all that is known.
        Err(err) => {
            return Err(bad_file("it cannot be known who is revoked by", &path).caused_by(err));
        }
    }
    let problem = "no list of revoked certificates can be read from";
    let lists = CertificateRevocationListDer::pem_file_iter(&path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|err| bad_file(problem, &path).caused_by(err))?;
    if lists.is_empty() { Err(bad_file(problem, &path)) } else { Ok(Some((path, lists))) }
}
