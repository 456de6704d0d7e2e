//! `blockyard add` and `remove`: disks of a daemon that runs.

use std::path::Path;

use serde_json::{Map, Value};

use super::found::Found;
use super::{disk_uri, found};
use crate::api::client::{Ask, escaped};
use crate::cli::{AddArgs, RemoveArgs};
use crate::disks::DiskPlan;
use crate::error::{Error, ErrorKind, Result};
use crate::exports;
use crate::text::term;
use crate::yard::report::RemovedReport;

/// Names that are tried for a disk that was given none.
const MAX_NAMES: usize = 1024;

pub(super) fn add(args: &AddArgs) -> Result<()> {
    // A mistake is told here, not by a daemon.
    let plan = disk_uri(&args.uri)?;
    let yard = found::yard(args.daemon)?;
    let folder = std::env::current_dir()
        .map_err(|err| Error::failed("cannot determine the working directory").caused_by(err))?;
    let failed = |err| Error::failed(format!("cannot add {}", args.uri)).caused_by(err);
    let wanted = disk(args, &folder);
    let named = args.name.clone().or_else(|| plan.options.name.clone());
    let (name, is_made) = match named {
        Some(name) => {
            let made = yard.put(&path_of_disk(args, &name), wanted.into());
            (name, made.map_err(failed)?)
        }
        None => (add_with_new_name(args, &plan, &yard, &wanted).map_err(failed)?, true),
    };
    let mut made: Vec<String> = is_made.then(|| path_of_disk(args, &name)).into_iter().collect();
    let exported = exports_of(args, &name, &folder).and_then(|exports| {
        exports.into_iter().try_for_each(|(kind, export)| {
            let path = format!("/v1/exports/{kind}/{}{}", escaped(&name), query(args));
            if yard.put(&path, export.into())? {
                made.push(path);
            }
            Ok(())
        })
    });
    if let Err(err) = exported {
        // All of it, or nothing. What cannot be taken back is listed.
        made.iter().rev().for_each(|path| drop(yard.wish(&Ask::delete(path))));
        return Err(failed(err));
    }
    if !is_made {
        // Its name alone would read as if it were new.
        let then = if made.is_empty() { "nothing changed" } else { "only exports were added" };
        term::tell(format_args!("{name} already exists: {then}"));
    }
    term::say(&name)
}

fn query(args: &AddArgs) -> &'static str {
    if args.save { "?save=1" } else { "" }
}

fn path_of_disk(args: &AddArgs, name: &str) -> String {
    format!("/v1/disks/{}{}", escaped(name), query(args))
}

/// Adds a disk under a name that no other has, and gives the name. Whoever adds one at the same time takes another.
fn add_with_new_name(
    args: &AddArgs,
    plan: &DiskPlan,
    yard: &Found,
    wanted: &Map<String, Value>,
) -> Result<String> {
    let first = plan.default_name(0);
    let stem = first.strip_suffix('0').unwrap_or(&first).to_owned();
    let is_known = |name: &String| yard.daemon.disks.iter().any(|disk| disk.name == *name);
    let names = (0..).map(|index: usize| format!("{stem}{index}"));
    let names = std::iter::once(first.clone()).chain(names).filter(|name| !is_known(name));
    for name in names.take(MAX_NAMES) {
        if yard.put_new(&path_of_disk(args, &name), wanted.clone().into())? {
            return Ok(name);
        }
    }
    Err(Error::new(ErrorKind::Busy, format!("all names like {first} are in use"))
        .help("choose another with --name NAME"))
}

fn disk(args: &AddArgs, folder: &Path) -> Map<String, Value> {
    let mut disk = body(folder, &[("uri", args.uri.clone().into())]);
    if args.read_only {
        disk.insert("read_only".into(), true.into());
    }
    disk
}

pub(crate) fn exports_of(
    args: &AddArgs,
    name: &str,
    folder: &Path,
) -> Result<Vec<(&'static str, Map<String, Value>)>> {
    let common = [("disk", name.into()), ("read_only", args.read_only.into())];
    let mut wanted = Vec::new();
    if !args.no_nbd {
        wanted.push((exports::nbd::KIND.name, body(folder, &common)));
    }
    for asked in args.exports.exports() {
        let mut export = body(folder, &common);
        for (option, value) in asked.said {
            export.insert(option.into(), utf8(value.as_ref())?.into());
        }
        wanted.push((asked.kind.name, export));
    }
    Ok(wanted)
}

pub(super) fn utf8(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Error::usage(format!("{} is not UTF-8", path.display())))
}

pub(super) fn body(folder: &Path, more: &[(&str, Value)]) -> Map<String, Value> {
    let mut body = Map::new();
    body.insert("folder".into(), folder.to_string_lossy().into());
    body.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    body
}

pub(super) fn remove(args: &RemoveArgs) -> Result<()> {
    let (daemon, disk) = found::disk(&args.disk)?;
    let query = if args.save { "?save=1" } else { "" };
    let failed = |err| Error::failed(format!("cannot remove {}", disk.name)).caused_by(err);
    for export in daemon.daemon.exports.iter().filter(|export| export.disk == disk.name) {
        let path = format!("/v1/exports/{}/{}{query}", export.kind, escaped(&export.name));
        let answer = daemon.ask(&Ask::delete(path)).map_err(failed)?;
        if let Some(RemovedReport { in_flight }) = answer.value_if_any().map_err(failed)? {
            let requests = if in_flight == 1 { "request" } else { "requests" };
            term::tell(format_args!(
                "removed export {}; {in_flight} {requests} of its clients still in flight at the disk",
                export.name
            ));
        }
    }
    daemon.wish(&Ask::delete(format!("/v1/disks/{}{query}", escaped(&disk.name)))).map_err(failed)
}
