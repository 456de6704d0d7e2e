//! How much images use: du.

use blockyard_rbd::image::{Image, list};
use serde::Serialize;

use super::cannot;
use super::place::Context;
use crate::error::Result;
use crate::images::{ImageSpec, Store, read};
use crate::text::{size, term};

#[derive(Serialize)]
struct Row {
    name: String,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot_id: Option<u64>,
    provisioned_size: u64,
    used_size: u64,
}

#[derive(Serialize)]
struct Report {
    images: Vec<Row>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_provisioned_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_used_size: Option<u64>,
}

pub(super) async fn run(context: &Context<'_>, image: Option<&str>, exact: bool) -> Result<()> {
    let mut rows = Vec::new();
    match image {
        Some(image) => {
            let target = context.target(image)?;
            let store = target.store(false)?;
            rows.extend(rows_of(&store, &target.spec, exact).await?);
        }
        None => {
            let store = context.store(None, false)?;
            for (name, _) in list(&store).await.map_err(cannot("list", &"images"))? {
                let spec = ImageSpec { namespace: String::new(), image: name, snapshot: None };
                rows.extend(rows_of(&store, &spec, exact).await?);
            }
        }
    }
    let is_sum = rows.len() > 1;
    // An image counts once, however many snapshots it has.
    let provisioned = rows.iter().filter(|row| row.snapshot.is_none() || !is_sum);
    let provisioned: u64 = provisioned.map(|row| row.provisioned_size).sum();
    let used: u64 = rows.iter().map(|row| row.used_size).sum();
    let report = Report {
        images: rows,
        total_provisioned_size: is_sum.then_some(provisioned),
        total_used_size: is_sum.then_some(used),
    };
    if context.json {
        return term::say_json(&report);
    }
    let mut table = term::table(&["NAME", "PROVISIONED", "USED"]);
    for row in report.images {
        let snapshot = row.snapshot.map(|name| format!("@{name}")).unwrap_or_default();
        let (provisioned, used) = (size::human(row.provisioned_size), size::human(row.used_size));
        table.add_row([format!("{}{snapshot}", row.name), provisioned, used]);
    }
    if is_sum {
        table.add_row(["<TOTAL>".to_owned(), size::human(provisioned), size::human(used)]);
    }
    term::say(table.trim_fmt())
}

/// The snapshots of an image, each with what changed since the one before, and the image; or one snapshot.
async fn rows_of(store: &Store, spec: &ImageSpec, exact: bool) -> Result<Vec<Row>> {
    let image = read(store, spec).await?;
    let (mut rows, mut before) = (Vec::new(), None);
    for snapshot in image.user_snapshots() {
        let view = ImageSpec { snapshot: Some(snapshot.name.clone()), ..spec.clone() };
        if spec.snapshot.is_none() || spec.snapshot == view.snapshot {
            let opened = read(store, &view).await?;
            rows.push(row(&view, &opened, Some(snapshot.id), before, exact).await?);
        }
        before = Some(snapshot.id);
    }
    if spec.snapshot.is_none() {
        rows.push(row(spec, &image, None, before, exact).await?);
    }
    Ok(rows)
}

async fn row(
    spec: &ImageSpec,
    image: &Image<Store>,
    snapshot_id: Option<u64>,
    before: Option<u64>,
    exact: bool,
) -> Result<Row> {
    let used = image.used_bytes(before, exact).await;
    Ok(Row {
        name: spec.image.clone(),
        id: image.id().to_owned(),
        snapshot: spec.snapshot.clone(),
        snapshot_id,
        provisioned_size: image.size(),
        used_size: used.map_err(cannot("measure", spec))?,
    })
}
