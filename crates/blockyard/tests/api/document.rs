//! The document that describes the API, held against the daemon and its answers.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::common::{Daemon, Guard, system};
use crate::{ask, curl};

/// The document that users find.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api-v1.json");

/// Holds a value against a schema of the document, as far as that uses JSON Schema.
pub(crate) fn check(
    document: &Value,
    schema: &Value,
    value: &Value,
    place: &str,
) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let schema = document.pointer(reference.trim_start_matches('#')).unwrap();
        return check(document, schema, value, place);
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(schemas) = schema[key].as_array() {
            let fits = |schema: &&Value| check(document, schema, value, place).is_ok();
            let fit = schemas.iter().filter(fits).count();
            let right = if key == "oneOf" { fit == 1 } else { fit > 0 };
            return right.then_some(()).ok_or(format!("{place}: {fit} of {key} fit {value}"));
        }
    }
    let wrong = |what: &str| Err(format!("{place}: {value} is no {what} of {schema}"));
    if let Some(words) = schema["enum"].as_array() {
        return if words.contains(value) { Ok(()) } else { wrong("word") };
    }
    if let Some(only) = schema.get("const") {
        return if only == value { Ok(()) } else { wrong("constant") };
    }
    let is = |kind: &str| match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other}"),
    };
    let fits = match &schema["type"] {
        Value::String(kind) => is(kind),
        Value::Array(kinds) => kinds.iter().any(|kind| is(kind.as_str().unwrap())),
        other => panic!("{place}: {other}"),
    };
    if !fits {
        return wrong("type");
    }
    let least = schema["minimum"].as_f64().unwrap_or(f64::NEG_INFINITY);
    let most = schema["maximum"].as_f64().unwrap_or(f64::INFINITY);
    if value.as_f64().is_some_and(|number| !(least..=most).contains(&number)) {
        return wrong("number");
    }
    if let (Some(pattern), Some(text)) = (schema["pattern"].as_str(), value.as_str()) {
        let all = |most: usize, is: fn(&char) -> bool| {
            text.len() <= most && !text.is_empty() && text.chars().all(|digit| is(&digit))
        };
        let fits = match pattern {
            "^[0-7]{1,3}$" => all(3, |digit| digit.is_digit(8)),
            "^[0-9a-f]{16}$" => text.len() == 16 && all(16, |digit| digit.is_ascii_hexdigit()),
            other => panic!("what is {other}?"),
        };
        if !fits {
            return wrong("text");
        }
    }
    for (at, item) in value.as_array().into_iter().flatten().enumerate() {
        check(document, &schema["items"], item, &format!("{place}[{at}]"))?;
    }
    for (name, item) in value.as_object().into_iter().flatten() {
        let others = &schema["additionalProperties"];
        match schema["properties"].get(name).unwrap_or(others) {
            Value::Bool(false) => return wrong(name),
            Value::Bool(true) | Value::Null => {}
            schema => check(document, schema, item, &format!("{place}.{name}"))?,
        }
    }
    let needed = schema["required"].as_array().into_iter().flatten();
    for name in needed.map(|name| name.as_str().unwrap()) {
        if value.get(name).is_none() {
            return wrong(name);
        }
    }
    Ok(())
}

/// Asks, and holds what was asked and what was answered against the document.
fn described(
    daemon: &Daemon,
    document: &Value,
    (method, path, template): (&str, &str, &str),
    body: Option<&Value>,
) -> (u16, Value) {
    let (status, text) = curl(daemon, method, path, body);
    let operation = &document["paths"][template][method.to_lowercase()];
    assert!(operation.is_object(), "{method} {template} is not described");
    let answers = &operation["responses"];
    let answer = &answers[status.to_string()];
    assert!(answer.is_object(), "{method} {path}: {status} is not described: {text}");
    let place = format!("{method} {path}");
    if status < 300
        && let Some(body) = body
    {
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        check(document, schema, body, &place).unwrap();
    }
    let Some(content) = answer["content"].as_object() else {
        assert_eq!(text, "", "{place}");
        return (status, Value::Null);
    };
    if !content.contains_key("application/json") {
        return (status, text.into());
    }
    let value: Value =
        serde_json::from_str(&text).unwrap_or_else(|err| panic!("{place}: {err}: {text}"));
    check(document, &content["application/json"]["schema"], &value, &place).unwrap();
    (status, value)
}

