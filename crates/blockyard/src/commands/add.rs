//! `blockyard add` and `remove`: disks of a daemon that runs.

use std::path::Path;

use serde_json::{Map, Value};

use super::{disk_uri, found};
use crate::api::client::{Ask, escaped};
use crate::cli::{AddArgs, RemoveArgs};
use crate::error::{Error, Result};
use crate::exports;
use crate::text::term;

pub(super) fn add(args: &AddArgs) -> Result<()> {
    // A mistake is told here, not by a daemon.
    let plan = disk_uri(&args.uri)?;
    let yard = found::yard(args.daemon)?;
    let named = args.name.clone().or_else(|| plan.options.name.clone());
    let name = named.unwrap_or_else(|| {
        let taken = |name: &String| yard.daemon.disks.iter().any(|disk| disk.name == *name);
        let wanted = plan.default_name(0);
        let stem = wanted.strip_suffix('0').unwrap_or(&wanted).to_owned();
        let numbered = (0..=yard.daemon.disks.len()).map(|index| format!("{stem}{index}"));
        std::iter::once(wanted.clone()).chain(numbered).find(|name| !taken(name)).unwrap_or(wanted)
    });
    let folder = std::env::current_dir()
        .map_err(|err| Error::failed("the working directory cannot be told").caused_by(err))?;
    let query = if args.save { "?save=1" } else { "" };
    let mut wanted = vec![(format!("/v1/disks/{}{query}", escaped(&name)), disk(args, &folder))];
    for (kind, export) in exports_of(args, &name, &folder)? {
        wanted.push((format!("/v1/exports/{kind}/{}{query}", escaped(&name)), export));
    }
    let mut made: Vec<&str> = Vec::new();
    for (path, body) in &wanted {
        match yard.put(path, Value::Object(body.clone())) {
            Ok(true) => made.push(path),
            Ok(false) => {}
            Err(err) => {
                // All of it, or nothing. What cannot be taken back is listed.
                made.iter().rev().for_each(|path| drop(yard.wish(&Ask::delete(*path))));
                return Err(Error::failed(format!("cannot add {}", args.uri)).caused_by(err));
            }
        }
    }
    term::say(&name)
}

fn disk(args: &AddArgs, folder: &Path) -> Map<String, Value> {
    let mut disk = body(folder, &[("uri", args.uri.clone().into())]);
    if args.read_only {
        disk.insert("read_only".into(), true.into());
    }
    disk
}

fn exports_of(
    args: &AddArgs,
    name: &str,
    folder: &Path,
) -> Result<Vec<(&'static str, Map<String, Value>)>> {
    let common = [("disk", name.into()), ("read_only", args.read_only.into())];
    let mut wanted = Vec::new();
    if !args.no_nbd {
        wanted.push((exports::nbd::KIND.name, body(folder, &common)));
    }
    if let Some(socket) = &args.vhost_user_blk {
        let text = socket.to_str().ok_or_else(|| {
            Error::usage(format!("{} is not UTF-8, and JSON is", socket.display()))
        })?;
        let mut export = body(folder, &common);
        export.insert("socket".into(), text.into());
        wanted.push((exports::vhost_user_blk::KIND.name, export));
    }
    Ok(wanted)
}

fn body(folder: &Path, more: &[(&str, Value)]) -> Map<String, Value> {
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
        daemon.wish(&Ask::delete(path)).map_err(failed)?;
    }
    daemon.wish(&Ask::delete(format!("/v1/disks/{}{query}", escaped(&disk.name)))).map_err(failed)
}
