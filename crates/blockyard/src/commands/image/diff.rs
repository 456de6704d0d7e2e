//! What changed: diff, export-diff, import-diff, merge-diff.

use std::io::Read;
use std::path::Path;

use blockyard_rbd::image::{Diff, DiffOptions, Image};
use blockyard_rbd::stream::{DiffReader, DiffRecord, Version};
use serde::Serialize;

use super::cannot;
use super::files::{Output, input};
use super::place::Context;
use super::table::truth;
use crate::cli::DiffArgs;
use crate::error::{Error, Result, quoted};
use crate::images::{ImageSpec, OwnedImage, Store, rbd_error};
use crate::text::term;
use crate::tools::progress::Progress;

/// A range that changed, with the keys of `rbd`.
#[derive(Serialize)]
struct Row {
    offset: u64,
    length: u64,
    exists: &'static str,
}

async fn begin<'a>(
    image: &'a Image<Store>,
    spec: &ImageSpec,
    args: &DiffArgs,
) -> Result<Diff<'a, Store>> {
    let from = match &args.from_snap {
        Some(name) => Some(image.snapshot_record(name).map_err(cannot("start from", name))?.id),
        None => None,
    };
    let options = DiffOptions { from, whole_object: args.whole_object, with_parent: true };
    image.diff(options).await.map_err(cannot("compare the snapshots of", spec))
}

pub(super) async fn show(context: &Context<'_>, image: &str, args: &DiffArgs) -> Result<()> {
    let target = context.target(image)?;
    let (_store, image) = target.read().await?;
    let mut diff = begin(&image, &target.spec, args).await?;
    let mut rows = Vec::new();
    while let Some(found) = diff.next().await.map_err(cannot("read", &target.spec))? {
        rows.extend(found.into_iter().map(|changed| Row {
            offset: changed.offset,
            length: changed.length,
            exists: truth(changed.is_data),
        }));
    }
    if context.json {
        return term::say_json(&rows);
    }
    let mut table = term::table(&["Offset", "Length", "Type"]);
    for Row { offset, length, exists } in rows {
        let kind = if exists == "true" { "data" } else { "zero" };
        table.add_row([offset.to_string(), length.to_string(), kind.to_owned()]);
    }
    term::say(table.trim_fmt())
}

pub(super) async fn export(
    context: &Context<'_>,
    image: &str,
    file: &Path,
    args: &DiffArgs,
) -> Result<()> {
    let target = context.target(image)?;
    let (_store, image) = target.read().await?;
    let mut progress = context.progress("Exporting image", image.size());
    let mut diff = begin(&image, &target.spec, args).await?;
    let mut out = Output::make(file)?;
    let from = args.from_snap.as_deref();
    put(Version::V1, &image, &target.spec, from, &mut diff, &mut out, &mut progress).await?;
    out.finish()
}

/// Writes a diff.
pub(super) async fn put(
    version: Version,
    image: &Image<Store>,
    spec: &ImageSpec,
    from: Option<&str>,
    diff: &mut Diff<'_, Store>,
    out: &mut Output,
    progress: &mut Progress,
) -> Result<()> {
    let mut bytes = Vec::new();
    version.put_banner(&mut bytes);
    if let Some(from) = from {
        version.put(&mut bytes, &DiffRecord::From(from.into()));
    }
    if let Some(snapshot) = image.opened_snapshot() {
        version.put(&mut bytes, &DiffRecord::To(snapshot.name.clone()));
        let protected = blockyard_rbd::format::Protection::Protected as u8;
        version.put(&mut bytes, &DiffRecord::Protected(snapshot.protection == protected));
    }
    version.put(&mut bytes, &DiffRecord::Size(image.size()));
    out.put(&bytes)?;
    while let Some(found) = diff.next().await.map_err(cannot("read", spec))? {
        for changed in found {
            let (offset, length) = (changed.offset, changed.length);
            let data = match changed.is_data {
                true => image.read(offset, length).await.map_err(cannot("read", spec))?,
                false => Vec::new(),
            };
            bytes.clear();
            if data.iter().any(|byte| *byte != 0) {
                version.put_write(&mut bytes, offset, length);
                out.put(&bytes)?;
                out.put(&data)?;
            } else {
                version.put(&mut bytes, &DiffRecord::Zero { offset, length });
                out.put(&bytes)?;
            }
        }
        progress.set(diff.position());
    }
    bytes.clear();
    version.put(&mut bytes, &DiffRecord::End);
    out.put(&bytes)
}

pub(super) async fn import(context: &Context<'_>, file: &Path, image: &str) -> Result<()> {
    let target = context.image(image)?;
    let mut from = input(file)?;
    let import = async |owned: &mut OwnedImage| {
        let mut progress = context.progress("Importing image diff", owned.size());
        apply(owned, &target.spec, &mut from, &mut progress).await
    };
    target.owned(import).await
}

/// Does to an image what a diff says, and makes the snapshot that it leads to.
pub(super) async fn apply(
    owned: &mut OwnedImage,
    spec: &ImageSpec,
    from: &mut impl Read,
    progress: &mut Progress,
) -> Result<()> {
    let stream = |err| rbd_error("cannot read the diff", err);
    let mut reader = DiffReader::new(from).map_err(stream)?;
    let (mut to, mut is_protected) = (None, false);
    loop {
        match reader.next_record().map_err(stream)? {
            DiffRecord::From(name) => {
                if owned.snapshot_record(&name).is_err() {
                    let what =
                        format!("the diff starts from snapshot {name}, which {spec} does not have");
                    return Err(Error::failed(what).help("import the preceding diffs first"));
                }
            }
            DiffRecord::To(name) => {
                if owned.snapshot_record(&name).is_ok() {
                    let what =
                        format!("the end snapshot {name} of the diff already exists in {spec}");
                    return Err(Error::failed(what).help(format!(
                        "it may have been imported already; list snapshots: blockyard image snap ls {}",
                        quoted(spec.to_string())
                    )));
                }
                to = Some(name);
            }
            DiffRecord::Protected(protected) => is_protected = protected,
            DiffRecord::Size(size) if size == owned.size() => {}
            DiffRecord::Size(size) => {
                owned.resize(size).await.map_err(cannot("resize", spec))?;
            }
            DiffRecord::Write { offset, data } => {
                progress.set(offset);
                owned.write(offset, data).await.map_err(cannot("write", spec))?;
            }
            DiffRecord::Zero { offset, length } => {
                progress.set(offset);
                // What was cut off is gone.
                let length = length.min(owned.size().saturating_sub(offset));
                if length > 0 {
                    owned.zero(offset, length).await.map_err(cannot("write", spec))?;
                }
            }
            DiffRecord::End => break,
        }
    }
    if let Some(name) = to {
        owned.create_snapshot(&name).await.map_err(cannot("create a snapshot of", spec))?;
        if is_protected {
            owned.protect_snapshot(&name).await.map_err(cannot("protect a snapshot of", spec))?;
        }
    }
    owned.flush().await.map_err(cannot("flush", spec))
}

pub(super) fn merge(first: &Path, second: &Path, file: &Path) -> Result<()> {
    let (first, second) = (input(first)?, input(second)?);
    let mut out = Output::make(file)?;
    blockyard_rbd::stream::merge(first, second, &mut out)
        .map_err(|err| rbd_error("cannot merge the diffs", err))?;
    out.finish()
}