#[test]
fn the_document_describes_what_is_asked_and_answered() {
    let daemon = Daemon::serve(&["ram:8M?name=a"]);
    let (status, document) = ask(&daemon, "GET", "/v1/openapi.json", None);
    assert_eq!((status, &document["openapi"]), (200, &json!("3.1.0")));
    let pretty = serde_json::to_string_pretty(&document).unwrap() + "\n";
    if std::env::var_os("BLOCKYARD_WRITE_DOCS").is_some() {
        std::fs::write(DOCUMENT, &pretty).unwrap();
    }
    let written = std::fs::read_to_string(DOCUMENT).unwrap();
    assert!(
        written == pretty,
        "docs/api-v1.json is not what is served; run this with BLOCKYARD_WRITE_DOCS=1"
    );
    let _client = Guard(
        system("nbdsh")
            .args(["-u", &daemon.uri("a"), "-c", "h.pread(512, 0)\nimport time\ntime.sleep(60)"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap(),
    );
    while daemon.report()["nbd"]["clients"][0]["requests"] != 1 {
        blockyard_conformance::pause();
    }
    let disk = "/v1/disks/{name}";
    let export = "/v1/exports/{kind}/{name}";
    let (faults, release) = ("/v1/disks/{name}/faults", "/v1/disks/{name}/faults/release");
    let small = json!({ "uri": "ram:1M", "depth": 7, "read_only": false });
    let nowhere = json!({ "disk": "a", "socket": "/not/there/s" });
    let seen = [
        (("GET", "/v1/disks?foo=1", "/v1/disks"), None, 400),
        (("GET", "/livez?foo", "/livez"), None, 400),
        (("GET", "/metrics?clients=1&clients=1", "/metrics"), None, 400),
        (("GET", "/v1/disks", "/v1/disks"), Some(json!({})), 400),
        (("GET", "/v1/daemon", "/v1/daemon"), None, 200),
        (("GET", "/v1/diskstats", "/v1/diskstats"), None, 200),
        (("GET", "/metrics", "/metrics"), None, 200),
        (("GET", "/livez", "/livez"), None, 200),
        (("GET", "/readyz", "/readyz"), None, 200),
        (("GET", "/v1/partitions", "/v1/partitions"), None, 200),
        (("GET", "/v1/disks", "/v1/disks"), None, 200),
        (("GET", "/v1/disks/a", disk), None, 200),
        (("GET", "/v1/disks/b", disk), None, 404),
        (("PUT", "/v1/disks/b%20%2F", disk), Some(small.clone()), 400),
        (("PUT", "/v1/disks/b", disk), Some(small.clone()), 201),
        (("PUT", "/v1/disks/b", disk), Some(small), 200),
        (("PUT", "/v1/disks/b", disk), Some(json!({ "uri": "ram:2M" })), 409),
        (("PUT", "/v1/disks/c", disk), Some(json!({ "uri": "ram:2M", "dephth": 1 })), 400),
        (("PUT", "/v1/disks/c", disk), Some(json!({ "depth": 1 })), 400),
        (("PUT", "/v1/disks/c", disk), Some(json!({ "uri": "/not/there" })), 500),
        (("PUT", "/v1/disks/c", disk), Some(json!([])), 400),
        (("PATCH", "/v1/disks/b", disk), Some(json!({ "size": "2M", "read_only": true })), 200),
        (("PATCH", "/v1/disks/b", disk), Some(json!({ "size": 512 })), 400),
        (("PATCH", "/v1/disks/b?shrink=1", disk), Some(json!({ "size": 1 << 20 })), 200),
        (("PATCH", "/v1/disks/b", disk), Some(json!({ "depth": 1 })), 400),
        (("PATCH", "/v1/disks/b", disk), Some(json!({ "size": "x" })), 400),
        (("PATCH", "/v1/disks/b", disk), Some(json!({ "ro": true, "read_only": true })), 400),
        (("PUT", "/v1/exports/vhost-user-blk/z", export), Some(nowhere), 400),
        (("PATCH", "/v1/disks/c", disk), Some(json!({ "read_only": true })), 404),
        (("PATCH", "/v1/disks/b?save=1", disk), Some(json!({ "read_only": true })), 400),
        (
            ("PUT", "/v1/exports/nbd/x%2Fy", export),
            Some(json!({ "disk": "b", "description": "B" })),
            201,
        ),
        (
            ("PUT", "/v1/exports/nbd/x%2Fy", export),
            Some(json!({ "disk": "b", "description": "B" })),
            200,
        ),
        (("GET", "/v1/disks/b/faults", faults), None, 200),
        (("POST", "/v1/disks/b/faults", faults), Some(json!({ "kind": "error", "p": 0.5 })), 201),
        (("POST", "/v1/disks/b/faults", faults), Some(json!({ "kind": "error", "p": 2 })), 400),
        (("POST", "/v1/disks/b/faults", faults), Some(json!({ "kind": "stal" })), 400),
        (("POST", "/v1/disks/b/faults", faults), Some(json!({ "kind": "stall", "hwo": 1 })), 400),
        (("POST", "/v1/disks/b/faults", faults), Some(json!({ "kind": "volatile" })), 201),
        (("POST", "/v1/disks/b/faults", faults), Some(json!({ "kind": "volatile" })), 409),
        (("POST", "/v1/disks/c/faults", faults), Some(json!({ "kind": "stall" })), 404),
        (("GET", "/v1/disks/b/faults", faults), None, 200),
        (("GET", "/v1/disks/b", disk), None, 200),
        (("POST", "/v1/disks/b/faults/release", release), None, 200),
        (("POST", "/v1/disks/b/faults/release?id=1", release), None, 404),
        (("DELETE", "/v1/disks/b/faults/1", "/v1/disks/{name}/faults/{id}"), None, 204),
        (("DELETE", "/v1/disks/b/faults/x", "/v1/disks/{name}/faults/{id}"), None, 404),
        (("DELETE", "/v1/disks/b/faults", faults), None, 204),
        (("DELETE", "/v1/disks/c/faults", faults), None, 404),
        (("PUT", "/v1/exports/nbd/x%2Fy", export), Some(json!({ "disk": "a" })), 409),
        (("PUT", "/v1/exports/nbd/z", export), Some(json!({ "disk": "c" })), 404),
        (("PUT", "/v1/exports/nbd/z", export), Some(json!({ "disk": "b", "socket": "s" })), 400),
        (("PUT", "/v1/exports/vhost-user-blk/z", export), Some(json!({ "disk": "b" })), 400),
        (("PUT", "/v1/exports/floppy/z", export), Some(json!({ "disk": "b" })), 404),
        (("GET", "/v1/exports", "/v1/exports"), None, 200),
        (("GET", "/v1/exports/nbd/x%2Fy", export), None, 200),
        (("DELETE", "/v1/disks/b", disk), None, 409),
        (("DELETE", "/v1/disks/b", disk), Some(json!({ "force": true })), 400),
        (
            ("POST", "/v1/jobs?save=1", "/v1/jobs"),
            Some(json!({ "kind": "check", "disk": "a" })),
            400,
        ),
        (("POST", "/v1/jobs", "/v1/jobs"), Some(json!({ "kind": "check", "disk": "a" })), 202),
        (
            ("POST", "/v1/jobs", "/v1/jobs"),
            Some(json!({ "kind": "copy", "source": "b", "target": "a", "detect_zeroes": true })),
            202,
        ),
        (("POST", "/v1/jobs", "/v1/jobs"), Some(json!({ "kind": "chekc", "disk": "a" })), 400),
        (("POST", "/v1/jobs", "/v1/jobs"), Some(json!({ "kind": "check", "dsik": "a" })), 400),
        (
            ("POST", "/v1/jobs", "/v1/jobs"),
            Some(json!({ "kind": "check", "disk": "a", "fast": true })),
            400,
        ),
        (("POST", "/v1/jobs", "/v1/jobs"), Some(json!({ "kind": "check", "disk": "x" })), 404),
        (
            ("POST", "/v1/jobs", "/v1/jobs"),
            Some(json!({ "kind": "copy", "source": "a", "target": "a" })),
            400,
        ),
        (("GET", "/v1/jobs", "/v1/jobs"), None, 200),
        (("GET", "/v1/jobs/LAST", "/v1/jobs/{id}"), None, 200),
        (("GET", "/v1/jobs/x", "/v1/jobs/{id}"), None, 404),
        (("DELETE", "/v1/jobs/77", "/v1/jobs/{id}"), None, 404),
        (("DELETE", "/v1/exports/nbd/x%2Fy?svae=1", export), None, 400),
        (("DELETE", "/v1/exports/nbd/x%2Fy", export), None, 204),
        (("DELETE", "/v1/exports/nbd/x%2Fy", export), None, 404),
        (("DELETE", "/v1/disks/b", disk), None, 204),
        (("DELETE", "/v1/disks/b", disk), None, 404),
        (("DELETE", "/v1/devices/nbd0?mark=0123456789abcdef", "/v1/devices/{name}"), None, 404),
    ];
    // Events have a test of their own.
    let mut used: Vec<(String, String)> =
        vec![("/v1/openapi.json".into(), "get".into()), ("/v1/events".into(), "get".into())];
    let mut last = String::new();
    for (operation, body, status) in seen {
        let path = operation.1.replace("LAST", &last);
        let asked = (operation.0, path.as_str(), operation.2);
        let (got, answer) = described(&daemon, &document, asked, body.as_ref());
        if status == 202 {
            last = answer["id"].to_string();
        }
        assert_eq!(got, status, "{operation:?} {answer}");
        if status >= 400 {
            let what = answer["what"].as_str().unwrap();
            assert!(!what.is_empty() && !what.contains("; "), "{answer}");
        }
        if status == 400 && WITH_REMEDY.iter().any(|part| answer.to_string().contains(part)) {
            assert!(answer["remedy"].is_string(), "{answer}");
        }
        used.push((operation.2.into(), operation.0.to_lowercase()));
    }
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            assert!(used.contains(&(path.clone(), method.clone())), "{method} {path} is not tried");
        }
    }
    let problem = &document["components"]["schemas"]["Problem"];
    for (method, path, status) in [("GET", "/v1/nothing", 404), ("POST", "/v1/disks/a", 405)] {
        let (got, answer) = ask(&daemon, method, path, None);
        assert_eq!(got, status);
        check(&document, problem, &answer, path).unwrap();
        assert_eq!(answer["where"], path);
    }
}

