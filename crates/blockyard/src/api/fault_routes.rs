//! Faults of disks: what is asked, and what is done for it.

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::problem::{Answer, Refusal};
use super::request::{self, Query};
use super::routes::{Body, Served, body, refused_at};
use crate::disks::fault::FaultReport;
use crate::error::Error;

pub(super) async fn faults(
    State(served): State<Served>,
    Path(name): Path<String>,
    uri: Uri,
) -> Answer<Json<Vec<FaultReport>>> {
    served.disk(&name, uri.path())?;
    refused_at(uri.path(), served.yard.faults(&name)).map(Json)
}

pub(super) async fn post_fault(
    State(served): State<Served>,
    Path(name): Path<String>,
    uri: Uri,
    bytes: Body,
) -> Answer<Response> {
    let spec = request::fault(&request::object(&body(bytes)?)?)?;
    served.disk(&name, uri.path())?;
    let added = refused_at(uri.path(), served.yard.add_fault(&name, spec).await)?;
    Ok((StatusCode::CREATED, Json(added)).into_response())
}

pub(super) async fn delete_faults(
    State(served): State<Served>,
    Path(name): Path<String>,
    uri: Uri,
) -> Answer<StatusCode> {
    served.disk(&name, uri.path())?;
    refused_at(uri.path(), served.yard.clear_faults(&name).await)?;
    Ok(StatusCode::NO_CONTENT)
}

/// The number of a fault that the disk has, of some kind.
fn known(served: &Served, name: &str, id: &str, kind: Option<&str>, place: &str) -> Answer<u64> {
    served.disk(name, place)?;
    let faults = refused_at(place, served.yard.faults(name))?;
    let is_it = |fault: &FaultReport| kind.is_none_or(|kind| fault.kind == kind);
    let is_there = |id: &u64| faults.iter().any(|fault| fault.id == *id && is_it(fault));
    id.parse().ok().filter(is_there).ok_or_else(|| {
        let what = format!("{name} has no {} {id}", kind.unwrap_or("fault"));
        let err = Error::failed(what);
        Refusal::not_found(place, &err.help(format!("list the faults: blockyard fault {name}")))
    })
}

pub(super) async fn delete_fault(
    State(served): State<Served>,
    Path((name, id)): Path<(String, String)>,
    uri: Uri,
) -> Answer<StatusCode> {
    let id = known(&served, &name, &id, None, uri.path())?;
    refused_at(uri.path(), served.yard.clear_fault(&name, id).await)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn release(
    State(served): State<Served>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    uri: Uri,
) -> Answer<Response> {
    served.disk(&name, uri.path())?;
    let query = Query::parse(query.as_deref(), &["id"])?;
    let id = query.text("id");
    let id = id.map(|id| known(&served, &name, id, Some("stall"), uri.path())).transpose()?;
    let released = refused_at(uri.path(), served.yard.release_stalled(&name, id).await)?;
    Ok(Json(json!({ "released": released })).into_response())
}
