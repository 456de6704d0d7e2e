//! Directories of this machine in virtual machines: a vhost-user-fs back-end.

use std::path::PathBuf;
use std::sync::Arc;

use blockyard_export_virtiofs::{self as virtiofs, Export, Listener};

use super::share::Directory;
use super::vhost_user_blk::BackEnd;
use super::{Bound, ExportKind, only_by_command};
use crate::error::{Error, ErrorKind, Result};

/// The kind of directories in virtual machines.
pub static KIND: ExportKind = ExportKind {
    // No disk is named.
    whole_yard: true,
    ..ExportKind::new("vhost-user-fs", "", "a directory in a virtual machine", only_by_command)
};

/// Request queues, unless told otherwise.
const QUEUES: u16 = 1;
/// Requests of each that are carried out at a time, unless told otherwise.
const THREADS: u16 = 4;

/// How a virtual machine gets at a directory.
pub struct Device {
    /// The path of a socket.
    pub socket: Option<PathBuf>,
    /// Else, the number of an inherited one.
    pub fd: Option<u32>,
    /// What guests mount it by.
    pub tag: Option<String>,
    /// Request queues.
    pub queues: Option<u16>,
    /// Requests of each that are carried out at a time.
    pub threads: Option<u16>,
}

/// Takes the socket.
///
/// # Errors
/// What keeps the directory from being shared there.
pub fn bind(directory: &Directory, device: Device) -> Result<Bound> {
    // Before there is no umask any more: who may connect can do all that may be done to the directory.
    let listener = match &device.socket {
        Some(path) => virtiofs::bind(path, None),
        None => Listener::from_passed(device.fd.and_then(|fd| fd.try_into().ok()).unwrap_or(-1)),
    };
    let listener = listener.map_err(error)?;
    let export = Export {
        fs: directory.passed_through()?,
        tag: device.tag,
        queues: device.queues.unwrap_or(QUEUES),
        threads: device.threads.unwrap_or(THREADS),
        // As virtiofsd: nothing of a request that hangs may reach the memory of a guest that was reset meanwhile.
        stop_patience: None,
    };
    let prepared = virtiofs::prepare(export, listener).map_err(error)?;
    Ok(Box::new(|_| Ok(Arc::new(BackEnd::new(&KIND, prepared)))))
}

fn error(err: virtiofs::Error) -> Error {
    use virtiofs::ErrorKind as Kind;
    let kind = match err.kind() {
        Kind::InUse => ErrorKind::Busy,
        Kind::NotPermitted => ErrorKind::NotPermitted,
        Kind::Config => ErrorKind::Usage,
        Kind::Io => ErrorKind::Failed,
    };
    Error::new(kind, "cannot serve virtiofs").caused_by(err)
}
