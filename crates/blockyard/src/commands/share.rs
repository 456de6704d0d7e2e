//! `blockyard share`: a directory of this machine, at another place of it or in a virtual machine. Options are spelled as those
//! of virtiofsd, too.

use std::path::Path;

use blockyard_fs::{CachePolicy, Options};

use super::serve::ready;
use crate::cli::{ShareArgs, ShareCache};
use crate::daemon::{Daemon, Passed};
use crate::disks::{Value, absolute};
use crate::error::{Error, Result};
use crate::exports::share::{self, Directory, MountAt};
use crate::exports::{Bound, ExportPlan, virtiofs};
use crate::yard::plan::YardPlan;

pub(super) fn run(args: &ShareArgs) -> Result<()> {
    let kind = if args.place.mount.is_some() { &share::KIND } else { &virtiofs::KIND };
    let path = absolute(Path::new(""), directory(args)).map_err(Error::usage)?;
    let export = ExportPlan::new(kind, "", path.to_string_lossy())
        .with("read_only", Value::Flag(args.read_only));
    let plan = YardPlan::alone(export);
    Daemon::start_with(plan, Passed::none(), |_| Ok(vec![bind(args)?]))?.run(ready)
}

/// The directory to share. One of two is given.
fn directory(args: &ShareArgs) -> &Path {
    args.directory.as_deref().or(args.shared_dir.as_deref()).unwrap_or(Path::new("."))
}

fn bind(args: &ShareArgs) -> Result<Bound> {
    let cache = match args.cache {
        ShareCache::Never => CachePolicy::Never,
        ShareCache::Auto => CachePolicy::Auto,
        ShareCache::Always => CachePolicy::Always,
    };
    let options = Options { cache, read_only: args.read_only, ..Options::default() };
    let directory = Directory { path: directory(args).to_owned(), options };
    let (place, threads) = (&args.place, args.threads);
    if let Some(path) = place.mount.clone() {
        let at = MountAt { path, allow_other: args.allow_other, threads };
        return share::bind(directory, at);
    }
    let (socket, fd) = (place.socket.clone(), place.fd);
    let (tag, queues) = (args.tag.clone(), args.queues);
    virtiofs::bind(&directory, virtiofs::Device { socket, fd, tag, queues, threads })
}
