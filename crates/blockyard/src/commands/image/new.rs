//! Images that come, change and go: create, rm, rename, resize.

use blockyard_rbd::format::{Features, Layout};
use blockyard_rbd::image::{CreateOptions, Image, create as create_image, find};
use blockyard_rbd::live::{LiveImage, remove as remove_image};

use super::cannot;
use super::place::{Context, size_in_mib};
use crate::cli::NewImageArgs;
use crate::commands::size as size_of;
use crate::error::{Error, Result, quoted};
use crate::images::{ImageSpec, Store, unused};
use crate::text::{size, suggest};

/// Objects of 4 MiB, as `rbd` makes them.
const ORDER: u8 = 22;

/// What a new image is to be, as the command line says; what it does not say is as it is in `usual`.
pub(super) fn options(args: &NewImageArgs, size: u64, usual: Layout) -> Result<CreateOptions> {
    let order = match (&args.object_size, args.order) {
        (Some(text), _) => {
            let bytes = size_of("--object-size", text)?;
            let order = bytes.is_power_of_two().then(|| bytes.trailing_zeros());
            order.and_then(|order| u8::try_from(order).ok()).ok_or_else(|| {
                Error::usage(format!("--object-size: {text} is not a power of two from 4K to 32M"))
            })?
        }
        (None, Some(order)) => order,
        (None, None) => usual.order(),
    };
    let layout = match (&args.stripe_unit, args.stripe_count) {
        (Some(unit), Some(count)) => Layout::striped(order, size_of("--stripe-unit", unit)?, count),
        _ if usual.order() == order => Ok(usual),
        _ => Layout::new(order),
    };
    let layout = layout.map_err(|err| Error::usage(err.to_string()))?;
    Ok(CreateOptions { size, layout, features: features(&args.image_feature)? })
}

/// The layout of images of which nothing is said.
pub(super) fn usual_layout() -> Result<Layout> {
    Layout::new(ORDER).map_err(|err| Error::failed(err.to_string()))
}

fn features(names: &[String]) -> Result<Features> {
    if names.is_empty() {
        return Ok(Features::DEFAULT);
    }
    let mut features = Features::empty();
    for name in names {
        features |= Features::with_name(name).ok_or_else(|| {
            let known = Features::KNOWN.names();
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let hint = suggest::hint(name, &known);
            Error::usage(format!("--image-feature: unknown feature {name:?}; {hint}"))
        })?;
    }
    Ok(features)
}

pub(super) async fn create(
    context: &Context<'_>,
    image: &str,
    size: &str,
    new: &NewImageArgs,
) -> Result<()> {
    let target = context.image(image)?;
    let options = options(new, size_in_mib("--size", size)?, usual_layout()?)?;
    let store = target.store(true)?;
    check_namespace(&store, &target.spec.namespace).await?;
    let made = create_image(&store, &target.spec.image, &options).await;
    made.map_err(cannot("create", &target.spec))
}

/// A namespace has to be made before there are images in it.
pub(super) async fn check_namespace(store: &Store, namespace: &str) -> Result<()> {
    use blockyard_rbd::store::ObjectStore;
    if namespace.is_empty() {
        return Ok(());
    }
    let pool = store.in_pool(store.pool(), "").await.map_err(cannot("open", &"the store"))?;
    let known = blockyard_rbd::image::namespace::list(&pool).await;
    if known.map_err(cannot("list", &"namespaces"))?.iter().any(|known| known == namespace) {
        return Ok(());
    }
    Err(Error::failed(format!("no namespace named {namespace}"))
        .help(format!("create it: blockyard image namespace create {}", quoted(namespace))))
}

pub(super) async fn remove(context: &Context<'_>, image: &str) -> Result<()> {
    let target = context.image(image)?;
    let spec = &target.spec;
    let store = target.store(false)?;
    let (id, _) = find(&store, &spec.image, None).await.map_err(cannot("remove", spec))?;
    // One that cannot be opened, as it was removed in part or its parent is gone, may be in use all the same.
    let _unused = unused(&store, spec, &id).await?;
    remove_image(&store, &spec.image).await.map_err(cannot("remove", spec))?;
    forget_lock(&store, &id);
    Ok(())
}

/// Forgets the lock of an image that is gone, if it had one besides its own.
pub(super) fn forget_lock(store: &Store, id: &str) {
    if let Some(directory) = store.directory() {
        directory.forget_lock_blocking(id);
    }
}

pub(super) async fn rename(context: &Context<'_>, from: &str, to: &str) -> Result<()> {
    let target = context.image(from)?;
    let to = if to.contains('/') {
        context.image(to)?.spec
    } else {
        ImageSpec { image: to.into(), ..target.spec.clone() }
    };
    if to.namespace != target.spec.namespace {
        let what = "cannot rename across namespaces";
        let [from, to] = [&target.spec, &to].map(|spec| quoted(spec.to_string()));
        return Err(
            Error::usage(what).help(format!("copy the image: blockyard image deep cp {from} {to}"))
        );
    }
    // One that has no lock, or cannot be opened, has nobody who could be asked.
    let has_lock = |image: Image<Store>| image.features().contains(Features::EXCLUSIVE_LOCK);
    if target.read().await.is_ok_and(|(_, image)| has_lock(image)) {
        let doing = format!("rename {}", target.spec);
        return target.change(&doing, async |live| live.rename(&to.image).await).await;
    }
    let renamed =
        blockyard_rbd::image::rename(&target.store(false)?, &target.spec.image, &to.image).await;
    renamed.map_err(cannot("rename", &target.spec))
}

pub(super) async fn resize(
    context: &Context<'_>,
    image: &str,
    size: &str,
    allow_shrink: bool,
) -> Result<()> {
    let target = context.image(image)?;
    let size = size_in_mib("--size", size)?;
    let (_store, image) = target.read().await?;
    let old = image.size();
    if size < old && !allow_shrink {
        return Err(would_shrink(&target.spec, old, size));
    }
    let resize = async |live: &LiveImage<Store>| match live.resize(size, allow_shrink).await {
        Ok(()) => Ok(None),
        Err(err) => match live.image().await?.size() {
            // Others have made it larger since it was looked at.
            larger if larger > size && !allow_shrink => Ok(Some(larger)),
            _ => Err(err),
        },
    };
    match target.change(&format!("resize {}", target.spec), resize).await? {
        None => Ok(()),
        Some(larger) => Err(would_shrink(&target.spec, larger, size)),
    }
}

fn would_shrink(spec: &ImageSpec, old: u64, new: u64) -> Error {
    let (old, new) = (size::human(old), size::human(new));
    Error::usage(format!("cannot shrink {spec} from {old} to {new} without --allow-shrink"))
        .help("data past the new end is lost; add --allow-shrink to accept that")
}
