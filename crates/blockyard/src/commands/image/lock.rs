//! Locks that are taken by hand.

use blockyard_rados::encoding::{EntityName, EntityType};
use blockyard_rbd::format::lock::{LockInfo, LockType, LockerId};
use serde::Serialize;

use super::cannot;
use super::place::Context;
use crate::cli::LockCommand;
use crate::error::{Error, Result};
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
        LockCommand::Rm { image, lock_id, locker } => {
            let target = context.image(image)?;
            let (_store, image) = target.read().await?;
            let locker = LockerId { client: client(locker)?, cookie: lock_id.clone() };
            image.break_lock(&locker).await.map_err(cannot("break the lock of", &target.spec))
        }
    }
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
