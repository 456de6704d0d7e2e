//! `blockyard set`: a disk is changed while it is used.

use serde_json::{Map, Value as Json};

use super::found;
use crate::api::client::{Ask, escaped};
use crate::cli::SetArgs;
use crate::disks::{self, Value};
use crate::error::{Error, Result};

pub(super) fn run(args: &SetArgs) -> Result<()> {
    let mut changes = Map::new();
    for (name, value) in
        args.settings.iter().map(|text| change(text)).collect::<Result<Vec<_>>>()?
    {
        if changes.insert(name.to_owned(), value).is_some() {
            return Err(Error::usage(format!("{name} is given twice")));
        }
    }
    let (daemon, disk) = found::disk(&args.disk)?;
    let mut query = Vec::new();
    query.extend(args.shrink.then_some("shrink=1"));
    query.extend(args.save.then_some("save=1"));
    let path = format!("/v1/disks/{}?{}", escaped(&disk.name), query.join("&"));
    let failed = |err| Error::failed(format!("cannot set {}", disk.name)).caused_by(err);
    daemon.wish(&Ask::patch(&path, changes.into())).map_err(failed)
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
