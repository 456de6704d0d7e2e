//! Locks that are taken by hand.

use blockyard_rados::encoding::{EntityName, EntityType};
use blockyard_rbd::format::lock::{LockInfo, LockType, LockerId};
use blockyard_rbd::image::Image;
use serde::Serialize;

use super::cannot;
use super::place::Context;
use crate::cli::LockCommand;
use crate::error::{Error, ErrorKind, Result};
use crate::images::{ImageSpec, Store};
use crate::text::term;

pub(super) async fn run(context: &Context<'_>, command: &LockCommand) -> Result<()> {
    match command {
        LockCommand::Ls { image } => list(context, image).await,
        LockCommand::Add { image, lock_id, shared } => {
            let target = context.image(image)?;
            let (_store, image) = target.read().await?;
            let taken = image.add_lock(lock_id, shared.as_deref()).await;
            taken.map_err(cannot("lock", &target.spec))
        }
        LockCommand::Rm { image, lock_id, locker, force } => {
            let target = context.image(image)?;
            let (_store, image) = target.read().await?;
            let locker = LockerId { client: client(locker)?, cookie: lock_id.clone() };
            if !force {
                has_gone(&target.spec, &image, &locker).await?;
            }
            image.break_lock(&locker).await.map_err(cannot("break the lock of", &target.spec))
        }
    }
}

/// Sees to it that nobody is kept out who is alive: a client may have more images open than this one, and loses them all.
async fn has_gone(spec: &ImageSpec, image: &Image<Store>, locker: &LockerId) -> Result<()> {
    let cannot_tell = cannot("list the clients of", spec);
    let watchers = image.watchers().await.map_err(cannot_tell)?;
    let Some(watcher) = watchers.iter().find(|watcher| watcher.client == locker.client) else {
        return Ok(());
    };
    let what = format!("{} at {} is alive and uses image {spec}", locker.client, watcher.addr);
    Err(Error::new(ErrorKind::Busy, what).help(
        "stop it, or have it blocklisted, which fails all requests of all images that it has open: \
         blockyard image lock rm --force IMAGE ID CLIENT",
    ))
}

/// `client.4711`.
fn client(text: &str) -> Result<EntityName> {
    let number = text.strip_prefix("client.").and_then(|number| number.parse().ok());
    let number = number.ok_or_else(|| {
        Error::usage(format!("invalid client {text:?}"))
            .help("write e.g. client.4711; list lock holders: blockyard image lock ls IMAGE")
    })?;
    Ok(EntityName { kind: EntityType::CLIENT, number })
}

#[derive(Serialize)]
struct Listed {
    id: String,
    locker: String,
    address: String,
}

async fn list(context: &Context<'_>, image: &str) -> Result<()> {
    let target = context.image(image)?;
    let (_store, image) = target.read().await?;
    let LockInfo { lockers, kind, tag } =
        image.lock_info().await.map_err(cannot("read the lock of", &target.spec))?;
    let all: Vec<Listed> = lockers
        .iter()
        .map(|(id, info)| Listed {
            id: id.cookie.clone(),
            locker: id.client.to_string(),
            address: info.addr.to_string(),
        })
        .collect();
    if context.json {
        return term::say_json(&all);
    }
    if all.is_empty() {
        return Ok(());
    }
    let kind = if kind == LockType::SHARED { "shared" } else { "exclusive" };
    match all.len() {
        1 => term::say(format_args!("There is 1 {kind} lock on this image."))?,
        count => term::say(format_args!("There are {count} {kind} locks on this image."))?,
    }
    if kind == "shared" {
        term::say(format_args!("Lock tag: {tag}"))?;
    }
    let mut table = term::table(&["Locker", "ID", "Address"]);
    for Listed { id, locker, address } in all {
        table.add_row([locker, id, address]);
    }
    term::say(table.trim_fmt())
}
