//! Images that are removed, and can be had back.

use std::time::{SystemTime, UNIX_EPOCH};

use blockyard_rados::encoding::Utime;
use blockyard_rbd::format::TrashEntry;
use blockyard_rbd::image::trash;
use blockyard_rbd::live::remove_from_trash;
use serde::Serialize;

use super::cannot;
use super::new::forget_lock;
use super::place::Context;
use super::table::time;
use crate::cli::TrashCommand;
use crate::disks::parse_duration;
use crate::error::{Error, ErrorKind, Result};
use crate::images::{Store, unused};
use crate::text::term;

pub(super) async fn run(context: &Context<'_>, command: &TrashCommand) -> Result<()> {
    match command {
        TrashCommand::Mv { image, expires_in } => put(context, image, expires_in.as_deref()).await,
        TrashCommand::Ls { store, long } => list(context, store.as_deref(), *long).await,
        TrashCommand::Restore { image_id: id, image } => {
            let store = context.store(None, false)?;
            let _unused = unused(&store, id, id).await?;
            let restored = trash::restore(&store, id, image.as_deref()).await;
            restored.map(drop).map_err(cannot("restore", id))
        }
        TrashCommand::Rm { image_id: id, force } => {
            let store = context.store(None, false)?;
            let entry = trash::entry(&store, id).await.map_err(cannot("find in the trash", id))?;
            if entry.kept_until > now() && !force {
                let until = time(entry.kept_until);
                let what = format!("the retention of image {id} expires at {until} only");
                return Err(Error::new(ErrorKind::NotPermitted, what)
                    .help("wait until then, or add --force"));
            }
            remove(&store, id).await
        }
        TrashCommand::Purge { store } => purge(context, store.as_deref()).await,
    }
}

fn now() -> Utime {
    SystemTime::now().duration_since(UNIX_EPOCH).map(Utime::from).unwrap_or_default()
}

async fn put(context: &Context<'_>, image: &str, expires_in: Option<&str>) -> Result<()> {
    let target = context.image(image)?;
    let kept = expires_in.map(parse_duration).transpose();
    let kept = kept.map_err(|problem| Error::usage(format!("--expires-in: {problem}")))?;
    let until = (now().duration() + kept.unwrap_or_default()).into();
    let store = target.store(false)?;
    let id = trash::find(&store, &target.spec.image).await;
    let id = id.map_err(cannot("find", &target.spec))?;
    // Nobody writes it meanwhile. One that was moved in part may have no name to be opened by.
    let _unused = unused(&store, &target.spec, &id).await?;
    let moved = trash::put(&store, &target.spec.image, now(), until).await;
    moved.map(drop).map_err(cannot("move to the trash", &target.spec))
}

async fn remove(store: &Store, id: &str) -> Result<()> {
    // One that was moved or restored in part may be in use.
    let _unused = unused(store, &id, id).await?;
    remove_from_trash(store, id).await.map_err(cannot("remove", &id))?;
    forget_lock(store, id);
    Ok(())
}

async fn purge(context: &Context<'_>, store: Option<&str>) -> Result<()> {
    let store = context.store(store, false)?;
    let entries = trash::list(&store).await.map_err(cannot("list", &"the trash"))?;
    let (mut kind, mut failed) = (None, 0);
    for (id, _) in entries.iter().filter(|(_, entry)| entry.kept_until <= now()) {
        // One that cannot be removed is not in the way of others.
        if let Err(err) = remove(&store, id).await {
            term::tell_error(&err);
            kind.get_or_insert(err.kind());
            failed += 1;
        }
    }
    match kind {
        None => Ok(()),
        Some(kind) => Err(Error::new(kind, format!("not removed from the trash: {failed}"))),
    }
}

#[derive(Serialize)]
struct Listed {
    id: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
}

fn listed(id: String, entry: TrashEntry, long: bool) -> Listed {
    let source = TrashEntry::sources().get(usize::from(entry.source)).copied();
    let status = if entry.kept_until > now() {
        format!("protected until {}", time(entry.kept_until))
    } else {
        format!("expired at {}", time(entry.kept_until))
    };
    Listed {
        id,
        name: entry.name,
        source: source.filter(|_| long),
        deleted_at: long.then(|| time(entry.deleted)),
        status: long.then_some(status),
    }
}

async fn list(context: &Context<'_>, store: Option<&str>, long: bool) -> Result<()> {
    let store = context.store(store, false)?;
    let entries = trash::list(&store).await.map_err(cannot("list", &"the trash"))?;
    let all: Vec<_> = entries.into_iter().map(|(id, entry)| listed(id, entry, long)).collect();
    if context.json {
        return term::say_json(&all);
    }
    if !long {
        return all
            .iter()
            .try_for_each(|entry| term::say(format_args!("{} {}", entry.id, entry.name)));
    }
    let mut table = term::table(&["ID", "NAME", "SOURCE", "DELETED_AT", "STATUS"]);
    for Listed { id, name, source, deleted_at, status } in all {
        let source = source.unwrap_or_default().to_owned();
        table.add_row([
            id,
            name,
            source,
            deleted_at.unwrap_or_default(),
            status.unwrap_or_default(),
        ]);
    }
    term::say(table.trim_fmt())
}
