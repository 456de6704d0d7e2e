//! What is asked about jobs, and the jobs that are no changes: checking and copying disks of the daemon.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::Problem;
use super::jobs::{Cancel, Gone, Job, Kind, Wanted};
use super::problem::{Answer, Refusal};
use super::request::{self, WantedJob};
use super::routes::{Body, Served, accepted, body, no_disk, refused_at};
use crate::error::{Error, ErrorKind, Result};
use crate::tools::check::check_disk;
use crate::tools::copy::between;
use crate::tools::session::{Amount, Session};

fn no_job(place: &str, id: &str) -> Refusal {
    let err = Error::failed(format!("no job {id}"));
    Refusal::not_found(place, &err.help("list jobs: GET /v1/jobs"))
}

pub(super) async fn jobs(State(served): State<Served>) -> Json<Vec<Job>> {
    Json(served.jobs.list())
}

pub(super) async fn job(
    State(served): State<Served>,
    Path(id): Path<String>,
    uri: Uri,
) -> Answer<Json<Job>> {
    let job = id.parse().ok().and_then(|id| served.jobs.get(id));
    job.map(Json).ok_or_else(|| no_job(uri.path(), &id))
}

pub(super) async fn delete_job(
    State(served): State<Served>,
    Path(id): Path<String>,
    uri: Uri,
) -> Answer<Response> {
    match id.parse().ok().and_then(|id| served.jobs.dismiss(id)) {
        None => Err(no_job(uri.path(), &id)),
        Some(Gone::Forgotten) => Ok(StatusCode::NO_CONTENT.into_response()),
        Some(Gone::Ending(job)) => Ok(accepted(job)),
        Some(Gone::Stays(job)) => {
            let what = format!("job {} cannot be cancelled", job.id);
            let err = Error::new(ErrorKind::Busy, what).help("wait for it to end");
            Err(Refusal::new(uri.path(), &err))
        }
    }
}

/// Begins a job, which nobody waits for.
pub(super) async fn post_job(
    State(served): State<Served>,
    uri: Uri,
    bytes: Body,
) -> Answer<Response> {
    let place = uri.path().to_owned();
    let wanted = request::job(request::object(&body(bytes)?)?)?;
    let (kind, subject, source) = match &wanted {
        WantedJob::Check { disk } => (Kind::Check, disk, None),
        WantedJob::Copy { source, target, .. } => {
            served.may_change(&place)?;
            (Kind::Copy, target, Some(source.clone()))
        }
    };
    let (cancel, amount) = (Arc::<Cancel>::default(), Arc::<Amount>::default());
    let job = Wanted {
        source,
        cancel: Some(Arc::clone(&cancel)),
        amount: Some(Arc::clone(&amount)),
        is_kept: true,
        ..Wanted::new(kind, subject)
    };
    let disk = |name: &str, field: &str| {
        served.yard.open_and_plan(name).map_err(|_| no_disk(name, &format!("body.{field}")))
    };
    let session = Session::on(served.yard.threads(), amount);
    let mut refuse: Box<dyn FnOnce() -> Result<()> + Send> = Box::new(|| Ok(()));
    let work: Box<dyn FnOnce() -> Result<Value> + Send> = match wanted {
        WantedJob::Check { disk: name } => {
            let (open, plan) = disk(&name, "disk")?;
            Box::new(move || {
                let uri = plan.uri.clone();
                json(&check_disk(&session, open.disk(), uri, &cancel.interrupt)?)
            })
        }
        WantedJob::Copy { source, target, detect_zeroes } => {
            let (source, target) = (disk(&source, "source")?, disk(&target, "target")?);
            // What is in memory is not known by its identity.
            if Arc::ptr_eq(&source.0, &target.0) {
                let what = "source and target are the same disk";
                return Err(Refusal::usage("body.target", what));
            }
            let plans = (Arc::clone(&source.1), Arc::clone(&target.1));
            refuse = Box::new(move || crate::tools::copy::refuse_same(&plans.0, &plans.1));
            Box::new(move || {
                let disks = [&source, &target].map(|(open, plan)| (open.disk(), &**plan));
                json(&between(&session, disks, detect_zeroes, &cancel.interrupt)?)
            })
        }
    };
    let job = served.begin(&place, job)?;
    let told = job.told();
    // It asks file systems, which may not answer: that is a part of the job, and has its place.
    let refused = tokio::task::spawn_blocking(move || {
        if let Err(err) = refuse() {
            job.refused(Problem::of(&err, "body.target"));
            return Err(err);
        }
        tokio::task::spawn_blocking(move || match work() {
            Ok(result) => job.done(Some(result)),
            Err(err) => job.failed(Problem::of(&err, place)),
        });
        Ok(())
    });
    let refused = refused
        .await
        .unwrap_or_else(|err| Err(Error::failed("cannot compare the disks").caused_by(err)));
    refused_at("body.target", refused)?;
    Ok(accepted(told))
}

fn json(result: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(result)
        .map_err(|err| Error::failed("cannot encode the result").caused_by(err))
}
