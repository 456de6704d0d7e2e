//! Maps of objects, and zeroes: object-map, sparsify.

use blockyard_rbd::image::MapState;

use super::cannot;
use super::place::Context;
use crate::cli::ObjectMapCommand;
use crate::commands::{NO, size};
use crate::error::{Error, Result, quoted};
use crate::images::OwnedImage;
use crate::text::{size as sizes, term};

pub(super) async fn run(context: &Context<'_>, command: &ObjectMapCommand) -> Result<u8> {
    match command {
        ObjectMapCommand::Check { image } => {
            let target = context.target(image)?;
            let (_store, image) = target.read().await?;
            let mut progress = context.progress("Object Map Check", image.size());
            let bytes = image.layout().object_bytes();
            let state = image.check_map(|at, _| progress.set(at * bytes)).await;
            drop(progress);
            let state = state.map_err(no_map(&target.spec.to_string()))?;
            let (spec, word) = (&target.spec, quoted(target.spec.to_string()));
            match state {
                MapState::Right => return Ok(0),
                MapState::Invalid => term::tell(format_args!(
                    "the object map of {spec} is flagged invalid; rebuild it: blockyard image object-map rebuild {word}"
                )),
                MapState::Misses(object) => term::tell(format_args!(
                    "the object map of {spec} lacks object {object}; rebuild it: blockyard image object-map rebuild {word}"
                )),
            }
            Ok(NO)
        }
        ObjectMapCommand::Rebuild { image } => {
            let target = context.image(image)?;
            let rebuild = async |owned: &mut OwnedImage| {
                let mut progress = context.progress("Object Map Rebuild", owned.size());
                let bytes = owned.layout().object_bytes();
                let rebuilt = owned.rebuild_map(|at, _| progress.set(at * bytes)).await;
                rebuilt.map_err(no_map(&target.spec.to_string()))
            };
            target.owned(rebuild).await.map(|()| 0)
        }
    }
}

/// The one thing that goes wrong with all else in order.
fn no_map(spec: &str) -> impl FnOnce(blockyard_rbd::Error) -> Error + '_ {
    move |err| {
        let has_none = err.errno().is_some_and(|errno| errno.raw_os_error() == EINVAL);
        let error = cannot("use the object map of", &spec)(err);
        if has_none {
            error.help("only images with the feature object-map have one")
        } else {
            error
        }
    }
}

const EINVAL: i32 = 22;

pub(super) async fn sparsify(context: &Context<'_>, image: &str, least: &str) -> Result<()> {
    let target = context.image(image)?;
    let least = size("--sparse-size", least)?;
    let sparsify = async |owned: &mut OwnedImage| {
        let object = owned.layout().object_bytes();
        if least == 0 || !object.is_multiple_of(least) {
            let object = sizes::human(object);
            return Err(Error::usage(format!(
                "--sparse-size must divide the object size, {object}"
            )));
        }
        let mut progress = context.progress("Image sparsify", owned.size());
        let freed = owned.sparsify(least, |at, _| progress.set(at)).await;
        freed.map_err(cannot("sparsify", &target.spec))
    };
    let freed = target.owned(sparsify).await?;
    term::tell(format_args!("{} of zeroes reclaimed", sizes::human(freed)));
    Ok(())
}
