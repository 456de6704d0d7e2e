//! Snapshots.

use blockyard_rbd::format::{Protection, Snapshot, SnapshotNamespace};
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
        SnapCommand::Ls { image, all } => list(context, image, *all).await,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<Namespace>,
}

/// What a snapshot is for.
#[derive(Serialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    original_name: Option<String>,
}

impl From<&SnapshotNamespace> for Namespace {
    fn from(namespace: &SnapshotNamespace) -> Self {
        let (kind, original_name) = match namespace {
            SnapshotNamespace::User => ("user", None),
            SnapshotNamespace::Trash { name, .. } => ("trash", Some(name.clone())),
            SnapshotNamespace::Other { kind: 1, .. } => ("group", None),
            SnapshotNamespace::Other { kind: 3, .. } => ("mirror", None),
            SnapshotNamespace::Other { .. } => ("unknown", None),
        };
        Self { kind, original_name }
    }
}

impl std::fmt::Display for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.original_name {
            Some(name) => write!(f, "{} ({name})", self.kind),
            None => f.write_str(self.kind),
        }
    }
}

impl Listed {
    fn new(snapshot: &Snapshot, is_of_all: bool) -> Self {
        Self {
            id: snapshot.id,
            name: snapshot.name.clone(),
            size: snapshot.image_size,
            protected: truth(snapshot.protection == Protection::Protected as u8),
            timestamp: time(snapshot.timestamp),
            namespace: is_of_all.then(|| (&snapshot.namespace).into()),
        }
    }
}

async fn list(context: &Context<'_>, image: &str, lists_all: bool) -> Result<()> {
    let (_store, image) = context.image(image)?.read().await?;
    let is_listed =
        |snapshot: &&Snapshot| lists_all || snapshot.namespace == SnapshotNamespace::User;
    let listed = image.snapshot_records().iter().filter(is_listed);
    let all: Vec<Listed> = listed.map(|snapshot| Listed::new(snapshot, lists_all)).collect();
    if context.json {
        return term::say_json(&all);
    }
    if all.is_empty() {
        return Ok(());
    }
    let mut heads = vec!["SNAPID", "NAME", "SIZE", "PROTECTED", "TIMESTAMP"];
    if lists_all {
        heads.push("NAMESPACE");
    }
    let mut table = term::table(&heads);
    for snapshot in all {
        let protected = if snapshot.protected == "true" { "yes" } else { "" };
        let mut row = vec![
            snapshot.id.to_string(),
            snapshot.name,
            size::human(snapshot.size),
            protected.to_owned(),
            snapshot.timestamp,
        ];
        row.extend(snapshot.namespace.map(|namespace| namespace.to_string()));
        table.add_row(row);
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
    let is_needed = |snapshot: &&Snapshot| snapshot.protection != Protection::Unprotected as u8;
    let (needed, free): (Vec<_>, Vec<_>) = image.user_snapshots().partition(is_needed);
    // Those whose removal did not come to its end, or whose last clone has gone without a word.
    let left: Vec<_> = image.snapshot_records().iter().filter(|it| it.is_unneeded()).collect();
    if !free.is_empty() || !left.is_empty() {
        let purge = async |live: &LiveImage<Store>| {
            for snapshot in left {
                match live.remove_trashed_snapshot(snapshot).await {
                    Err(err) if err.is_not_found() => {}
                    removed => removed?,
                }
            }
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
    let what = format!("protected snapshots not removed: {}", names.join(", "));
    Err(Error::new(crate::error::ErrorKind::Busy, what)
        .help("flatten the clones, or unprotect the snapshots; list clones: blockyard image children IMAGE"))
}

async fn set_limit(context: &Context<'_>, image: &str, limit: Option<u64>) -> Result<()> {
    let target = context.image(image)?;
    let (_store, image) = target.read().await?;
    image.set_snapshot_limit(limit).await.map_err(cannot("limit the snapshots of", &target.spec))
}
