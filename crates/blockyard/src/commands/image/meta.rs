//! Notes about an image.

use std::collections::BTreeMap;

use super::cannot;
use super::place::Context;
use crate::cli::MetaCommand;
use crate::error::Result;
use crate::text::term;

pub(super) async fn run(context: &Context<'_>, command: &MetaCommand) -> Result<()> {
    let (MetaCommand::Ls { image }
    | MetaCommand::Get { image, .. }
    | MetaCommand::Set { image, .. }
    | MetaCommand::Rm { image, .. }) = command;
    let target = context.image(image)?;
    let (_store, image) = target.read().await?;
    match command {
        MetaCommand::Ls { .. } => {
            let notes =
                image.metadata().await.map_err(cannot("read the metadata of", &target.spec))?;
            list(context, notes)
        }
        MetaCommand::Get { key, .. } => {
            let value = image.metadata_value(key).await.map_err(cannot("find the key", key))?;
            if context.json { term::say_json(&value) } else { term::say(value) }
        }
        MetaCommand::Set { key, value, .. } => {
            image.set_metadata(key, value).await.map_err(cannot("set the key", key))
        }
        MetaCommand::Rm { key, .. } => {
            image.remove_metadata(key).await.map_err(cannot("remove the key", key))
        }
    }
}

fn list(context: &Context<'_>, notes: Vec<(String, String)>) -> Result<()> {
    if context.json {
        return term::say_json(&notes.into_iter().collect::<BTreeMap<_, _>>());
    }
    match notes.len() {
        0 => return term::say("There are 0 metadata on this image."),
        1 => term::say("There is 1 metadata on this image:\n")?,
        count => term::say(format_args!("There are {count} metadata on this image:\n"))?,
    }
    let mut table = term::table(&["Key", "Value"]);
    for (key, value) in notes {
        table.add_row([key, value]);
    }
    term::say(table.trim_fmt())
}
