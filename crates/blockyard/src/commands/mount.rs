//! `blockyard mount`: all disks of a yard as files of a directory.

use std::path::Path;

use super::add::{body, utf8};
use super::found;
use super::serve::ready;
use super::up;
use crate::api::client::escaped;
use crate::cli::MountArgs;
use crate::daemon::{Daemon, Passed};
use crate::disks::{Value, ValueKind, absolute};
use crate::error::{Error, Result};
use crate::exports::ExportPlan;
use crate::exports::fuse::DIRECTORY;
use crate::yard::config::Needs;

pub(super) fn run(args: &MountArgs) -> Result<()> {
    let text = args.yard.to_str().unwrap_or_default();
    match text.parse::<u32>() {
        Ok(pid) if !args.yard.exists() => ask(pid, args),
        _ => start(args),
    }
}

/// A daemon that runs mounts it.
fn ask(pid: u32, args: &MountArgs) -> Result<()> {
    let directory = here(&args.directory)?;
    let name = utf8(&directory)?;
    let mut wanted = body(Path::new("/"), &[("path", name.into())]);
    for (option, given) in flags(args).into_iter().filter(|(_, given)| *given) {
        wanted.insert(option.into(), given.into());
    }
    if let Some(mode) = &args.mode {
        wanted.insert("mode".into(), mode.clone().into());
    }
    let yard = found::yard(Some(pid))?;
    let path = format!("/v1/exports/{}/{}", DIRECTORY.name, escaped(name));
    yard.put(&path, wanted.into()).map(drop)
}

/// As `up`, with the directory.
fn start(args: &MountArgs) -> Result<()> {
    let passed = Passed::take();
    let mut plan = up::load(&args.yard, Needs::Disks)?;
    let directory = here(&args.directory)?;
    let mut export = ExportPlan::new(&DIRECTORY, "", utf8(&directory)?)
        .with("path", Value::Path(directory.clone()));
    for (option, given) in flags(args) {
        export = export.with(option, Value::Flag(given));
    }
    if let Some(mode) = &args.mode {
        let mode = ValueKind::Mode.parse("mode", "600", mode);
        let mode = mode.map_err(|problem| Error::usage(format!("--mode: {problem}")))?;
        export = export.with("mode", mode);
    }
    plan.exports.push(export);
    Daemon::start(plan, passed)?.run(ready)
}

fn flags(args: &MountArgs) -> [(&'static str, bool); 3] {
    [
        ("read_only", args.read_only),
        ("page_cache", args.page_cache),
        ("allow_other", args.allow_other),
    ]
}

fn here(path: &Path) -> Result<std::path::PathBuf> {
    absolute(Path::new(""), path).map_err(Error::usage)
}
