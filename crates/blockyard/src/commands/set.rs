//! `blockyard set`: a disk is changed while it is used.

use serde_json::{Map, Value as Json};

use super::found;
use crate::api::client::{Ask, escaped};
use crate::cli::SetArgs;
use crate::disks::{self, Value};
use crate::error::{Error, Result};

pub(super) fn run(args: &SetArgs) -> Result<()> {
    let changes = args.settings.iter().map(|text| change(text)).collect::<Result<Vec<_>>>()?;
    let (daemon, disk) = found::disk(&args.disk)?;
    let mut query = Vec::new();
    query.extend(args.shrink.then_some("shrink=1"));
    query.extend(args.save.then_some("save=1"));
    let path = format!("/v1/disks/{}?{}", escaped(&disk.name), query.join("&"));
    let failed = |err| Error::failed(format!("cannot set {}", disk.name)).caused_by(err);
    // One after the other: what comes next is compared with what the disk has become.
    changes.into_iter().try_for_each(|(name, value)| {
        let wanted = Map::from_iter([(name.to_owned(), value)]);
        daemon.wish(&Ask::patch(&path, wanted.into())).map_err(failed)
    })
}

/// A setting as it was typed.
fn change(text: &str) -> Result<(&'static str, Json)> {
    let (key, value) = text.split_once('=').ok_or_else(|| {
        Error::usage(format!("invalid setting {text:?}")).help("write e.g. size=2G or read_only=1")
    })?;
    let (option, parsed) = disks::setting(key, value)?;
    let said = match parsed {
        Value::Flag(flag) => flag.into(),
        _ => value.into(),
    };
    Ok((option.name, said))
}
