//! The description of the API (OpenAPI 3.1). The router is made from the same list of operations; what disks and exports can
//! be, their kinds say.

use axum::routing::{MethodRouter, delete, get, patch, post, put};
use serde_json::{Map, Value, json};

use super::routes::{self, Served};
use super::{fault_routes, job_routes};
use crate::disks::{self, OptionSpec, ValueKind, fault};
use crate::exports;
use crate::metrics;
use crate::text::suggest;

/// Something that can be asked for.
pub(super) struct Operation {
    method: &'static str,
    pub(super) path: &'static str,
    summary: &'static str,
    /// Parameters of its query, and headers.
    query: &'static [&'static str],
    /// The schema of its body.
    body: Option<&'static str>,
    answers: &'static [(u16, Told)],
    pub(super) route: fn() -> MethodRouter<Served>,
}

/// What an answer has.
enum Told {
    Nothing,
    Text,
    Events,
    Metrics,
    Any,
    One(&'static str),
    List(&'static str),
}

/// All operations.
pub(super) static OPERATIONS: &[Operation] = &[
    Operation {
        method: "get",
        path: "/v1/openapi.json",
        summary: "This description",
        query: &[],
        body: None,
        answers: &[(200, Told::Any)],
        route: || get(routes::document),
    },
    Operation {
        method: "get",
        path: "/v1/daemon",
        summary: "The daemon, its disks and exports",
        query: &[],
        body: None,
        answers: &[(200, Told::One("Daemon"))],
        route: || get(routes::daemon),
    },
    Operation {
        method: "get",
        path: "/v1/diskstats",
        summary: "The disks in the format of /proc/diskstats",
        query: &[],
        body: None,
        answers: &[(200, Told::Text)],
        route: || get(routes::diskstats),
    },
    Operation {
        method: "get",
        path: "/v1/partitions",
        summary: "The disks in the format of /proc/partitions",
        query: &[],
        body: None,
        answers: &[(200, Told::Text)],
        route: || get(routes::partitions),
    },
    Operation {
        method: "get",
        path: "/metrics",
        summary: "Metrics for Prometheus (OpenMetrics text)",
        query: &["clients"],
        body: None,
        answers: &[(200, Told::Metrics)],
        route: || get(routes::metrics),
    },
    Operation {
        method: "get",
        path: "/livez",
        summary: "200 while the daemon answers",
        query: &[],
        body: None,
        answers: &[(200, Told::Text)],
        route: || get(routes::livez),
    },
    Operation {
        method: "get",
        path: "/readyz",
        summary: "200 while the daemon serves, 503 once it is shutting down",
        query: &[],
        body: None,
        answers: &[(200, Told::Text), (503, Told::Text)],
        route: || get(routes::readyz),
    },
    Operation {
        method: "get",
        path: "/v1/events",
        summary: "Server-sent events; Last-Event-ID resumes after an event",
        query: &["Last-Event-ID"],
        body: None,
        answers: &[(200, Told::Events)],
        route: || get(routes::events),
    },
    Operation {
        method: "get",
        path: "/v1/disks",
        summary: "All disks",
        query: &[],
        body: None,
        answers: &[(200, Told::List("Disk"))],
        route: || get(routes::disks),
    },
    Operation {
        method: "get",
        path: "/v1/disks/{name}",
        summary: "A disk",
        query: &[],
        body: None,
        answers: &[(200, Told::One("Disk"))],
        route: || get(routes::disk),
    },
    Operation {
        method: "put",
        path: "/v1/disks/{name}",
        summary: "Open a disk; no effect if an identical disk exists",
        query: &["save", "If-None-Match", "Prefer"],
        body: Some("NewDisk"),
        answers: &[(200, Told::One("Disk")), (201, Told::One("Disk")), (202, Told::One("Job"))],
        route: || put(routes::put_disk),
    },
    Operation {
        method: "patch",
        path: "/v1/disks/{name}",
        summary: "Change settings of a disk in use",
        query: &["save", "shrink", "Prefer"],
        body: Some("Settings"),
        answers: &[(200, Told::One("Disk")), (202, Told::One("Job"))],
        route: || patch(routes::patch_disk),
    },
    Operation {
        method: "delete",
        path: "/v1/disks/{name}",
        summary: "Flush and close a disk that has no exports",
        query: &["save", "Prefer"],
        body: None,
        answers: &[(202, Told::One("Job")), (204, Told::Nothing)],
        route: || delete(routes::delete_disk),
    },
    Operation {
        method: "get",
        path: "/v1/disks/{name}/faults",
        summary: "The faults that are injected into a disk",
        query: &[],
        body: None,
        answers: &[(200, Told::List("Fault"))],
        route: || get(fault_routes::faults),
    },
    Operation {
        method: "post",
        path: "/v1/disks/{name}/faults",
        summary: "Inject faults into a disk",
        query: &[],
        body: Some("NewFault"),
        answers: &[(201, Told::One("Fault"))],
        route: || post(fault_routes::post_fault),
    },
    Operation {
        method: "delete",
        path: "/v1/disks/{name}/faults",
        summary: "Clear all faults of a disk; what they stall goes on",
        query: &[],
        body: None,
        answers: &[(204, Told::Nothing)],
        route: || delete(fault_routes::delete_faults),
    },
    Operation {
        method: "delete",
        path: "/v1/disks/{name}/faults/{id}",
        summary: "Clear a fault of a disk; what it stalls goes on",
        query: &[],
        body: None,
        answers: &[(204, Told::Nothing)],
        route: || delete(fault_routes::delete_fault),
    },
    Operation {
        method: "post",
        path: "/v1/disks/{name}/faults/release",
        summary: "Clear the stalls of a disk, or one of them; what they stall goes on",
        query: &["id"],
        body: None,
        answers: &[(200, Told::One("Released"))],
        route: || post(fault_routes::release),
    },
    Operation {
        method: "get",
        path: "/v1/exports",
        summary: "All exports",
        query: &[],
        body: None,
        answers: &[(200, Told::List("Export"))],
        route: || get(routes::exports),
    },
    Operation {
        method: "get",
        path: "/v1/exports/{kind}/{name}",
        summary: "An export",
        query: &[],
        body: None,
        answers: &[(200, Told::One("Export"))],
        route: || get(routes::export),
    },
    Operation {
        method: "put",
        path: "/v1/exports/{kind}/{name}",
        summary: "Serve a disk; no effect if an identical export exists",
        query: &["save", "Prefer"],
        body: Some("NewExport"),
        answers: &[(200, Told::One("Export")), (201, Told::One("Export")), (202, Told::One("Job"))],
        route: || put(routes::put_export),
    },
    Operation {
        method: "delete",
        path: "/v1/exports/{kind}/{name}",
        summary: "End an export, after answering the requests of its clients; 200 if the disk did not end all of them in \
                  time: how many are left, also when asked again",
        query: &["save", "Prefer"],
        body: None,
        answers: &[
            (200, Told::One("RemovedExport")),
            (202, Told::One("Job")),
            (204, Told::Nothing),
        ],
        route: || delete(routes::delete_export),
    },
    Operation {
        method: "get",
        path: "/v1/jobs",
        summary: "Jobs: running ones, and recent ones that were not waited for",
        query: &[],
        body: None,
        answers: &[(200, Told::List("Job"))],
        route: || get(job_routes::jobs),
    },
    Operation {
        method: "post",
        path: "/v1/jobs",
        summary: "Start a check of a disk, or a copy of one disk to another",
        query: &[],
        body: Some("NewJob"),
        answers: &[(202, Told::One("Job"))],
        route: || post(job_routes::post_job),
    },
    Operation {
        method: "get",
        path: "/v1/jobs/{id}",
        summary: "A job",
        query: &[],
        body: None,
        answers: &[(200, Told::One("Job"))],
        route: || get(job_routes::job),
    },
    Operation {
        method: "delete",
        path: "/v1/jobs/{id}",
        summary: "Cancel a job, or remove one that has ended",
        query: &[],
        body: None,
        answers: &[(202, Told::One("Job")), (204, Told::Nothing)],
        route: || delete(job_routes::delete_job),
    },
    Operation {
        method: "delete",
        path: "/v1/devices/{name}",
        summary: "Detach a device, and end its daemon",
        query: &["mark"],
        body: None,
        answers: &[(204, Told::Nothing)],
        route: || delete(routes::delete_device),
    },
];

/// What of the parameters of operations are headers.
const HEADERS: &[&str] = &["If-None-Match", "Last-Event-ID", "Prefer"];

/// The document.
#[must_use]
pub fn document() -> Value {
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = operation.described();
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Blockyard",
            "version": "1",
            "description": "What a daemon has, and changes in it, on its control socket: \
                            curl --unix-socket /run/blockyard/PID.sock http://blockyard/v1/disks",
        },
        "servers": [{ "url": "http://blockyard" }],
        "paths": paths,
        "components": { "schemas": schemas() },
    })
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn in_json(schema: &Value) -> Value {
    json!({ "application/json": { "schema": schema } })
}

