//! `blockyard image`: RBD images, with the words of `rbd`.

mod bench;
mod check;
mod clone;
mod diff;
mod files;
mod lock;
mod map;
mod meta;
mod namespace;
mod new;
mod place;
mod show;
mod snap;
mod table;
mod transfer;
mod trash;
mod usage;
mod watch;

use crate::cli::{DeepCommand, ImageArgs, ImageCommand};
use crate::error::{Error, Result};
use crate::images::rbd_error;
use place::Context;

pub(super) fn run(args: &ImageArgs) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|err| Error::failed("cannot start a runtime").caused_by(err))?;
    let context = Context::new(&args.place);
    // They open disks themselves.
    if let ImageCommand::Bench(args) = &args.command {
        return bench::run(&context, args);
    }
    runtime.block_on(perform(&context, &args.command))
}

async fn perform(context: &Context<'_>, command: &ImageCommand) -> Result<u8> {
    match command {
        ImageCommand::Create { image, size, new } => new::create(context, image, size, new).await?,
        ImageCommand::Ls { store, long } => show::list(context, store.as_deref(), *long).await?,
        ImageCommand::Info { image } => show::info(context, image).await?,
        ImageCommand::Status { image } => show::status(context, image).await?,
        ImageCommand::Rm { image } => new::remove(context, image).await?,
        ImageCommand::Rename { from, to } => new::rename(context, from, to).await?,
        ImageCommand::Resize { image, size, allow_shrink } => {
            new::resize(context, image, size, *allow_shrink).await?;
        }
        ImageCommand::Snap(command) => snap::run(context, command).await?,
        ImageCommand::Clone { snapshot, image } => clone::clone(context, snapshot, image).await?,
        ImageCommand::Children { image } => clone::children(context, image).await?,
        ImageCommand::Flatten { image } => clone::flatten(context, image).await?,
        ImageCommand::Export { image, file, export_format } => {
            transfer::export(context, image, file.as_deref(), *export_format).await?;
        }
        ImageCommand::Import { file, image, export_format, new } => {
            let image = image.as_deref();
            transfer::import(context, file, image, *export_format, new).await?;
        }
        ImageCommand::ExportDiff { image, file, diff } => {
            diff::export(context, image, file, diff).await?;
        }
        ImageCommand::ImportDiff { file, image } => diff::import(context, file, image).await?,
        ImageCommand::MergeDiff { first, second, file } => diff::merge(first, second, file)?,
        ImageCommand::Diff { image, diff } => diff::show(context, image, diff).await?,
        ImageCommand::Du { image, exact } => usage::run(context, image.as_deref(), *exact).await?,
        ImageCommand::Cp { from, to } => transfer::copy(context, from, to, false).await?,
        ImageCommand::Deep(DeepCommand::Cp { from, to }) => {
            transfer::copy(context, from, to, true).await?;
        }
        ImageCommand::Lock(command) => lock::run(context, command).await?,
        ImageCommand::ObjectMap(command) => return map::run(context, command).await,
        ImageCommand::Sparsify { image, sparse_size } => {
            map::sparsify(context, image, sparse_size).await?;
        }
        ImageCommand::Trash(command) => trash::run(context, command).await?,
        ImageCommand::Namespace(command) => namespace::run(context, command).await?,
        ImageCommand::Meta(command) => meta::run(context, command).await?,
        ImageCommand::Watch { image } => watch::run(context, image).await?,
        ImageCommand::Bench(_) => {}
        ImageCommand::Check { store, repair } => {
            return check::run(context, store.as_deref(), *repair).await;
        }
    }
    Ok(0)
}

/// What could not be done, of an error of an image.
fn cannot<'a>(
    what: &'a str,
    of: &'a impl std::fmt::Display,
) -> impl Fn(blockyard_rbd::Error) -> Error + 'a {
    move |err| rbd_error(format!("cannot {what} {of}"), err)
}
