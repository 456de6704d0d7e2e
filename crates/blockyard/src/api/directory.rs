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
/// The one under `/tmp` is another's, or the working directory is unknown.
pub fn runtime_dir() -> Result<PathBuf> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found.clone());
    }
    let directory = std::path::absolute(find()?).map_err(|err| {
        Error::failed("BLOCKYARD_RUNTIME_DIR is relative, and the working directory is unknown")
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
    if rustix::process::geteuid().is_root() {
        return Ok("/run/blockyard".into());
    }
    if let Some(directory) = variable("XDG_RUNTIME_DIR") {
        return Ok(directory.join("blockyard"));
    }
    let directory = in_tmp();
    check(&directory).map_err(|err| {
        Error::failed(format!("cannot use {}", directory.display()))
            .caused_by(err)
            .help("set BLOCKYARD_RUNTIME_DIR to a directory of your own")
    })?;
    Ok(directory)
}

/// The directory of a user who has none. Anybody can guess its name, and make one of that name first.
fn in_tmp() -> PathBuf {
    PathBuf::from(format!("/tmp/blockyard-{}", rustix::process::geteuid().as_raw()))
}

/// One that exists has to be this user's alone: then nobody else can replace what is in it, nor itself, in a directory like
/// /tmp.
fn check(directory: &Path) -> io::Result<()> {
    let private = |found: &Metadata| is_private(found, rustix::process::geteuid().as_raw());
    match std::fs::symlink_metadata(directory) {
        Ok(found) if private(&found) => Ok(()),
        Ok(_) => {
            let what = "the directory must belong to this user, with mode 0700";
            Err(io::Error::new(io::ErrorKind::PermissionDenied, what))
        }
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) => Err(err),
    }
}

fn is_private(found: &Metadata, uid: u32) -> bool {
    found.is_dir() && found.uid() == uid && found.mode() & 0o077 == 0
}

/// Makes the directory, for this user only.
///
/// # Errors
/// The system refuses, or somebody else has made it meanwhile.
pub fn make(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let guessable = in_tmp();
    if directory.starts_with(&guessable) { check(&guessable) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_directory_that_another_could_change_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        check(&path).unwrap();
        DirBuilder::new().mode(0o700).create(&path).unwrap();
        check(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o770)).unwrap();
        assert_eq!(check(&path).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let link = dir.path().join("l");
        symlink(dir.path(), &link).unwrap();
        assert_eq!(check(&link).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