/// What is answered with a remedy, by what is in the answer.
const WITH_REMEDY: &[&str] = &[
    "dephth",
    "stal\\",
    "hwo",
    "chekc",
    "foo",
    "svae",
    "cannot shrink",
    "invalid size",
    "given twice",
    "/not/there",
    "no socket",
    "block size",
];

/// A value that fits a schema, as somebody makes it who knows nothing else.
fn example(document: &Value, schema: &Value) -> Value {
    if let Some(reference) = schema["$ref"].as_str() {
        return example(document, document.pointer(reference.trim_start_matches('#')).unwrap());
    }
    let first = |key: &str| schema[key].as_array().map(|all| all[0].clone());
    if let Some(any) = first("anyOf").or_else(|| first("oneOf")) {
        return example(document, &any);
    }
    let said = schema.get("const").cloned();
    if let Some(value) = said.or_else(|| first("enum")).or_else(|| first("examples")) {
        return value;
    }
    match schema["type"].as_str().unwrap() {
        "string" => "a".into(),
        "integer" => schema["minimum"].as_u64().unwrap_or(0).into(),
        "boolean" => false.into(),
        "object" => {
            let needed = schema["required"].as_array().into_iter().flatten();
            let needed = needed.map(|name| name.as_str().unwrap().to_owned());
            let properties = schema["properties"].as_object().unwrap();
            let least = usize::try_from(schema["minProperties"].as_u64().unwrap_or(0)).unwrap();
            let more = properties.keys().take(least).cloned();
            let member = |name: String| {
                let value = example(document, &properties[&name]);
                (name, value)
            };
            Value::Object(needed.chain(more).map(member).collect())
        }
        other => panic!("{other}"),
    }
}