impl Operation {
    /// The parameters that its query may have.
    pub(super) fn parameters(&self) -> Vec<&'static str> {
        self.query.iter().copied().filter(|name| !HEADERS.contains(name)).collect()
    }

    /// Whether it is sent anything.
    pub(super) fn has_body(&self) -> bool {
        self.body.is_some()
    }

    /// The statuses of what is refused, with what they mean here.
    fn refusals(&self) -> Vec<(u16, &'static str)> {
        let (is_change, has_path) = (self.method != "get", self.path.contains('{'));
        let is_only_new = self.query.contains(&"If-None-Match");
        let listens = self.answers.iter().any(|(_, told)| matches!(told, Told::Events));
        let all = [
            (400, "A parameter, a field or a value is not valid.", true),
            (403, "The daemon's user may not do that.", is_change),
            (404, "There is no such thing.", has_path || self.has_body()),
            (408, "The body did not arrive in time.", self.has_body()),
            (409, "Something is in use, or already exists and differs.", is_change),
            (412, "A disk of that name already exists.", is_only_new),
            (413, "The body is too long.", self.has_body()),
            (500, "It failed.", is_change),
            (501, "The kernel or this build lacks what is needed.", is_change),
            (503, "Too many jobs or clients.", is_change || listens),
        ];
        all.into_iter()
            .filter_map(|(status, what, can_be)| can_be.then_some((status, what)))
            .collect()
    }

    /// Whether anybody may ask for it who reaches an address for metrics.
    pub(super) fn is_open(&self) -> bool {
        !self.path.starts_with("/v1/")
    }

    fn headers_of_job(&self) -> Value {
        let mut headers = json!({ "Location": {
            "description": "path of the job", "schema": { "type": "string" },
        } });
        if self.query.contains(&"Prefer") {
            headers["Preference-Applied"] = json!({ "schema": { "const": "respond-async" } });
        }
        headers
    }

    fn described(&self) -> Value {
        let names =
            self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let kinds: Vec<_> = exports::KINDS.iter().map(|kind| kind.name).collect();
        let in_path = names.map(|name| {
            let schema = match name {
                "kind" => json!({ "enum": kinds }),
                "id" => json!({ "type": "integer", "minimum": 0 }),
                _ => json!({ "type": "string" }),
            };
            json!({ "name": name, "in": "path", "required": true, "schema": schema })
        });
        let in_query = self.query.iter().map(|name| match *name {
            "mark" => json!({ "name": name, "in": "query", "required": true, "schema": mark_schema(),
                              "description": "distinguishes the device from a later one of the same name" }),
            "Last-Event-ID" => json!({ "name": name, "in": "header", "schema": { "type": "string" },
                                       "description": "the id of an event, to resume after" }),
            "shrink" => json!({ "name": name, "in": "query", "schema": { "type": "boolean" },
                                "description": "allow shrinking" }),
            "If-None-Match" => json!({ "name": name, "in": "header", "schema": { "const": "*" },
                                       "description": "`*`: only if the name is unused; else 412" }),
            "id" => json!({ "name": name, "in": "query", "schema": { "type": "integer", "minimum": 0 },
                            "description": "only this one" }),
            "clients" => json!({ "name": name, "in": "query", "schema": { "type": "boolean" },
                                 "description": "include a series per NBD client" }),
            "Prefer" => json!({ "name": name, "in": "header", "schema": { "const": "respond-async" },
                                "description": "do not wait: 202 with the job" }),
            _ => json!({ "name": name, "in": "query", "schema": { "type": "boolean" },
                         "description": "save the change to the yard.toml of the daemon" }),
        });
        let mut answers = Map::new();
        for (status, told) in self.answers {
            let content = match told {
                Told::Nothing => None,
                Told::Text => Some(json!({ "text/plain": { "schema": { "type": "string" } } })),
                Told::Metrics => {
                    Some(json!({ metrics::MEDIA_TYPE: { "schema": { "type": "string" } } }))
                }
                Told::Events => {
                    Some(json!({ "text/event-stream": { "schema": reference("Event") } }))
                }
                Told::Any => Some(in_json(&json!({ "type": "object" }))),
                Told::One(schema) => Some(in_json(&reference(schema))),
                Told::List(schema) => {
                    Some(in_json(&json!({ "type": "array", "items": reference(schema) })))
                }
            };
            let what = match status {
                201 => "Created.",
                202 => "Accepted: the job that does it.",
                204 => "Done; the answer is empty.",
                503 => "The daemon is shutting down.",
                _ => "OK.",
            };
            let mut answer = json!({ "description": what });
            if let Some(content) = content {
                answer["content"] = content;
            }
            if *status == 202 {
                answer["headers"] = self.headers_of_job();
            }
            answers.insert(status.to_string(), answer);
        }
        let refused =
            |what| json!({ "description": what, "content": in_json(&reference("Problem")) });
        for (status, what) in self.refusals() {
            answers.entry(status.to_string()).or_insert_with(|| refused(what));
        }
        answers.insert("default".into(), refused("Refused."));
        let mut operation = json!({
            "summary": self.summary,
            "parameters": in_path.chain(in_query).collect::<Vec<_>>(),
            "responses": answers,
        });
        if let Some(body) = self.body {
            let content = in_json(&reference(body));
            operation["requestBody"] = json!({ "required": true, "content": content });
        }
        operation
    }
}

