//! Whole images: export, import, cp, deep cp.

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use blockyard_rbd::format::{Features, Layout};
use blockyard_rbd::image::{CreateOptions, DiffOptions, Image, create};
use blockyard_rbd::stream::{ExportHeader, Version, diff_count, put_diff_count};

use super::cannot;
use super::diff::{apply, put};
use super::files::{Output, input, is_standard};
use super::new::{check_namespace, options, usual_layout};
use super::place::{Context, Target, file_name};
use crate::cli::NewImageArgs;
use crate::error::{Error, Result};
use crate::images::{ImageSpec, OwnedImage, Store, own, rbd_error, read};
use crate::tools::progress::Progress;

/// Bytes that are zeroes and as many as this are not written to a new image (`rbd`'s default of --sparse-size).
const SPARSE_BYTES: usize = 4096;
/// What is read at a time.
const PIECE: usize = 4 << 20;

pub(super) async fn export(
    context: &Context<'_>,
    image: &str,
    file: Option<&Path>,
    format: u8,
) -> Result<()> {
    let target = context.target(image)?;
    let (store, image) = target.read().await?;
    let usual = PathBuf::from(&target.spec.image);
    let mut out = Output::make(file.unwrap_or(&usual))?;
    if format == 2 {
        export_all(context, &store, &target.spec, &image, &mut out).await?;
    } else {
        export_bytes(context, &target.spec, &image, &mut out).await?;
    }
    out.finish()
}

/// The bytes; holes stay holes in a file.
async fn export_bytes(
    context: &Context<'_>,
    spec: &ImageSpec,
    image: &Image<Store>,
    out: &mut Output,
) -> Result<()> {
    let mut progress = context.progress("Exporting image", image.size());
    if let Some(file) = out.file() {
        file.set_len(image.size()).map_err(|err| out.failed(err))?;
    }
    let zeroes = vec![0; SPARSE_BYTES];
    let (options, mut written) = (DiffOptions { with_parent: true, ..DiffOptions::default() }, 0);
    let mut diff = image.diff(options).await.map_err(cannot("read", spec))?;
    while let Some(found) = diff.next().await.map_err(cannot("read", spec))? {
        for changed in found.into_iter().filter(|changed| changed.is_data) {
            let data = image.read(changed.offset, changed.length).await;
            let data = data.map_err(cannot("read", spec))?;
            if let Some(file) = out.file() {
                file.write_all_at(&data, changed.offset).map_err(|err| out.failed(err))?;
                continue;
            }
            fill(out, changed.offset - written, &zeroes)?;
            out.put(&data)?;
            written = changed.offset + changed.length;
        }
        progress.set(diff.position());
    }
    if out.file().is_none() {
        fill(out, image.size() - written, &zeroes)?;
    }
    Ok(())
}

/// Writes so many zeroes.
fn fill(out: &mut Output, mut count: u64, zeroes: &[u8]) -> Result<()> {
    while count > 0 {
        let now = usize::try_from(count).unwrap_or(usize::MAX).min(zeroes.len());
        out.put(zeroes.get(..now).unwrap_or(zeroes))?;
        count -= now as u64;
    }
    Ok(())
}

/// All snapshots and what the image is now; of a snapshot, that and the ones before it.
async fn export_all(
    context: &Context<'_>,
    store: &Store,
    spec: &ImageSpec,
    image: &Image<Store>,
    out: &mut Output,
) -> Result<()> {
    let (unit, count) = image.layout().stripes();
    let header = ExportHeader {
        order: Some(image.layout().order().into()),
        features: Some(image.features().difference(Features::INTERNAL).bits()),
        stripe_unit: Some(unit),
        stripe_count: Some(count),
        metadata: image.metadata().await.map_err(cannot("read the metadata of", spec))?,
    };
    let mut bytes = Vec::new();
    header.put(&mut bytes);
    let views = views(image, spec);
    put_diff_count(&mut bytes, views.len() as u64);
    out.put(&bytes)?;
    let mut before: Option<(u64, String)> = None;
    for view in views {
        let opened = read(store, &view).await?;
        let mut progress = context.progress("Exporting image", opened.size());
        let from = before.as_ref().map(|(id, _)| *id);
        let options = DiffOptions { from, with_parent: true, ..DiffOptions::default() };
        let mut diff = opened.diff(options).await.map_err(cannot("read", &view))?;
        let from = before.as_ref().map(|(_, name)| name.as_str());
        put(Version::V2, &opened, &view, from, &mut diff, out, &mut progress).await?;
        before = opened.opened_snapshot().map(|snapshot| (snapshot.id, snapshot.name.clone()));
    }
    Ok(())
}

