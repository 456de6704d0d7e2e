//! NBD servers on memory and on files, each behind a unix socket.

use super::Context;
use anyhow::Result;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use xtask::child::{Server, fresh_dir};
use xtask::paths;

/// The size of the disks that are loaded, as people write it.
pub(super) const DISK: &str = "1G";
/// The same in bytes.
pub(super) const DISK_BYTES: u64 = 1 << 30;

/// A server that accepts.
pub(super) struct Served {
    /// Ended before its directory goes.
    server: Server,
    /// Where a client finds the disk.
    pub uri: String,
    _dir: TempDir,
    /// Its disk, if that is a file of its own.
    disk: Option<DiskFile>,
}

/// A file for a disk, in a directory of its own.
struct DiskFile {
    path: PathBuf,
    _dir: TempDir,
}

impl Served {
    pub(super) fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// The file that is its disk, if it has one of its own.
    pub(super) fn image(&self) -> Option<&Path> {
        self.disk.as_ref().map(|disk| disk.path.as_path())
    }
}

/// How a contender is started.
pub(super) type Start = fn(&Context) -> Result<Served>;

/// Our own server on a RAM disk.
pub(super) fn blockyard(context: &Context) -> Result<Served> {
    let disk = format!("ram:{DISK}");
    start(fresh_dir()?, |socket| blockyard_command(context, &disk, socket))
}

/// `blockyard serve DISK --nbd unix:SOCKET`
pub(super) fn blockyard_command(context: &Context, disk: &str, socket: &Path) -> Command {
    let mut command = context.blockyard();
    command.args(["serve", disk, "--nbd"]).arg(format!("unix:{}", socket.display()));
    command
}

/// Our own server on a disk at another server.
pub(super) fn proxy(context: &Context, upstream: &str) -> Result<Served> {
    start(fresh_dir()?, |socket| blockyard_command(context, upstream, socket))
}

/// nbdkit with its memory plugin.
pub(super) fn nbdkit(context: &Context) -> Result<Served> {
    nbdkit_of(context, DISK)
}

/// The same, of a size.
pub(super) fn nbdkit_of(context: &Context, size: &str) -> Result<Served> {
    start(fresh_dir()?, |socket| {
        let mut command = context.command("nbdkit");
        command.args(["--foreground", "--exit-with-parent", "--unix"]).arg(socket);
        command.args(["memory", size]);
        command
    })
}

/// Our own server on a file.
pub(super) fn blockyard_file(context: &Context) -> Result<Served> {
    let image = disk_file()?;
    let disk = format!("file:{}", image.path.display());
    let served = start(fresh_dir()?, |socket| blockyard_command(context, &disk, socket))?;
    Ok(Served { disk: Some(image), ..served })
}

/// nbdkit with its file plugin.
pub(super) fn nbdkit_file(context: &Context) -> Result<Served> {
    let image = disk_file()?;
    let served = start(fresh_dir()?, |socket| {
        let mut command = context.command("nbdkit");
        command.args(["--foreground", "--exit-with-parent", "--unix"]).arg(socket);
        command.arg("file").arg(&image.path);
        command
    })?;
    Ok(Served { disk: Some(image), ..served })
}

/// A directory where cargo builds: that is seldom a file system in memory.
pub(super) fn storage_dir() -> Result<TempDir> {
    std::fs::create_dir_all(paths::target())?;
    Ok(tempfile::Builder::new().prefix("disk-").tempdir_in(paths::target())?)
}

fn disk_file() -> Result<DiskFile> {
    let dir = storage_dir()?;
    Ok(DiskFile { path: image(&dir)?, _dir: dir })
}

/// qemu-nbd on a file in memory.
pub(super) fn qemu_nbd(context: &Context) -> Result<Served> {
    let dir = memory_dir()?;
    let image = image(&dir)?;
    start(dir, |socket| {
        let mut command = context.qemu("qemu-nbd");
        command
            .args(["--persistent", "--format", "raw", "--shared", "8", "--socket"])
            .arg(socket)
            .arg(image);
        command
    })
}

pub(super) fn memory_dir() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("blockyard-").tempdir_in("/dev/shm")?)
}

fn image(dir: &TempDir) -> Result<PathBuf> {
    let path = dir.path().join("image");
    File::create(&path)?.set_len(DISK_BYTES)?;
    Ok(path)
}

pub(super) fn socket_in(dir: &TempDir) -> PathBuf {
    dir.path().join("socket")
}

fn start(dir: TempDir, command: impl FnOnce(&Path) -> Command) -> Result<Served> {
    let socket = socket_in(&dir);
    let mut server = Server::start(&mut command(&socket), &dir.path().join("log"))?;
    server.wait_accepting(&socket)?;
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    Ok(Served { server, uri, _dir: dir, disk: None })
}
