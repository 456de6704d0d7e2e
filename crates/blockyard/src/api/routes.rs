//! What is asked, and what is done for it.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Bytes, HttpBody};
use axum::extract::{DefaultBodyLimit, FromRequest, Path, RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use axum::{Json, Router};
use tokio::sync::{Semaphore, oneshot};

use super::jobs::{Cancel, Job, Jobs, Kind, NotBegun, Running, Wanted};
use super::openapi::Operation;
use super::problem::{Answer, Refusal};
use super::request::{self, Query, WantedDisk};
use super::{Attached, BODY_PATIENCE, MAX_LISTENERS, MAX_REQUEST, openapi};
use crate::error::{Error, ErrorKind, Result};
use crate::exports;
use crate::metrics;
use crate::yard::Yard;
use crate::yard::changes::Outcome;
use crate::yard::config::save::Edit;
use crate::yard::report::{DiskReport, ExportReport, RemovedReport};

/// What all answers are about.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) yard: Arc<Yard>,
    attached: Option<Attached>,
    /// Room for those who listen to events.
    listeners: Arc<Semaphore>,
    pub(super) jobs: Arc<Jobs>,
}

/// A body that has come, or why it has not.
pub(super) struct Body(Answer<Bytes>);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Infallible;

    async fn from_request(request: Request, state: &S) -> Result<Self, Infallible> {
        let sent = tokio::time::timeout(BODY_PATIENCE, Bytes::from_request(request, state)).await;
        let refused = |what: String, status| Refusal::usage("body", what).with_status(status);
        Ok(Self(match sent {
            Ok(sent) => sent.map_err(|err| refused(err.body_text(), err.status())),
            Err(_) => {
                Err(refused("the body did not arrive in time".into(), StatusCode::REQUEST_TIMEOUT))
            }
        }))
    }
}

/// All operations that [`openapi::OPERATIONS`] has, and nothing else.
pub(super) fn router(yard: Arc<Yard>, attached: Option<Attached>) -> Router {
    let mut router = Router::new();
    for operation in openapi::OPERATIONS {
        router = router.route(operation.path, routed(operation));
    }
    let (jobs, listeners) = (Jobs::new(yard.events()), Arc::new(Semaphore::new(MAX_LISTENERS)));
    router
        .fallback(async |uri: Uri| nothing_there(uri.path()))
        .method_not_allowed_fallback(async |uri: Uri| {
            let what = Refusal::usage(uri.path(), "method not allowed");
            what.with_status(StatusCode::METHOD_NOT_ALLOWED)
        })
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .with_state(Served { yard, attached, listeners, jobs })
}

/// Those that only look at how it goes, for whoever may reach an address.
pub(crate) fn metrics_router(yard: Arc<Yard>) -> Router {
    let mut router = Router::new();
    for operation in openapi::OPERATIONS.iter().filter(|it| it.is_open()) {
        router = router.route(operation.path, routed(operation));
    }
    let (jobs, listeners) = (Jobs::new(yard.events()), Arc::new(Semaphore::new(0)));
    router.with_state(Served { yard, attached: None, listeners, jobs })
}

/// An operation, which is not begun if something is asked for that its description does not have.
fn routed(operation: &'static Operation) -> MethodRouter<Served> {
    (operation.route)().route_layer(middleware::from_fn(async |request: Request, next: Next| {
        Query::parse(request.uri().query(), &operation.parameters())?;
        if !operation.has_body() && !request.body().is_end_stream() {
            return Err(Refusal::usage("body", "this operation takes no body"));
        }
        Ok(next.run(request).await)
    }))
}

fn nothing_there(path: &str) -> Refusal {
    let err = Error::usage("no such path");
    Refusal::not_found(path, &err.help("see GET /v1/openapi.json"))
}

pub(super) fn body(body: Body) -> Answer<Bytes> {
    body.0
}

/// Whether the client does not want to wait for what it asks for (RFC 7240, 4.1).
fn respond_async(headers: &HeaderMap) -> bool {
    let said = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    said.flat_map(|value| value.split(','))
        .any(|it| it.trim().eq_ignore_ascii_case("respond-async"))
}

/// What is answered to those who do not wait for a job.
pub(super) fn accepted(job: Job) -> Response {
    let place = [(header::LOCATION, format!("/v1/jobs/{}", job.id))];
    (StatusCode::ACCEPTED, place, Json(job)).into_response()
}