/// An object with these properties, all of them there, and no others.
fn object(properties: &[(&str, Value)]) -> Value {
    let names: Vec<_> = properties.iter().map(|(name, _)| *name).collect();
    let properties: Map<_, _> =
        properties.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    json!({
        "type": "object", "properties": properties, "required": names, "additionalProperties": false,
    })
}

fn mark_schema() -> Value {
    json!({ "type": "string", "pattern": "^[0-9a-f]{16}$", "examples": ["427952440badcafe"] })
}

fn list(schema: &Value) -> Value {
    json!({ "type": "array", "items": schema })
}

fn schemas() -> Value {
    let (text, count, flag) = (
        json!({ "type": "string" }),
        json!({ "type": "integer", "minimum": 0 }),
        json!({ "type": "boolean" }),
    );
    let number = json!({ "type": "number" });
    let (some_text, some_count) =
        (json!({ "type": ["string", "null"] }), json!({ "type": ["integer", "null"] }));
    let latency = json!({ "anyOf": [reference("Latency"), { "type": "null" }] });
    let event = |name: &str, more: &[(&str, Value)]| {
        let named = ("event", json!({ "const": name }));
        object(&[&[named], more].concat())
    };
    let (disk, job) = (("disk", text.clone()), ("job", count.clone()));
    let kinds = json!({ "enum": ["usage", "failed", "unavailable", "busy", "not_permitted"] });
    json!({
        "Daemon": object(&[
            ("pid", count.clone()), ("version", text.clone()), ("uptime_seconds", number.clone()),
            ("log", some_text.clone()), ("threads", count.clone()), ("disks", list(&reference("Disk"))),
            ("nbd", reference("Nbd")), ("devices", list(&reference("Device"))),
            ("exports", list(&reference("Export"))),
        ]),
        "Disk": object(&[
            ("name", text.clone()), ("uri", text.clone()), ("driver", text.clone()), ("size", count.clone()),
            ("block_size", count.clone()), ("read_only", flag.clone()), ("exports", list(&text)),
            ("partitions", list(&text)),
            ("limits", json!({ "type": "object", "additionalProperties": { "type": "string" } })),
            ("faults", list(&reference("Fault"))),
            ("in_flight", count.clone()), ("ops", count.clone()), ("iops", number.clone()),
            ("bytes_read", count.clone()), ("bytes_written", count.clone()),
            ("read_latency_ns", latency.clone()), ("write_latency_ns", latency),
        ]),
        "Fault": object(&[
            ("id", count.clone()), ("kind", text.clone()), ("rule", text.clone()), ("matched", count.clone()),
            ("injected", count.clone()), ("held", count.clone()), ("bytes", count.clone()),
            ("seconds_left", json!({ "type": ["number", "null"] })),
        ]),
        "NewFault": new_fault(),
        "Released": object(&[("released", count.clone())]),
        "Latency": object(&[("p50", count.clone()), ("p99", count.clone())]),
        "Export": object(&[
            ("kind", text.clone()), ("name", text.clone()), disk.clone(), ("read_only", flag.clone()),
            ("address", some_text.clone()), ("clients", count.clone()), ("queues", some_count),
            ("requests", count.clone()),
        ]),
        "RemovedExport": object(&[("in_flight", count.clone())]),
        "Nbd": object(&[("listen", list(&text)), ("clients", list(&reference("Client")))]),
        "Client": object(&[
            ("id", count.clone()), ("peer", text.clone()), ("export", some_text.clone()), ("style", some_text.clone()),
            ("tls", flag.clone()), ("in_flight", count.clone()), ("requests", count.clone()),
            ("bytes_read", count.clone()), ("bytes_written", count.clone()),
        ]),
        "Device": object(&[
            ("path", text.clone()), ("via", text.clone()), ("uri", text.clone()), ("recoverable", flag.clone()),
            ("mark", mark_schema()),
        ]),
        "Event": { "oneOf": [
            event("disk_added", std::slice::from_ref(&disk)),
            event("disk_changed", &[disk.clone(), ("size", count.clone()), ("read_only", flag)]),
            event("faults_changed", &[disk.clone(), ("faults", count.clone())]),
            event("disk_removed", std::slice::from_ref(&disk)),
            event("export_added", &[("kind", text.clone()), ("name", text.clone()), disk.clone()]),
            event("export_removed", &[("kind", text.clone()), ("name", text.clone())]),
            event("job_begun", std::slice::from_ref(&job)),
            event("job_ended", std::slice::from_ref(&job)),
            event("missed", &[]),
        ] },
        "Job": job_schema(),
        "Problem": object(&[
            ("kind", kinds), ("what", text.clone()), ("where", text.clone()), ("remedy", some_text), ("causes", list(&text)),
        ]),
        "NewDisk": new_disk(),
        "NewJob": { "anyOf": [
            object(&[("kind", json!({ "const": "check" })), ("disk", text.clone())]),
            new_copy(),
        ] },
        "Settings": settings(),
        "NewExport": new_export(),
    })
}