/// Whoever has the document, and nothing else, is understood: curl can do all that the command does.
#[test]
fn a_request_that_is_made_from_the_document_is_understood() {
    let daemon = Daemon::serve(&["ram:8M?name=a"]);
    let document = ask(&daemon, "GET", "/v1/openapi.json", None).1;
    let mut done = 0;
    for (template, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            if operation["responses"]["200"]["content"].get("text/event-stream").is_some() {
                // It has no end.
                continue;
            }
            let (mut path, mut query) = (template.clone(), Vec::new());
            for parameter in operation["parameters"].as_array().unwrap() {
                let value = example(&document, &parameter["schema"]);
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let name = parameter["name"].as_str().unwrap();
                match parameter["in"].as_str().unwrap() {
                    "path" => path = path.replace(&format!("{{{name}}}"), &value),
                    "query" => query.push(format!("{name}={value}")),
                    // Those change only how it is asked for.
                    other => assert_eq!(other, "header"),
                }
            }
            let path = if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) };
            let body = operation
                .get("requestBody")
                .map(|body| example(&document, &body["content"]["application/json"]["schema"]));
            let method = method.to_uppercase();
            let asked = (method.as_str(), path.as_str(), template.as_str());
            let (status, answer) = described(&daemon, &document, asked, body.as_ref());
            assert!(status != 400 && status < 500, "{method} {path} {body:?}: {status} {answer}");
            done += u32::from(status < 300);
        }
    }
    assert!(done > 10, "{done} of them were done");
}