impl Served {
    /// Does something as a whole, whether the client waits for it or not: as a job.
    async fn change(
        &self,
        headers: &HeaderMap,
        place: &str,
        mut wanted: Wanted,
        work: impl Future<Output = Answer<Response>> + Send + 'static,
    ) -> Answer<Response> {
        wanted.is_kept = respond_async(headers);
        let is_kept = wanted.is_kept;
        let job = self.begin(place, wanted)?;
        let told = job.told();
        let task = tokio::spawn(async move {
            let answer = work.await;
            match &answer {
                Ok(answer) => {
                    let result = answer.extensions().get::<JobResult>();
                    job.done(result.map(|result| result.0.clone()));
                }
                Err(refusal) => job.failed(refusal.problem().clone()),
            }
            answer
        });
        if is_kept {
            let mut answer = accepted(told);
            let applied = HeaderValue::from_static("respond-async");
            answer.headers_mut().insert("preference-applied", applied);
            return Ok(answer);
        }
        let failed = || Error::failed("internal error in the daemon").help("see its log");
        task.await.unwrap_or_else(|_| Err(Refusal::new(place, &failed())))
    }

    pub(super) fn begin(&self, place: &str, wanted: Wanted) -> Answer<Running> {
        self.jobs.begin(wanted).map_err(|refused| match refused {
            NotBegun::InUse(err) => Refusal::new(place, &err),
            NotBegun::Full(err) => {
                Refusal::new(place, &err).with_status(StatusCode::SERVICE_UNAVAILABLE)
            }
        })
    }

    /// One that serves a disk of the kernel, or a directory, has that, and nothing else.
    pub(super) fn may_change(&self, place: &str) -> Answer<()> {
        let device = self.attached.as_ref().map(|it| it.device.path.clone());
        let Some(only) = device.or_else(|| self.yard.only()) else { return Ok(()) };
        let what = format!("this daemon serves only {only}");
        Err(Refusal::new(place, &Error::new(ErrorKind::Busy, what)))
    }

    pub(super) fn disk(&self, name: &str, place: &str) -> Answer<DiskReport> {
        self.yard.disk_report(name).ok_or_else(|| no_disk(name, place))
    }

    fn export(&self, kind: &str, name: &str, place: &str) -> Answer<ExportReport> {
        self.yard.export_report(kind, name).ok_or_else(|| {
            let what = format!("no {kind} export named {name:?}");
            Refusal::not_found(
                place,
                &Error::failed(what).help("list disks and exports: blockyard list"),
            )
        })
    }
}

pub(super) fn refused_at<T>(place: &str, done: Result<T>) -> Answer<T> {
    done.map_err(|err| Refusal::new(place, &err))
}

pub(super) fn no_disk(name: &str, place: &str) -> Refusal {
    let err = Error::failed(format!("no disk named {name:?}"));
    Refusal::not_found(place, &err.help("list disks and exports: blockyard list"))
}

/// Whether something is to be made, and nothing is wanted that is there already (RFC 9110, 13.1.2).
fn only_new(headers: &HeaderMap) -> Answer<bool> {
    match headers.get(header::IF_NONE_MATCH) {
        None => Ok(false),
        Some(any) if any == "*" => Ok(true),
        Some(_) => Err(Refusal::usage("If-None-Match", "only If-None-Match: * is supported")),
    }
}

fn taken(name: &str, place: &str) -> Refusal {
    let what = format!("a disk named {name:?} already exists");
    let err = Error::new(ErrorKind::Busy, what).help("choose another name");
    Refusal::new(place, &err).with_status(StatusCode::PRECONDITION_FAILED)
}

/// What an answer says that a job that nobody waits for says, too.
#[derive(Clone)]
struct JobResult(serde_json::Value);

fn with_result(report: &impl serde::Serialize) -> Response {
    let mut answer = Json(report).into_response();
    let result = serde_json::to_value(report).ok();
    result.map(|result| answer.extensions_mut().insert(JobResult(result)));
    answer
}

fn made(outcome: Outcome, report: impl serde::Serialize) -> Response {
    let status = match outcome {
        Outcome::Made => StatusCode::CREATED,
        Outcome::Same | Outcome::Taken => StatusCode::OK,
    };
    (status, Json(report)).into_response()
}

pub(super) async fn document() -> impl IntoResponse {
    Json(openapi::document())
}

pub(super) async fn daemon(State(served): State<Served>) -> impl IntoResponse {
    let mut report = served.yard.report();
    report.devices.extend(served.attached.map(|attached| attached.device));
    Json(report)
}

pub(super) async fn diskstats(State(served): State<Served>) -> String {
    served.yard.layer().proc_diskstats()
}

pub(super) async fn partitions(State(served): State<Served>) -> String {
    served.yard.layer().proc_partitions()
}