/// An image's snapshots up to the one that is meant, and the image itself if none is.
fn views(image: &Image<Store>, spec: &ImageSpec) -> Vec<ImageSpec> {
    let at = |name: &str| ImageSpec { snapshot: Some(name.to_owned()), ..spec.clone() };
    let mut views = Vec::new();
    for snapshot in image.user_snapshots() {
        views.push(at(&snapshot.name));
        if spec.snapshot.as_ref() == Some(&snapshot.name) {
            return views;
        }
    }
    views.push(spec.clone());
    views
}

pub(super) async fn import(
    context: &Context<'_>,
    file: &Path,
    image: Option<&str>,
    format: u8,
    new: &NewImageArgs,
) -> Result<()> {
    let target = match image {
        Some(image) => context.image(image)?,
        None => context.image(file_name(file)?)?,
    };
    let mut from = input(file)?;
    let read_header = |from: &mut Box<dyn Read>| ExportHeader::read(from);
    let header = match format {
        2 => Some(read_header(&mut from).map_err(|err| rbd_error("cannot import the file", err))?),
        _ => None,
    };
    let size = match &header {
        Some(_) => 0,
        None => bytes_of(file)?,
    };
    let options = match &header {
        Some(header) => of_header(header, new)?,
        None => options(new, size, usual_layout()?)?,
    };
    let mut owned = make(&target, &options).await?;
    let done = match header {
        Some(header) => import_all(context, &target, &mut owned, &header, &mut from).await,
        None => import_bytes(context, &target, &mut owned, is_standard(file), &mut from).await,
    };
    let closed = owned.close().await.map_err(cannot("close", &target.spec));
    if done.is_err() {
        take_back(&target).await;
    }
    done.and(closed)
}

/// Bytes of a file; none of standard input, which grows the image.
fn bytes_of(file: &Path) -> Result<u64> {
    if is_standard(file) {
        return Ok(0);
    }
    let cannot = |err: std::io::Error| {
        Error::failed(format!("cannot read the size of {}", file.display())).caused_by(err)
    };
    // That of a block device is where it ends.
    let mut opened = std::fs::File::open(file).map_err(cannot)?;
    std::io::Seek::seek(&mut opened, std::io::SeekFrom::End(0)).map_err(cannot)
}

/// What a stream says that the image is, unless the command line says otherwise. Features that are not made here are left out.
fn of_header(header: &ExportHeader, new: &NewImageArgs) -> Result<CreateOptions> {
    let bad = |err: blockyard_rbd::Error| rbd_error("invalid image in the file", err);
    let usual = usual_layout()?;
    let order = header.order.and_then(|order| u8::try_from(order).ok()).unwrap_or(usual.order());
    let usual = match (header.stripe_unit, header.stripe_count) {
        (Some(unit), Some(count)) if unit > 0 && count > 0 => Layout::striped(order, unit, count),
        _ => Layout::new(order),
    };
    let mut options = options(new, 0, usual.map_err(bad)?)?;
    if let (true, Some(features)) = (new.image_feature.is_empty(), header.features) {
        options.features = Features::from_bits_retain(features) & Features::DEFAULT;
    }
    Ok(options)
}

/// Makes a new image, and has it.
async fn make(target: &Target, options: &CreateOptions) -> Result<OwnedImage> {
    let store = target.store(true)?;
    check_namespace(&store, &target.spec.namespace).await?;
    let made = create(&store, &target.spec.image, options).await;
    made.map_err(cannot("create", &target.spec))?;
    own(&store, &target.spec).await
}

/// Removes an image that was begun. What stays is seen; the error before that is the one to tell.
async fn take_back(target: &Target) {
    let Ok(store) = target.store(false) else { return };
    if let Ok(mut owned) = own(&store, &target.spec).await {
        let names: Vec<_> = owned.user_snapshots().map(|snapshot| snapshot.name.clone()).collect();
        for name in names {
            let _protected = owned.unprotect_snapshot(&name).await;
            let _gone = owned.remove_snapshot(&name).await;
        }
        let _closed = owned.close().await;
    }
    let _gone = blockyard_rbd::live::remove(&store, &target.spec.image).await;
}

async fn import_bytes(
    context: &Context<'_>,
    target: &Target,
    owned: &mut OwnedImage,
    grows: bool,
    from: &mut Box<dyn Read>,
) -> Result<()> {
    let spec = &target.spec;
    let mut progress = context.progress("Importing image", owned.size());
    let (mut at, mut buffer) = (0, vec![0; PIECE]);
    loop {
        let length = read_full(from, &mut buffer)
            .map_err(|err| Error::failed("cannot read the file").caused_by(err))?;
        let data = buffer.get(..length).unwrap_or_default();
        if data.is_empty() {
            break;
        }
        let end = at + length as u64;
        if end > owned.size() {
            if !grows {
                return Err(Error::failed("the file grew while it was read"));
            }
            // By more each time, so that it is not often.
            let larger = owned.size().saturating_mul(2).max(end).max(1 << 30);
            owned.resize(larger).await.map_err(cannot("resize", spec))?;
        }
        write_sparse(owned, spec, at, data).await?;
        at = end;
        progress.set(at);
    }
    if grows {
        owned.resize(at).await.map_err(cannot("resize", spec))?;
    }
    owned.flush().await.map_err(cannot("flush", spec))
}

