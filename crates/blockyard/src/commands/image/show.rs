//! What there is: ls, info, status.

use blockyard_rbd::format::{Features, ImageFlags, OpFeatures, Protection};
use blockyard_rbd::image::{Image, ParentNames, list as list_images};
use serde::Serialize;

use super::cannot;
use super::place::{Context, Target};
use super::table::{time, truth};
use crate::error::Result;
use crate::images::{ImageSpec, Store, owner, read};
use crate::text::{size, term};

/// A parent, with the keys of `rbd`.
#[derive(Serialize)]
pub(super) struct ParentReport {
    pool: String,
    pool_namespace: String,
    image: String,
    id: String,
    snapshot: String,
    trash: bool,
    overlap: u64,
}

impl ParentReport {
    fn new(store: &Store, names: ParentNames) -> Self {
        Self {
            pool: store.pool_name(names.pool),
            pool_namespace: names.namespace,
            image: names.image,
            id: names.id,
            snapshot: names.snapshot,
            trash: names.is_in_trash,
            overlap: names.overlap,
        }
    }
}

impl ParentReport {
    fn text(&self) -> String {
        let namespace = if self.pool_namespace.is_empty() {
            String::new()
        } else {
            format!("{}/", self.pool_namespace)
        };
        let pool = if self.pool.is_empty() { String::new() } else { format!("{}/", self.pool) };
        format!("{pool}{namespace}{}@{}", self.image, self.snapshot)
    }
}

#[derive(Serialize)]
struct Listed {
    image: String,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot_id: Option<u64>,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<ParentReport>,
    format: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    protected: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lock_type: Option<&'static str>,
}

pub(super) async fn list(context: &Context<'_>, store: Option<&str>, long: bool) -> Result<()> {
    let store = context.store(store, false)?;
    let images = list_images(&store).await.map_err(cannot("list", &"images"))?;
    if !long {
        let names: Vec<String> = images.into_iter().map(|(name, _)| name).collect();
        return if context.json {
            term::say_json(&names)
        } else {
            names.iter().try_for_each(term::say)
        };
    }
    let mut all = Vec::new();
    for (name, _) in images {
        all.extend(listed(&store, name).await?);
    }
    if context.json {
        return term::say_json(&all);
    }
    let mut table = term::table(&["NAME", "SIZE", "PARENT", "FMT", "PROT", "LOCK"]);
    for image in all {
        let snapshot = image.snapshot.as_ref().map(|name| format!("@{name}"));
        table.add_row([
            format!("{}{}", image.image, snapshot.unwrap_or_default()),
            size::human(image.size),
            image.parent.as_ref().map(ParentReport::text).unwrap_or_default(),
            image.format.to_string(),
            if image.protected == Some("true") { "yes".into() } else { String::new() },
            match image.lock_type {
                Some("exclusive") => "excl".into(),
                other => other.unwrap_or_default().to_owned(),
            },
        ]);
    }
    term::say(table.trim_fmt())
}

/// An image, and its snapshots.
async fn listed(store: &Store, name: String) -> Result<Vec<Listed>> {
    let spec = ImageSpec { namespace: String::new(), image: name, snapshot: None };
    let image = read(store, &spec).await?;
    let lock = image.lock_info().await.map_err(cannot("open", &spec))?;
    let lock_type = match lock.kind {
        _ if lock.lockers.is_empty() => None,
        blockyard_rbd::format::lock::LockType::SHARED => Some("shared"),
        _ => Some("exclusive"),
    };
    let lock_type = match lock_type {
        None if owner(store, image.id()).await?.is_some() => Some("exclusive"),
        known => known,
    };
    let mut all = vec![Listed {
        image: spec.image.clone(),
        id: image.id().to_owned(),
        snapshot: None,
        snapshot_id: None,
        size: image.size(),
        parent: image
            .parent_names()
            .await
            .map_err(cannot("open", &spec))?
            .map(|names| ParentReport::new(store, names)),
        format: 2,
        protected: None,
        lock_type,
    }];
    for snapshot in image.user_snapshots() {
        let view = ImageSpec { snapshot: Some(snapshot.name.clone()), ..spec.clone() };
        let opened = read(store, &view).await?;
        let parent = opened.parent_names().await.map_err(cannot("open", &view))?;
        all.push(Listed {
            image: spec.image.clone(),
            id: image.id().to_owned(),
            snapshot: view.snapshot,
            snapshot_id: Some(snapshot.id),
            size: snapshot.image_size,
            parent: parent.map(|names| ParentReport::new(store, names)),
            format: 2,
            protected: Some(truth(snapshot.protection == Protection::Protected as u8)),
            lock_type: None,
        });
    }
    Ok(all)
}

#[derive(Serialize)]
struct InfoReport {
    name: String,
    id: String,
    size: u64,
    objects: u64,
    order: u8,
    object_size: u64,
    snapshot_count: usize,
    block_name_prefix: String,
    format: u8,
    features: Vec<String>,
    op_features: Vec<String>,
    flags: Vec<String>,
    create_timestamp: String,
    access_timestamp: String,
    modify_timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    protected: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<ParentReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stripe_unit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stripe_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot_limit: Option<u64>,
}

