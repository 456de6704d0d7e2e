//! Certificates of TLS, for both sides: what their files hold, and what can be wrong with them. Reading a file is up to the
//! caller.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

/// Where the revoked certificates of an authority are, beside its own: GnuTLS' programs put them there.
const REVOCATIONS: &str = "ca-crl.pem";

/// Reads a file.
pub type Reader = fn(&Path) -> io::Result<Vec<u8>>;

/// What is wrong with a file, and why. It becomes the error of any crate whose kinds have one for it.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct BadFile(blockyard_error::Error<()>);

impl BadFile {
    /// A problem, which ends with what goes before the name of the file.
    #[must_use]
    pub fn new(problem: &str, path: &Path) -> Self {
        Self(blockyard_error::Error::new((), format!("{problem} {}", path.display())))
    }

    /// Why.
    #[must_use]
    pub fn caused_by(self, source: impl Into<blockyard_error::Source>) -> Self {
        Self(self.0.caused_by(source))
    }
}

impl<K: for<'a> From<&'a BadFile>> From<BadFile> for blockyard_error::Error<K> {
    fn from(bad: BadFile) -> Self {
        let kind = K::from(&bad);
        bad.0.with_kind(kind)
    }
}

/// The files that something was made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsedFiles {
    /// Whom to trust.
    pub trusted: Option<PathBuf>,
    /// What these have revoked.
    pub revoked: Option<PathBuf>,
    /// Our certificate and its key.
    pub own: Option<(PathBuf, PathBuf)>,
}

impl UsedFiles {
    /// Whether these may take the place of those that were used `before`: who is not trusted, or was revoked, is not let in
    /// because a file is gone, nor does anybody go on without the certificate that it had. Other files may be used where the
    /// old ones are still there, as somebody has put them where they are looked for first.
    ///
    /// # Errors
    /// One that was used is gone.
    pub fn may_follow(&self, before: &Self, exists: fn(&Path) -> bool) -> Result<(), BadFile> {
        let gone = |path: &Path| Err(BadFile::new("missing, though used before:", path));
        if let Some(old) = before.trusted.as_deref().filter(|_| self.trusted != before.trusted) {
            return if exists(old) { Ok(()) } else { gone(old) };
        }
        if let Some(old) = before.revoked.as_deref().filter(|_| self.revoked != before.revoked) {
            return gone(old);
        }
        match &before.own {
            Some((certificate, key)) if self.own != before.own => {
                let missing = [certificate, key].into_iter().find(|path| !exists(path));
                match missing {
                    // Nobody was trusted that could have changed.
                    None if self.trusted.is_none() => Ok(()),
                    missing => gone(missing.unwrap_or(certificate)),
                }
            }
            _ => Ok(()),
        }
    }
}

/// What does the arithmetic: it takes the keys that OpenSSL and GnuTLS make, whatever their size.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The certificates in a file, one at least.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn chain(path: &Path, read: Reader) -> Result<Vec<CertificateDer<'static>>, BadFile> {
    let bad = || BadFile::new("cannot read a certificate from", path);
    let text = read(path).map_err(|err| bad().caused_by(err))?;
    let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|err| bad().caused_by(err))?;
    if chain.is_empty() { Err(bad()) } else { Ok(chain) }
}

/// A key that the provider can use.
///
/// # Errors
/// There is none, it cannot be read, or it is of no use.
pub fn private_key(
    path: &Path,
    provider: &CryptoProvider,
    read: Reader,
) -> Result<PrivateKeyDer<'static>, BadFile> {
    let bad = || BadFile::new("cannot read a private key from", path);
    let text = read(path).map_err(|err| bad().caused_by(err))?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|err| bad().caused_by(err))?;
    provider.key_provider.load_private_key(key.clone_key()).map_err(|err| {
        let problem = "the key is damaged, or of a kind that is not supported (RSA of 2048 to 8192 bits, ECDSA with P-256, \
                       P-384 or P-521, and Ed25519 are), in";
        BadFile::new(problem, path).caused_by(err)
    })?;
    Ok(key)
}

/// Why certificate and key cannot be used together.
#[must_use]
pub fn bad_pair(err: rustls::Error, certificate: &Path) -> BadFile {
    let problem = match err {
        rustls::Error::InconsistentKeys(_) => "the key does not belong to the certificate in",
        _ => "cannot use the certificate in",
    };
    BadFile::new(problem, certificate).caused_by(err)
}

/// Whom to trust.
///
/// # Errors
/// One of them cannot be.
pub fn roots(
    certificates: &[CertificateDer<'static>],
    path: &Path,
) -> Result<Arc<RootCertStore>, BadFile> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots
            .add(certificate.clone())
            .map_err(|err| BadFile::new("invalid trust anchor in", path).caused_by(err))?;
    }
    Ok(Arc::new(roots))
}

/// Where the revoked certificates of an authority are, if there are any.
#[must_use]
pub fn revocations_path(ca: &Path) -> PathBuf {
    ca.with_file_name(REVOCATIONS)
}

/// The certificates that an authority has revoked, and their file: none if there is no such file beside its own.
///
/// # Errors
/// It is there, and cannot be read: it revokes something, for all that is known.
pub fn revocations(
    ca: &Path,
    read: Reader,
) -> Result<Option<(PathBuf, Vec<CertificateRevocationListDer<'static>>)>, BadFile> {
    let path = revocations_path(ca);
    let text = match read(&path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => {
            let problem = "cannot read the revocation list";
            return Err(BadFile::new(problem, &path).caused_by(err));
        }
        Ok(text) => text,
    };
    let bad = || BadFile::new("cannot read a revocation list from", &path);
    let lists = CertificateRevocationListDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let lists = lists.map_err(|err| bad().caused_by(err))?;
    if lists.is_empty() { Err(bad()) } else { Ok(Some((path, lists))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(folder: &str, revokes: bool, has_own: bool) -> UsedFiles {
        let path = |name: &str| Path::new(folder).join(name);
        UsedFiles {
            trusted: Some(path("ca-cert.pem")),
            revoked: revokes.then(|| path(REVOCATIONS)),
            own: has_own.then(|| (path("client-cert.pem"), path("client-key.pem"))),
        }
    }

    #[test]
    fn what_was_used_is_not_given_up_because_it_is_gone() {
        let (all, none) = (|_: &Path| true, |_: &Path| false);
        let full = used("/a", true, true);
        assert!(full.may_follow(&full, none).is_ok());
        assert!(full.may_follow(&used("/a", false, false), none).is_ok(), "more is no less");
        for (less, exists, named) in [
            (used("/a", false, true), all as fn(&Path) -> bool, "/a/ca-crl.pem"),
            (used("/a", true, false), none, "/a/client-cert.pem"),
            (used("/a", true, false), all, "/a/client-cert.pem"),
            (used("/b", true, true), none, "/a/ca-cert.pem"),
        ] {
            let err = less.may_follow(&full, exists).unwrap_err().to_string();
            assert!(err.contains("missing, though used before") && err.contains(named), "{err}");
        }
        assert!(used("/b", false, false).may_follow(&full, all).is_ok(), "others are found first");
    }

    #[test]
    fn who_trusts_anybody_keeps_its_own_certificate() {
        let before = UsedFiles { trusted: None, ..used("/a", false, true) };
        assert!(UsedFiles::default().may_follow(&before, |_| false).is_err());
        let other = UsedFiles { trusted: None, ..used("/b", false, true) };
        assert!(other.may_follow(&before, |_| true).is_ok());
    }
}
