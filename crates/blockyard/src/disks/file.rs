//! `file:`, and bare paths: a file or a block device.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockyard_blkmq::Disk;
use blockyard_driver_file::{Engine, ErrorKind as FileErrorKind, File, FileConfig, Info};
use tokio::runtime::Handle;

use super::identity::DiskIdentity;
use super::kind::{Body, DiskKind, DiskSource, Fresh, Place, Said};
use super::maker::{DiskMaker, Parts, failed_flush_of, shown_size};
use super::options::{OptionSpec, ValueKind};
use super::plan::{DiskPlan, absolute};
use crate::disks::uri::is_path;
use crate::error::{Error, ErrorKind, Result};

/// How long the lock of a file is waited for.
const LOCK_LIMIT: Duration = Duration::from_millis(500);

/// The kind of disks that are files.
pub static KIND: DiskKind = DiskKind {
    name: "file",
    schemes: &["file"],
    body: Body::Path,
    usage: "file:PATH",
    summary: "a file or a block device; PATH alone is enough where there are no options",
    options: &[
        OptionSpec::new("direct", ValueKind::Flag, "0", "bypass the page cache"),
        OptionSpec::new(
            "create",
            ValueKind::Size,
            "off; the file must exist",
            "create a missing file, sparse, with this size",
        ),
        OptionSpec::new(
            "lock",
            ValueKind::Flag,
            "1",
            "lock the file against use by other processes",
        ),
        OptionSpec::new(
            "engine",
            ValueKind::Choice(&["auto", "uring", "threads"]),
            "auto",
            "I/O engine",
        ),
    ],
    without: &[],
    has_below: false,
    stays_read_only: true,
    is_volatile: false,
    source,
};

/// A file, and how it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSource {
    /// The file or block device.
    pub path: PathBuf,
    /// Past the page cache.
    pub direct: bool,
    /// Make it, sparse and so large, if it is not there.
    pub create: Option<u64>,
    /// Keep others from using it at the same time.
    pub lock: bool,
    /// How it is read and written.
    pub engine: Engine,
}

fn source(said: &Said<'_>) -> Result<Box<dyn DiskSource>, String> {
    let Some(Place::Path(path)) = said.place else {
        return Err("the path is missing; write file:/path".into());
    };
    let create = said.settings.number("create");
    if said.options.read_only && create.is_some() {
        return Err(
            "create and read_only cannot be combined: a new read-only disk would stay empty".into(),
        );
    }
    let path = absolute(said.folder, path)?;
    if is_path(said.uri) {
        not_options(said.uri, &path)?;
    }
    Ok(Box::new(FileSource {
        path,
        direct: said.settings.flag("direct").unwrap_or(false),
        create,
        lock: said.settings.flag("lock").unwrap_or(true),
        engine: match said.settings.text("engine") {
            Some("uring") => Engine::Uring,
            Some("threads") => Engine::Threads,
            _ => Engine::Auto,
        },
    }))
}

/// A path is taken as it is, but what looks like options and is no file was meant as options.
fn not_options(text: &str, path: &Path) -> Result<(), String> {
    let Some((_, query)) = text.split_once('?') else { return Ok(()) };
    let key = query.split(['=', '&']).next().unwrap_or(query);
    let is_key = |c: char| c.is_ascii_lowercase() || "-_".contains(c);
    if key.is_empty() || !key.chars().all(is_key) || path.symlink_metadata().is_ok() {
        return Ok(());
    }
    Err(format!("no such file, and a path has no options; write file:{text}"))
}

impl DiskSource for FileSource {
    fn open(&self, plan: &DiskPlan, _: Option<&Arc<Disk>>, maker: &mut DiskMaker) -> Result<Fresh> {
        let config = FileConfig {
            direct: self.direct,
            read_only: plan.options.read_only,
            create_size: self.create,
            engine: self.engine,
            lock: self.lock,
            ..FileConfig::new(&self.path)
        };
        let (driver, info) = open_file(&config, maker.threads())?;
        let size = shown_size(plan, info.size)?;
        driver.show(size);
        let parts = Parts::new(plan, maker, Arc::clone(&driver), size, info.limits);
        let disk = maker.alloc(plan, parts)?;
        driver.on_failed_flush(failed_flush_of(&disk));
        Ok(Fresh { disk, remote: None })
    }

    fn identity(&self) -> io::Result<Option<DiskIdentity>> {
        DiskIdentity::of_path(&self.path).map(Some)
    }

    fn stem(&self) -> Option<&str> {
        self.path.file_stem().and_then(|stem| stem.to_str())
    }

    fn file(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn never_make(&mut self) {
        self.create = None;
    }

    fn make_if_absent(&mut self, size: u64) {
        if !self.path.exists() {
            self.create.get_or_insert(size);
        }
    }

    fn share(&mut self) {
        self.lock = false;
    }
}

/// Opens a file. The kernel closes the files of a process that was killed a moment after its end if it had an
/// io_uring, so that a lock may be gone in a while.
fn open_file(config: &FileConfig, threads: &[Handle]) -> Result<(Arc<File>, Info)> {
    let begun = Instant::now();
    loop {
        match File::open(config, threads) {
            Err(err) if err.kind() == FileErrorKind::Locked && begun.elapsed() < LOCK_LIMIT => {
                std::thread::sleep(LOCK_LIMIT / 20);
            }
            opened => return opened.map_err(file_error),
        }
    }
}

fn file_error(err: blockyard_driver_file::Error) -> Error {
    use FileErrorKind as Kind;
    let kind = match err.kind() {
        Kind::Locked => ErrorKind::Busy,
        Kind::NotPermitted => ErrorKind::NotPermitted,
        Kind::NotSupported => ErrorKind::Unavailable,
        Kind::NotFound | Kind::NotAFile | Kind::Size | Kind::Invalid | Kind::Io => {
            ErrorKind::Failed
        }
    };
    Error::new(kind, err.to_string()).caused_by(err)
}
