//! `blockyard share`: a directory of this machine, at another place of it or in a virtual machine.

mod mount;
mod socket;

use std::io;
use std::path::Path;
use std::sync::Arc;

use blockyard_fs::{CachePolicy, FileSystem, Options, Passthrough};
use rustix::fs::Mode;

use crate::cli::{ShareArgs, ShareCache};
use crate::error::{Error, Result};

pub(super) fn run(args: &ShareArgs) -> Result<()> {
    match &args.place.mount {
        Some(path) => mount::run(args, path),
        None => socket::run(args),
    }
}

/// The directory to share. One of two is given.
fn directory(args: &ShareArgs) -> &Path {
    args.directory.as_deref().or(args.shared_dir.as_deref()).unwrap_or(Path::new("."))
}

/// It, passed through.
fn passed_through(args: &ShareArgs) -> Result<Arc<dyn FileSystem>> {
    // What it is to take away, the client's kernel has taken from what programs ask for.
    rustix::process::umask(Mode::empty());
    let cache = match args.cache {
        ShareCache::Never => CachePolicy::Never,
        ShareCache::Auto => CachePolicy::Auto,
        ShareCache::Always => CachePolicy::Always,
    };
    let options = Options { cache, read_only: args.read_only, ..Options::default() };
    match Passthrough::new(directory(args), options) {
        Ok(passed) => Ok(Arc::new(passed)),
        Err(err) => Err(failed(args, err)),
    }
}

fn failed(args: &ShareArgs, err: io::Error) -> Error {
    let what = format!("cannot share {}", directory(args).display());
    let is_missing = err.kind() == io::ErrorKind::NotFound;
    let error = Error::failed(what).caused_by(err);
    if is_missing { error.help("correct the path, or create the directory") } else { error }
}
