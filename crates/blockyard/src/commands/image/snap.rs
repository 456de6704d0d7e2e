//! Snapshots.

use blockyard_rbd::format::{Protection, Snapshot};
use blockyard_rbd::live::LiveImage;
use serde::Serialize;

use super::cannot;
use super::place::Context;
use super::table::{time, truth};
use crate::cli::{LimitCommand, SnapCommand};
use crate::error::{Error, Result};
use crate::images::{OwnedImage, Store};
use crate::text::{size, term};

pub(super) async fn run(context: &Context<'_>, command: &SnapCommand) -> Result<()> {
    match command {
        SnapCommand::Create { snapshot } => {
            let (target, name) = context.snapshot(snapshot)?;
            let doing = format!("create the snapshot {snapshot}");
            target.change(&doing, async |live| live.create_snapshot(&name).await).await
        }
        SnapCommand::Ls { image } => list(context, image).await,
        SnapCommand::Rm { snapshot } => {
            let (target, name) = context.snapshot(snapshot)?;
            let doing = format!("remove the snapshot {snapshot}");
            target.change(&doing, async |live| live.remove_snapshot(&name).await).await
        }
        SnapCommand::Rename { from, to } => rename(context, from, to).await,
        SnapCommand::Rollback { snapshot } => {
            let (target, name) = context.snapshot(snapshot)?;
            let back = async |owned: &mut OwnedImage| {
                owned.rollback(&name).await.map_err(cannot("roll back to", snapshot))
            };
            target.owned(back).await
        }
        SnapCommand::Protect { snapshot } => {
            let (target, name) = context.snapshot(snapshot)?;
            let doing = format!("protect {snapshot}");
            target.change(&doing, async |live| live.protect_snapshot(&name).await).await
        }
        SnapCommand::Unprotect { snapshot } => {
            let (target, name) = context.snapshot(snapshot)?;
            let doing = format!("unprotect {snapshot}");
            target.change(&doing, async |live| live.unprotect_snapshot(&name).await).await
        }
        SnapCommand::Purge { image } => purge(context, image).await,
        SnapCommand::Limit(LimitCommand::Set { image, limit }) => {
            set_limit(context, image, Some(*limit)).await
        }
        SnapCommand::Limit(LimitCommand::Clear { image }) => set_limit(context, image, None).await,
    }
}

#[derive(Serialize)]
struct Listed {
    id: u64,
    name: String,
    size: u64,
    protected: &'static str,
    timestamp: String,
}

impl From<&Snapshot> for Listed {
    fn from(snapshot: &Snapshot) -> Self {
        Self {
            id: snapshot.id,
            name: snapshot.name.clone(),
            size: snapshot.image_size,
            protected: truth(snapshot.protection == Protection::Protected as u8),
            timestamp: time(snapshot.timestamp),
        }
    }
}

async fn list(context: &Context<'_>, image: &str) -> Result<()> {
    let (_store, image) = context.image(image)?.read().await?;
    let all: Vec<Listed> = image.snapshot_records().iter().map(Listed::from).collect();
    if context.json {
        return term::say_json(&all);
    }
    if all.is_empty() {
        return Ok(());
    }
    let mut table = term::table(&["SNAPID", "NAME", "SIZE", "PROTECTED", "TIMESTAMP"]);
    for snapshot in all {
        let protected = if snapshot.protected == "true" { "yes" } else { "" };
        table.add_row([
            snapshot.id.to_string(),
            snapshot.name,
            size::human(snapshot.size),
            protected.to_owned(),
            snapshot.timestamp,
        ]);
    }
    term::say(table.trim_fmt())
}

async fn rename(context: &Context<'_>, from: &str, to: &str) -> Result<()> {
    let ((target, old), (other, new)) = (context.snapshot(from)?, context.snapshot(to)?);
    if target != other {
        return Err(Error::usage("cannot move a snapshot to another image")
            .help(format!("write {}@{new}", target.spec)));
    }
    let doing = format!("rename the snapshot {from}");
    target.change(&doing, async |live| live.rename_snapshot(&old, &new).await).await
}

async fn purge(context: &Context<'_>, image: &str) -> Result<()> {
    let target = context.image(image)?;
    let (_store, image) = target.read().await?;
    let is_needed = |snapshot: &&Snapshot| {
        snapshot.child_count > 0 || snapshot.protection != Protection::Unprotected as u8
    };
    let (needed, free): (Vec<_>, Vec<_>) = image.snapshot_records().iter().partition(is_needed);
    if !free.is_empty() {
        let purge = async |live: &LiveImage<Store>| {
            for snapshot in free {
                let removed = live.remove_snapshot(&snapshot.name).await;
                removed.map_err(|err| err.at(format_args!("snapshot {:?}", snapshot.name)))?;
            }
            Ok(())
        };
        target.change(&format!("remove the snapshots of {}", target.spec), purge).await?;
    }
    if needed.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = needed.into_iter().map(|snapshot| snapshot.name.as_str()).collect();
    let what = format!("protected or cloned snapshots not removed: {}", names.join(", "));
    Err(Error::new(crate::error::ErrorKind::Busy, what)
        .help("flatten the clones, or unprotect the snapshots; list clones: blockyard image children IMAGE"))
}

async fn set_limit(context: &Context<'_>, image: &str, limit: Option<u64>) -> Result<()> {
    let target = context.image(image)?;
    let (_store, image) = target.read().await?;
    image.set_snapshot_limit(limit).await.map_err(cannot("limit the snapshots of", &target.spec))
}