/// Reads until the buffer is full, or there is no more.
fn read_full(from: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(err) if err.kind() == std::io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(done)
}

/// Writes to a new image what is not zeroes.
async fn write_sparse(image: &Image<Store>, spec: &ImageSpec, at: u64, data: &[u8]) -> Result<()> {
    let (mut start, mut run) = (0, 0..0);
    for part in data.chunks(SPARSE_BYTES) {
        let end = start + part.len();
        if part.iter().any(|byte| *byte != 0) {
            run = if run.end == start { run.start..end } else { start..end };
        } else {
            write_run(image, spec, at, data, std::mem::replace(&mut run, end..end)).await?;
        }
        start = end;
    }
    write_run(image, spec, at, data, run).await
}

async fn write_run(
    image: &Image<Store>,
    spec: &ImageSpec,
    at: u64,
    data: &[u8],
    run: std::ops::Range<usize>,
) -> Result<()> {
    let start = at + run.start as u64;
    match data.get(run).filter(|run| !run.is_empty()) {
        Some(run) => {
            let bytes = bytes::Bytes::copy_from_slice(run);
            image.write(start, bytes).await.map_err(cannot("write", spec))
        }
        None => Ok(()),
    }
}

async fn import_all(
    context: &Context<'_>,
    target: &Target,
    owned: &mut OwnedImage,
    header: &ExportHeader,
    from: &mut Box<dyn Read>,
) -> Result<()> {
    let count = diff_count(from).map_err(|err| rbd_error("cannot import the file", err))?;
    for (key, value) in &header.metadata {
        let noted = owned.set_metadata(key, value).await;
        noted.map_err(cannot("set the metadata of", &target.spec))?;
    }
    for _ in 0..count {
        let mut progress: Progress = context.progress("Importing image", owned.size());
        apply(owned, &target.spec, from, &mut progress).await?;
    }
    Ok(())
}

/// Copies an image or a snapshot to a new image; `deep`: with its snapshots.
pub(super) async fn copy(context: &Context<'_>, from: &str, to: &str, deep: bool) -> Result<()> {
    let (source, target) = (context.target(from)?, context.image(to)?);
    let (store, image) = source.read().await?;
    let features = image.features() & Features::DEFAULT;
    let options = CreateOptions { size: 0, layout: image.layout(), features };
    let views = if deep { views(&image, &source.spec) } else { vec![source.spec.clone()] };
    let mut owned = make(&target, &options).await?;
    let copied = copy_views(context, &store, views, deep, &mut owned, &target).await;
    let copied = match copied {
        Ok(()) => copy_notes(&image, &owned, &target.spec).await,
        failed => failed,
    };
    let closed = owned.close().await.map_err(cannot("close", &target.spec));
    if copied.is_err() {
        take_back(&target).await;
    }
    copied.and(closed)
}

async fn copy_notes(image: &Image<Store>, owned: &OwnedImage, spec: &ImageSpec) -> Result<()> {
    for (key, value) in image.metadata().await.map_err(cannot("read the metadata of", spec))? {
        owned.set_metadata(&key, &value).await.map_err(cannot("set the metadata of", spec))?;
    }
    owned.flush().await.map_err(cannot("flush", spec))
}

async fn copy_views(
    context: &Context<'_>,
    store: &Store,
    views: Vec<ImageSpec>,
    deep: bool,
    owned: &mut OwnedImage,
    target: &Target,
) -> Result<()> {
    let spec = &target.spec;
    let mut before = None;
    for view in views {
        let opened = read(store, &view).await?;
        if opened.size() != owned.size() {
            owned.resize(opened.size()).await.map_err(cannot("resize", spec))?;
        }
        let mut progress = context.progress("Image copy", opened.size());
        let options = DiffOptions { from: before, with_parent: true, ..DiffOptions::default() };
        let mut diff = opened.diff(options).await.map_err(cannot("read", &view))?;
        while let Some(found) = diff.next().await.map_err(cannot("read", &view))? {
            for changed in found {
                let (offset, length) = (changed.offset, changed.length);
                let done = if changed.is_data {
                    let data = opened.read(offset, length).await.map_err(cannot("read", &view))?;
                    owned.write(offset, data.into()).await
                } else {
                    owned.zero(offset, length).await
                };
                done.map_err(cannot("write", spec))?;
            }
            progress.set(diff.position());
        }
        if let Some(snapshot) = opened.opened_snapshot().filter(|_| deep) {
            before = Some(snapshot.id);
            let made = owned.create_snapshot(&snapshot.name).await;
            made.map_err(cannot("create a snapshot of", spec))?;
        }
    }
    Ok(())
}