pub(super) async fn metrics(
    State(served): State<Served>,
    RawQuery(query): RawQuery,
) -> Answer<Response> {
    let clients = Query::parse(query.as_deref(), &["clients"])?.flag("clients")?;
    let text = metrics::text(&served.yard, clients);
    Ok(([(header::CONTENT_TYPE, metrics::MEDIA_TYPE)], text).into_response())
}

pub(super) async fn livez() -> &'static str {
    "ok\n"
}

pub(super) async fn readyz(State(served): State<Served>) -> (StatusCode, &'static str) {
    if served.yard.is_ending() {
        return (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n");
    }
    (StatusCode::OK, "ok\n")
}

pub(super) async fn disks(State(served): State<Served>) -> impl IntoResponse {
    Json(served.yard.report().disks)
}

pub(super) async fn disk(
    State(served): State<Served>,
    Path(name): Path<String>,
    uri: Uri,
) -> Answer<Json<DiskReport>> {
    served.disk(&name, uri.path()).map(Json)
}

pub(super) async fn put_disk(
    State(served): State<Served>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    uri: Uri,
    headers: HeaderMap,
    bytes: Body,
) -> Answer<Response> {
    let place = uri.path().to_owned();
    served.may_change(&place)?;
    let save = Query::parse(query.as_deref(), &["save"])?.flag("save")?;
    let only_new = only_new(&headers)?;
    let WantedDisk { plan, options } = request::disk(&name, request::object(&body(bytes)?)?)?;
    let cancel = Arc::<Cancel>::default();
    let wanted = Wanted { cancel: Some(Arc::clone(&cancel)), ..Wanted::new(Kind::AddDisk, &name) };
    served
        .clone()
        .change(&headers, &place.clone(), wanted, async move {
            let edit = save.then(|| Edit::AddDisk { plan: plan.clone(), options });
            let adding = served.yard.add_disk_unless(plan, only_new, edit, cancel.wanted());
            let added = adding.await;
            match refused_at(&place, added)? {
                Outcome::Taken => Err(taken(&name, &place)),
                outcome => Ok(made(outcome, served.disk(&name, &place)?)),
            }
        })
        .await
}

pub(super) async fn patch_disk(
    State(served): State<Served>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    uri: Uri,
    headers: HeaderMap,
    bytes: Body,
) -> Answer<Response> {
    let place = uri.path().to_owned();
    let query = Query::parse(query.as_deref(), &["save", "shrink"])?;
    let (save, shrink) = (query.flag("save")?, query.flag("shrink")?);
    let wanted = request::settings(request::object(&body(bytes)?)?)?;
    served.disk(&name, &place)?;
    let job = Wanted::new(Kind::SetDisk, &name);
    served
        .clone()
        .change(&headers, &place.clone(), job, async move {
            let said = wanted.iter().map(|wanted| (wanted.option.name, wanted.said.clone()));
            let edit = save.then(|| Edit::Set { disk: name.clone(), settings: said.collect() });
            let settings =
                wanted.iter().map(|wanted| (wanted.option, wanted.value.clone())).collect();
            let set = served.yard.set(&name, settings, shrink, edit).await;
            refused_at(&place, set)?;
            Ok(Json(served.disk(&name, &place)?).into_response())
        })
        .await
}

pub(super) async fn delete_disk(
    State(served): State<Served>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    uri: Uri,
    headers: HeaderMap,
) -> Answer<Response> {
    let place = uri.path().to_owned();
    served.may_change(&place)?;
    let save = Query::parse(query.as_deref(), &["save"])?.flag("save")?;
    served.disk(&name, &place)?;
    let job = Wanted::new(Kind::RemoveDisk, &name);
    served
        .clone()
        .change(&headers, &place.clone(), job, async move {
            let edit = save.then(|| Edit::RemoveDisk(name.clone()));
            refused_at(&place, served.yard.remove_disk(&name, edit).await)?;
            Ok(StatusCode::NO_CONTENT.into_response())
        })
        .await
}

pub(super) async fn exports(State(served): State<Served>) -> impl IntoResponse {
    Json(served.yard.report().exports)
}

pub(super) async fn export(
    State(served): State<Served>,
    Path((kind, name)): Path<(String, String)>,
    uri: Uri,
) -> Answer<Json<ExportReport>> {
    served.export(&kind, &name, uri.path()).map(Json)
}

pub(super) async fn put_export(
    State(served): State<Served>,
    Path((kind, name)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    uri: Uri,
    headers: HeaderMap,
    bytes: Body,
) -> Answer<Response> {
    let place = uri.path().to_owned();
    served.may_change(&place)?;
    let save = Query::parse(query.as_deref(), &["save"])?.flag("save")?;
    let known = exports::kind(&kind).map_err(|err| Refusal::not_found(&place, &err))?;
    let plan = request::export(known, &name, request::object(&body(bytes)?)?)?;
    if !known.whole_yard && served.yard.disk(&plan.disk).is_err() {
        return Err(no_disk(&plan.disk, "body.disk"));
    }
    let job = Wanted::new(Kind::AddExport, &name);
    served
        .clone()
        .change(&headers, &place.clone(), job, async move {
            let edit = save.then(|| Edit::AddExport(plan.clone()));
            let added = served.yard.add_export(plan, edit).await;
            let outcome = refused_at(&place, added)?;
            Ok(made(outcome, served.export(&kind, &name, &place)?))
        })
        .await
}

pub(super) async fn delete_export(
    State(served): State<Served>,
    Path((kind, name)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    uri: Uri,
    headers: HeaderMap,
) -> Answer<Response> {
    let place = uri.path().to_owned();
    served.may_change(&place)?;
    let save = Query::parse(query.as_deref(), &["save"])?.flag("save")?;
    if !served.yard.has_removed(&kind, &name) {
        served.export(&kind, &name, &place)?;
    }
    let kind = exports::kind(&kind).map_err(|err| Refusal::not_found(&place, &err))?;
    let job = Wanted::new(Kind::RemoveExport, &name);
    served
        .clone()
        .change(&headers, &place.clone(), job, async move {
            let edit = save.then(|| Edit::RemoveExport(kind, name.clone()));
            let removed = served.yard.remove_export(kind, &name, edit).await;
            Ok(match refused_at(&place, removed)? {
                0 => StatusCode::NO_CONTENT.into_response(),
                in_flight => with_result(&RemovedReport { in_flight }),
            })
        })
        .await
}

/// Asked only by who names the device and its mark: a process of another PID namespace may have our number.
pub(super) async fn delete_device(
    State(served): State<Served>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    uri: Uri,
) -> Answer<StatusCode> {
    let place = uri.path().to_owned();
    let query = Query::parse(query.as_deref(), &["mark"])?;
    let mark = query.text("mark").unwrap_or_default();
    let is_it = |attached: &Attached| {
        crate::attach::device_name(&attached.device.path) == name && attached.device.mark == mark
    };
    let Some(attached) = served.attached.filter(is_it) else {
        return Err(Refusal::not_found(
            &place,
            &Error::failed(format!("{name} is not attached by this daemon")),
        ));
    };
    // Whoever has the other end does it as a whole, whether the client waits for it or not.
    let (tell, told) = oneshot::channel();
    if attached.detach.send(tell).await.is_err() {
        return Ok(StatusCode::NO_CONTENT);
    }
    match told.await {
        Ok(detached) => detached.map_err(|err| Refusal::new(place, &err))?,
        Err(_) => return Err(Refusal::new(place, &Error::failed("the daemon is shutting down"))),
    }
    Ok(StatusCode::NO_CONTENT)
}

/// What happens from now on, or from behind the event that the client names.
pub(super) async fn events(
    State(served): State<Served>,
    uri: Uri,
    headers: HeaderMap,
) -> Answer<Response> {
    let Ok(room) = Arc::clone(&served.listeners).try_acquire_owned() else {
        let what = format!("too many event clients (limit {MAX_LISTENERS})");
        let refusal = Refusal::new(uri.path(), &Error::new(ErrorKind::Busy, what));
        return Err(refusal.with_status(StatusCode::SERVICE_UNAVAILABLE));
    };
    let events = Arc::clone(served.yard.events());
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let from = match last {
        None => Ok(events.now()),
        // Of a daemon before this one, say.
        Some(id) => events.behind(id).ok_or_else(|| events.now()),
    };
    let stream = futures_util::stream::unfold((from, room), move |(from, room)| {
        let events = Arc::clone(&events);
        async move {
            let (event, read) = match from {
                Ok(read) => events.next(read).await,
                Err(now) => (crate::yard::events::Event::Missed, now),
            };
            let told = sse::Event::default().id(events.id(read)).json_data(&event);
            Some((told, (Ok(read), room)))
        }
    });
    // Whoever waits for the first bytes of an answer need not wait for an event.
    let begun = futures_util::stream::iter([Ok(sse::Event::default().comment(""))]);
    let stream = futures_util::StreamExt::chain(begun, stream);
    let answer = Sse::new(stream).keep_alive(KeepAlive::default());
    Ok(([(header::CACHE_CONTROL, "no-store")], answer).into_response())
}
