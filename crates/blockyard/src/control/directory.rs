//! Where the control sockets are.

use std::fs::{DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::error::{Error, Result};

/// Names the directory.
const VARIABLE: &str = "BLOCKYARD_RUNTIME_DIR";

/// The directory of the control sockets of this user: `$BLOCKYARD_RUNTIME_DIR`, else `/run/blockyard` for root,
/// else `$XDG_RUNTIME_DIR/blockyard`, else a directory under `/tmp` that nobody else may use.
///
/// It stays what it was when it was first asked for, wherever this process goes.
///
/// # Errors
/// The one under `/tmp` is another's, or the working directory cannot be told.
pub fn runtime_dir() -> Result<PathBuf> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found.clone());
    }
    let directory = std::path::absolute(find()?).map_err(|err| {
        Error::failed("BLOCKYARD_RUNTIME_DIR starts at the working directory, which cannot be told")
            .caused_by(err)
    })?;
    Ok(FOUND.get_or_init(|| directory).clone())
}

/// Sees to it that a process which this one starts, wherever it does, uses the same directory.
pub fn pass_runtime_dir(command: &mut Command) -> &mut Command {
    match runtime_dir() {
        Ok(directory) => command.env(VARIABLE, directory),
        // It will have the same trouble, and say so.
        Err(_) => command,
    }
}

fn find() -> Result<PathBuf> {
    let variable =
        |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(directory) = variable(VARIABLE) {
        return Ok(directory);
    }
    let uid = rustix::process::getuid();
    if uid.is_root() {
        return Ok("/run/blockyard".into());
    }
    if let Some(directory) = variable("XDG_RUNTIME_DIR") {
        return Ok(directory.join("blockyard"));
    }
    let directory = PathBuf::from(format!("/tmp/blockyard-{}", uid.as_raw()));
    match std::fs::symlink_metadata(&directory) {
        Ok(found) if !is_private(&found, uid.as_raw()) => {
            let what = format!(
                "{} belongs to somebody else, or others may write to it",
                directory.display()
            );
            Err(Error::failed(what).help("set BLOCKYARD_RUNTIME_DIR to a directory of your own"))
        }
        _ => Ok(directory),
    }
}

fn is_private(found: &Metadata, uid: u32) -> bool {
    found.is_dir() && found.uid() == uid && found.mode() & 0o077 == 0
}

/// Makes the directory, for this user only.
///
/// # Errors
/// The system refuses.
pub fn make(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}
