//! Whether all is well with the images of a store: what no command would notice before it is too late.

use std::collections::BTreeSet;

use blockyard_rbd::format::{Features, names};
use blockyard_rbd::image::{MapState, list, trash};
use blockyard_rbd::store::ObjectStore;
use serde::Serialize;

use super::cannot;
use super::place::Context;
use crate::commands::NO;
use crate::error::Result;
use crate::images::{ImageSpec, Store, own, read};
use crate::text::term;

/// Objects that are listed at a time.
const PAGE: usize = 4096;

#[derive(Default, Serialize)]
struct Report {
    images: usize,
    objects: usize,
    repaired: usize,
    problems: Vec<String>,
}

pub(super) async fn run(context: &Context<'_>, store: Option<&str>, repair: bool) -> Result<u8> {
    let store = context.store(store, false)?;
    let mut report = Report::default();
    let images = list(&store).await.map_err(cannot("list", &"images"))?;
    let mut ids: BTreeSet<String> = images.iter().map(|(_, id)| id.clone()).collect();
    for (name, id) in images {
        report.images += 1;
        check_image(&store, name, &id, repair, &mut report).await?;
    }
    let trashed = trash::list(&store).await.map_err(cannot("list", &"the trash"))?;
    ids.extend(trashed.into_iter().map(|(id, _)| id));
    check_objects(&store, &ids, &mut report).await?;
    if context.json {
        term::say_json(&report)?;
    } else {
        for problem in &report.problems {
            term::say(problem)?;
        }
        term::say(format_args!(
            "{} images and {} objects checked: {} problems, {} repaired",
            report.images,
            report.objects,
            report.problems.len(),
            report.repaired
        ))?;
    }
    Ok(if report.problems.len() > report.repaired { NO } else { 0 })
}

/// An image opens, with all that it lies on; it has its name and id; its maps know what is there.
async fn check_image(
    store: &Store,
    name: String,
    id: &str,
    repair: bool,
    report: &mut Report,
) -> Result<()> {
    let spec = ImageSpec { namespace: String::new(), image: name, snapshot: None };
    let image = match read(store, &spec).await {
        Ok(image) => image,
        Err(err) => {
            let why = err.told().0.join(": ");
            report.problems.push(format!("cannot open {spec}: {why}"));
            return Ok(());
        }
    };
    if image.id() != id {
        let found = image.id();
        report.problems.push(format!("{spec} has ID {found}, but the directory says {id}"));
    }
    if !image.features().contains(Features::OBJECT_MAP) {
        return Ok(());
    }
    let names = image.user_snapshots().map(|snapshot| Some(snapshot.name.clone()));
    let views: Vec<_> = names.chain([None]).collect();
    let mut wrong = 0;
    for snapshot in views {
        let view = ImageSpec { snapshot, ..spec.clone() };
        let opened = read(store, &view).await?;
        let state = opened.check_map(|_, _| {}).await.map_err(cannot("check", &view))?;
        let what = match state {
            MapState::Right => continue,
            MapState::Invalid => "is flagged invalid".to_owned(),
            MapState::Misses(object) => format!("lacks object {object}"),
        };
        wrong += 1;
        report.problems.push(format!("the object map of {view} {what}"));
    }
    if wrong > 0 && repair {
        drop(image);
        match rebuild(store, &spec).await {
            Ok(()) => report.repaired += wrong,
            Err(err) => {
                let why = [vec![err.to_string()], err.told().0].concat().join(": ");
                report.problems.push(format!("{spec} is not repaired: {why}"));
            }
        }
    }
    Ok(())
}

async fn rebuild(store: &Store, spec: &ImageSpec) -> Result<()> {
    let mut owned = own(store, spec).await?;
    let rebuilt = owned.rebuild_map(|_, _| {}).await;
    let closed = owned.close().await;
    rebuilt.and(closed).map_err(cannot("rebuild the object maps of", spec))
}

/// Headers and data are of images that there are.
async fn check_objects(store: &Store, ids: &BTreeSet<String>, report: &mut Report) -> Result<()> {
    let mut unknown = BTreeSet::new();
    let mut from = None;
    loop {
        let (objects, next) =
            store.list(from.as_ref(), PAGE).await.map_err(cannot("list", &"objects"))?;
        report.objects += objects.len();
        for object in &objects {
            let Ok(name) = std::str::from_utf8(object) else { continue };
            let id = id_in(name).filter(|id| !ids.contains(*id));
            unknown.extend(id.map(str::to_owned));
        }
        match next {
            Some(next) => from = Some(next),
            None => break,
        }
    }
    report.problems.extend(unknown.into_iter().map(|id| {
        let header = names::header(&id);
        format!("objects of {id}, but no image with that ID (missing header {header})")
    }));
    Ok(())
}

/// The id of the image that an object is of.
fn id_in(name: &str) -> Option<&str> {
    if let Some(data) = name.strip_prefix("rbd_data.") {
        let mut parts = data.split('.');
        return match (parts.next(), parts.next(), parts.next()) {
            // Of an image of another pool, whose bytes are in this one.
            (_, _, Some(_)) => None,
            (id, ..) => id,
        };
    }
    let prefixes = ["rbd_header.", "rbd_object_map."];
    let rest = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix))?;
    Some(rest.split('.').next().unwrap_or(rest))
}