impl InfoReport {
    async fn of(
        store: &Store,
        spec: &ImageSpec,
        image: &Image<Store>,
    ) -> std::result::Result<Self, blockyard_rbd::Error> {
        let times = image.times().await?;
        let layout = image.layout();
        let striped = image.features().contains(Features::STRIPINGV2).then(|| layout.stripes());
        let protected = image
            .opened_snapshot()
            .map(|snapshot| truth(snapshot.protection == Protection::Protected as u8));
        Ok(Self {
            name: spec.image.clone(),
            id: image.id().to_owned(),
            size: image.size(),
            objects: layout.objects(image.size()),
            order: layout.order(),
            object_size: layout.object_bytes(),
            snapshot_count: image.user_snapshots().count(),
            block_name_prefix: image.prefix().to_owned(),
            format: 2,
            features: image.features().names(),
            op_features: op_features(image.op_features().await?),
            flags: flags(image.flags()),
            create_timestamp: time(times.created),
            access_timestamp: time(times.accessed),
            modify_timestamp: time(times.modified),
            protected,
            parent: image.parent_names().await?.map(|names| ParentReport::new(store, names)),
            stripe_unit: striped.map(|(unit, _)| unit),
            stripe_count: striped.map(|(_, count)| count),
            snapshot_limit: image.snapshot_limit().await?,
        })
    }

    fn text(&self, spec: &ImageSpec) -> String {
        let mut lines = vec![
            format!("rbd image '{}':", self.name),
            format!("\tsize {} in {} objects", size::human(self.size), self.objects),
            format!("\torder {} ({} objects)", self.order, size::human(self.object_size)),
            format!("\tsnapshot_count: {}", self.snapshot_count),
            format!("\tid: {}", self.id),
            format!("\tblock_name_prefix: {}", self.block_name_prefix),
            format!("\tformat: {}", self.format),
            format!("\tfeatures: {}", self.features.join(", ")),
            format!("\top_features: {}", self.op_features.join(", ")),
            format!("\tflags: {}", self.flags.join(", ")),
            format!("\tcreate_timestamp: {}", self.create_timestamp),
            format!("\taccess_timestamp: {}", self.access_timestamp),
            format!("\tmodify_timestamp: {}", self.modify_timestamp),
        ];
        if spec.snapshot.is_some() {
            let is_protected = self.protected == Some("true");
            lines.push(format!("\tprotected: {}", if is_protected { "True" } else { "False" }));
        }
        if let Some(parent) = &self.parent {
            lines.push(format!("\tparent: {}", parent.text()));
            lines.push(format!("\toverlap: {}", size::human(parent.overlap)));
        }
        if let (Some(unit), Some(count)) = (self.stripe_unit, self.stripe_count) {
            lines.push(format!("\tstripe unit: {}", size::human(unit)));
            lines.push(format!("\tstripe count: {count}"));
        }
        if let Some(limit) = self.snapshot_limit {
            lines.push(format!("\tsnapshot_limit: {limit}"));
        }
        lines.join("\n")
    }
}

fn op_features(features: OpFeatures) -> Vec<String> {
    let known = [
        (OpFeatures::CLONE_PARENT, "clone-parent"),
        (OpFeatures::CLONE_CHILD, "clone-child"),
        (OpFeatures::GROUP, "group"),
        (OpFeatures::SNAP_TRASH, "snap-trash"),
    ];
    let set = known.iter().filter(|(bit, _)| features.contains(*bit));
    set.map(|(_, name)| (*name).to_owned()).collect()
}

fn flags(flags: ImageFlags) -> Vec<String> {
    let known = [
        (ImageFlags::OBJECT_MAP_INVALID, "object map invalid"),
        (ImageFlags::FAST_DIFF_INVALID, "fast diff invalid"),
    ];
    let set = known.iter().filter(|(bit, _)| flags.contains(*bit));
    set.map(|(_, name)| (*name).to_owned()).collect()
}

pub(super) async fn info(context: &Context<'_>, image: &str) -> Result<()> {
    let Target { spec, .. } = context.target(image)?;
    let (store, image) = context.target(image)?.read().await?;
    let report = InfoReport::of(&store, &spec, &image).await.map_err(cannot("describe", &spec))?;
    if context.json { term::say_json(&report) } else { term::say(report.text(&spec)) }
}

#[derive(Serialize)]
struct WatcherReport {
    address: String,
    client: i64,
    cookie: u64,
}

#[derive(Serialize)]
struct StatusReport {
    watchers: Vec<WatcherReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
}

pub(super) async fn status(context: &Context<'_>, image: &str) -> Result<()> {
    let target = context.image(image)?;
    let (store, image) = target.read().await?;
    let watchers = image.watchers().await.map_err(cannot("list the clients of", &target.spec))?;
    let watchers = watchers.iter().map(|watcher| WatcherReport {
        address: watcher.addr.to_string(),
        client: watcher.client.number,
        cookie: watcher.cookie,
    });
    let owner = owner(&store, image.id()).await?;
    let report = StatusReport { watchers: watchers.collect(), owner };
    if context.json {
        return term::say_json(&report);
    }
    if report.watchers.is_empty() {
        term::say("Watchers: none")?;
    } else {
        term::say("Watchers:")?;
        for WatcherReport { address, client, cookie } in &report.watchers {
            term::say(format_args!("\twatcher={address} client.{client} cookie={cookie}"))?;
        }
    }
    match &report.owner {
        Some(owner) => term::say(format_args!("Written by: {owner}")),
        None => Ok(()),
    }
}
