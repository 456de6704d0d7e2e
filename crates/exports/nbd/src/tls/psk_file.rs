//! The file of pre-shared keys.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use blockyard_error::quoted;
use blockyard_nbd::psk::{self, Keys, MAX_FILE};

use crate::error::{Error, ErrorKind};

/// Permissions of anybody but the owner.
const OTHERS: u32 = 0o077;

/// Reads and checks the file.
pub(super) fn load(path: &Path) -> Result<Keys, Error> {
    let bad = |problem: String| {
        Error::new(
            ErrorKind::Tls,
            format!("invalid file of pre-shared keys {}: {problem}", path.display()),
        )
    };
    let (text, mode) =
        read(path).map_err(|err| bad("cannot read the file".into()).caused_by(err))?;
    if mode & OTHERS != 0 {
        let mode = format!("{:o}", mode & 0o777);
        tracing::warn!(
            path = %path.display(),
            mode,
            "file of pre-shared keys is accessible to other users; run: chmod 600 {}",
            quoted(path)
        );
    }
    psk::parse(&text).map_err(|mistake| bad(mistake.to_string()))
}

fn read(path: &Path) -> std::io::Result<(Vec<u8>, u32)> {
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text)?;
    Ok((text, mode))
}