/// Options as properties, none of them needed.
fn options(options: impl Iterator<Item = &'static OptionSpec>) -> Value {
    let property = |option: &OptionSpec| {
        let mut schema = match option.value {
            ValueKind::Flag => json!({ "type": "boolean" }),
            ValueKind::Size => json!({ "type": ["integer", "string"], "examples": ["1G"] }),
            ValueKind::BlockSize => json!({ "enum": [512, 4096] }),
            ValueKind::Number { least, most } | ValueKind::PowerOfTwo { least, most } => {
                json!({ "type": "integer", "minimum": least, "maximum": most })
            }
            ValueKind::Time { .. } => json!({ "type": "string", "examples": ["30s"] }),
            ValueKind::Choice(words) => json!({ "enum": words }),
            ValueKind::Rate { .. } => {
                json!({ "type": ["integer", "string"], "examples": ["1000", "1000:5000/10s", "none"] })
            }
            ValueKind::Mode => json!({ "type": "string", "pattern": "^[0-7]{1,3}$" }),
            ValueKind::Name | ValueKind::Uri | ValueKind::Text | ValueKind::Path => {
                json!({ "type": "string" })
            }
        };
        schema["description"] = format!("{} (default: {})", option.help, option.default).into();
        (option.name.to_owned(), schema)
    };
    let properties: Map<_, _> = options.map(property).collect();
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

fn settings() -> Value {
    let mut schema = options(disks::settings());
    schema["minProperties"] = 1.into();
    schema
}

const FOLDER: &str = "base of relative paths [default: working directory of the daemon]";

fn new_disk() -> Value {
    let of_kinds = disks::KINDS.iter().flat_map(|kind| kind.all_options());
    let mut schema = options(of_kinds.filter(|option| option.name != "name"));
    let usages: Vec<_> = disks::KINDS.iter().map(|kind| kind.usage).collect();
    schema["properties"]["uri"] = json!({
        "type": "string", "description": format!("the disk: {}", suggest::list(&usages)),
        "examples": ["ram:1G", "file:/srv/disk.img"],
    });
    schema["properties"]["folder"] = json!({ "type": "string", "description": FOLDER });
    schema["required"] = json!(["uri"]);
    schema
}

fn job_schema() -> Value {
    let (text, count) = (json!({ "type": "string" }), json!({ "type": "integer", "minimum": 0 }));
    let some_count = json!({ "type": ["integer", "null"] });
    let number = json!({ "type": "number" });
    let kinds =
        ["add_disk", "set_disk", "remove_disk", "add_export", "remove_export", "check", "copy"];
    let states = ["running", "done", "failed", "cancelled"];
    object(&[
        ("id", count),
        ("kind", json!({ "enum": kinds })),
        ("subject", text),
        ("source", json!({ "type": ["string", "null"] })),
        ("state", json!({ "enum": states })),
        ("cancellable", json!({ "type": "boolean" })),
        ("begun", number.clone()),
        ("seconds", number),
        ("done", some_count.clone()),
        ("total", some_count),
        ("result", json!({ "type": ["object", "null"] })),
        ("problem", json!({ "anyOf": [reference("Problem"), { "type": "null" }] })),
    ])
}

fn new_fault() -> Value {
    let (text, count) = (json!({ "type": "string" }), json!({ "type": "integer", "minimum": 0 }));
    let kinds: Vec<_> = fault::KINDS.iter().map(|(kind, _)| *kind).collect();
    let of_kind = [
        (
            "errno",
            json!({ "enum": fault::errors().collect::<Vec<_>>() }),
            "of kind error (default: EIO)",
        ),
        (
            "delay",
            json!({ "type": "string", "examples": ["5ms", "5ms..20ms"] }),
            "of kind delay: a time, or its bounds",
        ),
        (
            "size",
            json!({ "type": ["integer", "string"], "examples": ["256M"] }),
            "of kind volatile: the most that is held",
        ),
        ("silent", json!({ "type": "boolean" }), "of kind torn: the write is acknowledged"),
    ];
    let mut schema = object(&[("kind", json!({ "enum": kinds }))]);
    let options = fault::OPTIONS.iter().map(|(name, _, what)| {
        let schema = match *name {
            "p" => json!({ "type": ["number", "string"] }),
            "seed" | "after" => count.clone(),
            "count" => json!({ "type": "integer", "minimum": 1 }),
            _ => text.clone(),
        };
        (*name, schema, *what)
    });
    for (name, mut property, what) in of_kind.into_iter().chain(options) {
        property["description"] = what.into();
        schema["properties"][name] = property;
    }
    schema
}

fn new_copy() -> Value {
    let text = json!({ "type": "string" });
    let mut schema =
        object(&[("kind", json!({ "const": "copy" })), ("source", text.clone()), ("target", text)]);
    schema["properties"]["detect_zeroes"] = json!({
        "type": "boolean", "description": "detect zeroes in the data and write them as holes",
    });
    schema
}

fn new_export() -> Value {
    let of_kind = |kind: &&exports::ExportKind| {
        let mut schema = options(kind.said_options());
        schema["title"] = kind.name.into();
        schema["description"] = kind.summary.into();
        schema["properties"]["folder"] = json!({ "type": "string", "description": FOLDER });
        if !kind.whole_yard {
            schema["properties"]["disk"] =
                json!({ "type": "string", "description": "the name of the disk" });
            schema["required"] = json!(["disk"]);
        }
        schema
    };
    json!({ "anyOf": exports::KINDS.iter().map(of_kind).collect::<Vec<_>>() })
}
