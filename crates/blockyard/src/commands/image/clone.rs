//! Clones: clone, children, flatten.

use blockyard_rbd::image::name_of;
use blockyard_rbd::store::ObjectStore;
use serde::Serialize;

use super::cannot;
use super::new::check_namespace;
use super::place::Context;
use crate::error::{Error, Result, quoted};
use crate::text::term;

pub(super) async fn clone(context: &Context<'_>, snapshot: &str, image: &str) -> Result<()> {
    let (parent, name) = context.snapshot(snapshot)?;
    let child = context.image(image)?;
    if !parent.is_beside(&child) {
        let what = "cannot clone into another store";
        return Err(Error::usage(what).help(format!(
            "copy the whole image: blockyard image cp {} {}",
            quoted(snapshot),
            quoted(image)
        )));
    }
    let (_store, opened) = parent.read().await?;
    let into = child.store(false)?;
    check_namespace(&into, &child.spec.namespace).await?;
    let made = opened.clone_snapshot(&name, &into, &child.spec.image).await;
    made.map_err(cannot("clone", &snapshot))
}

#[derive(Serialize)]
struct Child {
    pool: String,
    pool_namespace: String,
    image: String,
    id: String,
    trash: bool,
}

pub(super) async fn children(context: &Context<'_>, image: &str) -> Result<()> {
    let target = context.target(image)?;
    let (store, image) = target.read().await?;
    let only = target.spec.snapshot.as_deref();
    let snapshots = image.snapshot_records().iter();
    let mut all = Vec::new();
    for snapshot in snapshots.filter(|snapshot| only.is_none_or(|only| snapshot.name == only)) {
        let found =
            image.children(snapshot.id).await.map_err(cannot("list clones of", &target.spec))?;
        for child in found {
            let inside = store.in_pool(child.pool, &child.namespace).await;
            let inside = inside.map_err(cannot("open the pool of", &child.image))?;
            let name = name_of(&inside, &child.image).await;
            let (name, trash) = name.map_err(cannot("find the clone", &child.image))?;
            let pool_namespace = child.namespace;
            all.push(Child {
                pool: store.pool_name(child.pool),
                pool_namespace,
                image: name,
                id: child.image,
                trash,
            });
        }
    }
    if context.json {
        return term::say_json(&all);
    }
    for Child { pool, pool_namespace, image, id, trash } in all {
        let namespace =
            if pool_namespace.is_empty() { String::new() } else { format!("{pool_namespace}/") };
        let trash = if trash { format!(" (trash {id})") } else { String::new() };
        let pool = if pool.is_empty() { pool } else { format!("{pool}/") };
        term::say(format_args!("{pool}{namespace}{image}{trash}"))?;
    }
    Ok(())
}

pub(super) async fn flatten(context: &Context<'_>, image: &str) -> Result<()> {
    let target = context.image(image)?;
    let (_store, image) = target.read().await?;
    if image.parent_record().is_none() {
        return Err(Error::usage(format!("{} is not a clone", target.spec)));
    }
    target.change(&format!("flatten {}", target.spec), async |live| live.flatten().await).await
}
