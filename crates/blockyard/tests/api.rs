//! The control API, by curl and by the commands that use it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};

use common::{Daemon, Guard, blockyard, nbdsh, peer, system, unix};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The document that users find.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api-v1.json");

fn socket(daemon: &Daemon) -> PathBuf {
    daemon.path(&format!("run/{}.sock", daemon.pid()))
}

/// The status and the body of an answer.
fn curl(daemon: &Daemon, method: &str, path: &str, body: Option<&Value>) -> (u16, String) {
    let socket = socket(daemon).display().to_string();
    let url = format!("http://blockyard{path}");
    let mut args =
        vec!["-sS", "--unix-socket", &socket, "-X", method, "-w", "\n%{http_code}", &url];
    let text = body.map(Value::to_string);
    if let Some(text) = &text {
        args.extend(["-d", text]);
    }
    let said = peer("curl", &args);
    let (body, status) = said.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

fn ask(daemon: &Daemon, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    let (status, text) = curl(daemon, method, path, body);
    let value = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
    (status, value)
}

/// Holds a value against a schema of the document, as far as that uses JSON Schema.
fn check(document: &Value, schema: &Value, value: &Value, place: &str) -> Result<(), String> {
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
    for (at, item) in value.as_array().into_iter().flatten().enumerate() {
        check(document, &schema["items"], item, &format!("{place}[{at}]"))?;
    }
    let Some(properties) = schema["properties"].as_object() else { return Ok(()) };
    for (name, item) in value.as_object().into_iter().flatten() {
        match properties.get(name) {
            Some(schema) => check(document, schema, item, &format!("{place}.{name}"))?,
            None if schema["additionalProperties"] == false => return wrong(name),
            None => {}
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
    let answer = answers.get(status.to_string()).unwrap_or(&answers["default"]);
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
    let small = json!({ "uri": "ram:1M", "depth": 7, "read_only": false });
    let seen = [
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
        (("PUT", "/v1/exports/nbd/x%2Fy", export), Some(json!({ "disk": "a" })), 409),
        (("PUT", "/v1/exports/nbd/z", export), Some(json!({ "disk": "c" })), 404),
        (("PUT", "/v1/exports/nbd/z", export), Some(json!({ "disk": "b", "socket": "s" })), 400),
        (("PUT", "/v1/exports/vhost-user-blk/z", export), Some(json!({ "disk": "b" })), 400),
        (("PUT", "/v1/exports/floppy/z", export), Some(json!({ "disk": "b" })), 404),
        (("GET", "/v1/exports", "/v1/exports"), None, 200),
        (("GET", "/v1/exports/nbd/x%2Fy", export), None, 200),
        (("DELETE", "/v1/disks/b", disk), None, 409),
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
        (("DELETE", "/v1/devices/nbd0?mark=1", "/v1/devices/{name}"), None, 404),
    ];
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
            assert!(!answer["what"].as_str().unwrap().is_empty(), "{answer}");
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

/// The next event: its id, and what it says.
fn event(lines: &mut BufReader<ChildStdout>) -> (String, Value) {
    let (mut id, mut data) = (String::new(), Value::Null);
    loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).unwrap() > 0, "the stream has ended");
        match line.trim_end().split_once(": ") {
            Some(("id", text)) => id = text.into(),
            Some(("data", text)) => data = serde_json::from_str(text).unwrap(),
            _ if data != Value::Null => return (id, data),
            _ => {}
        }
    }
}

fn watch(daemon: &Daemon, last: Option<&str>) -> (Guard, BufReader<ChildStdout>) {
    let mut command = system("curl");
    command.args(["-sSN", "-i", "--max-time", "60", "--unix-socket"]).arg(socket(daemon));
    if let Some(last) = last {
        command.args(["-H", &format!("Last-Event-ID: {last}")]);
    }
    command.arg("http://blockyard/v1/events").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = Guard(command.spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap());
    // Past the head, events are heard.
    let mut line = String::new();
    while lines.read_line(&mut line).unwrap() > 2 {
        line.clear();
    }
    (child, lines)
}

#[test]
fn events_go_on_where_they_were_left() {
    let daemon = Daemon::serve(&["ram:8M?name=a"]);
    let (curl, mut lines) = watch(&daemon, None);
    daemon.run(&["set", "a", "read_only=1"]).code(0);
    let changed =
        json!({ "event": "disk_changed", "disk": "a", "size": 8 << 20, "read_only": true });
    let (id, data) = event(&mut lines);
    assert_eq!(data, changed);
    drop((curl, lines));
    // Nobody listens meanwhile.
    daemon.run(&["add", "ram:1M", "--name", "b"]).code(0);
    daemon.run(&["remove", "b"]).code(0);
    let (_curl, mut lines) = watch(&daemon, Some(&id));
    let happened: Vec<_> = (0..4).map(|_| event(&mut lines).1["event"].clone()).collect();
    assert_eq!(happened, ["disk_added", "export_added", "export_removed", "disk_removed"]);
    let (_curl, mut lines) = watch(&daemon, Some("1-5"));
    assert_eq!(event(&mut lines).1, json!({ "event": "missed" }));
}

fn fio(uri: &str, dir: &Path, name: &str) -> Command {
    let mut fio = system("timeout");
    fio.args([
        "--kill-after=5",
        "120",
        "fio",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=16",
    ]);
    fio.args([
        "--size=16M",
        "--verify=crc32c",
        "--verify_backlog=64",
        "--verify_fatal=1",
        "--loops=1000",
    ]);
    fio.args(["--verify_state_save=0", "--time_based", "--runtime=100"]);
    fio.arg(format!("--uri={uri}")).arg(format!("--name={name}"));
    fio.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    fio
}

/// Others, who verify what they read, go on all the time and see no error.
#[test]
fn disks_come_and_go_while_others_are_used() {
    let daemon = Daemon::serve(&["ram:16M?name=a", "file:b.img?create=16M&name=b"]);
    let mut loads: Vec<_> = ["a", "b"]
        .map(|name| Guard(fio(&daemon.uri(name), daemon.dir(), name).spawn().unwrap()))
        .into();
    let ops = || {
        let disks = daemon.report()["disks"].as_array().unwrap().clone();
        let of = |name: &str| {
            disks.iter().find(|disk| disk["name"] == name).unwrap()["ops"].as_u64().unwrap()
        };
        [of("a"), of("b")]
    };
    // Both go on past `before`.
    let go_on = |before: [u64; 2], loads: &mut Vec<Guard>| {
        loop {
            for load in loads.iter_mut() {
                assert!(load.0.try_wait().unwrap().is_none(), "a load has ended");
            }
            let now = ops();
            if now[0] > before[0] && now[1] > before[1] {
                return now;
            }
            blockyard_conformance::pause();
        }
    };
    let mut seen = go_on([0, 0], &mut loads);
    for round in 0..6 {
        let uri = if round % 2 == 0 {
            "ram:4M".into()
        } else {
            format!("file:{}?create=4M", daemon.path("c.img").display())
        };
        daemon.run(&["add", &uri, "--name", "c"]).code(0);
        // It is used, and its client is in the middle of it when it goes.
        nbdsh(
            &daemon.uri("c"),
            "h.pwrite(b'x' * 4096, 0)\nassert h.pread(4096, 0) == b'x' * 4096\n",
        );
        let mut client = Guard(
            system("nbdsh")
                .args(["-u", &daemon.uri("c"), "-c", "while True: h.pread(65536, 0)"])
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        while daemon.report()["disks"][2]["ops"].as_u64().unwrap() < 20 {
            blockyard_conformance::pause();
        }
        daemon.run(&["set", "c", "size=8M"]).code(0);
        daemon.run(&["remove", "c"]).code(0);
        assert!(!client.0.wait().unwrap().success(), "its disk is gone");
        seen = go_on(seen, &mut loads);
    }
    assert_eq!(daemon.report()["disks"].as_array().unwrap().len(), 2);
    for mut load in loads {
        let pid = rustix::process::Pid::from_child(&load.0);
        // timeout(1) passes it on; fio verifies what it has, and ends well.
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let output = {
            let mut out = String::new();
            std::io::Read::read_to_string(&mut load.0.stdout.take().unwrap(), &mut out).unwrap();
            out
        };
        load.0.wait().unwrap();
        assert!(output.contains("err= 0") && !output.contains("verify: bad"), "{output}");
    }
    daemon.stop();
}

#[test]
fn what_is_saved_is_there_at_the_next_start() {
    let dir = TempDir::new().unwrap();
    let yard =
        "# Ours.\n[[disk]]\nname = \"a\"\nuri = \"ram:8M\" # small\n\n[nbd]\nlisten = \"unix:s\"\n";
    std::fs::write(dir.path().join("yard.toml"), yard).unwrap();
    let mut command = blockyard(&dir.path().join("run"));
    command.args(["up", "-f", "yard.toml"]);
    let daemon = Daemon::start(command, dir, 1);
    let file = daemon.path("c.img").display().to_string();
    std::fs::File::create(&file).unwrap().set_len(4 << 20).unwrap();
    let add = daemon.run(&["add", &format!("file:{file}"), "--save"]);
    assert_eq!(add.code(0).out, "c\n");
    daemon.run(&["set", "c", "read_only=1", "--save"]).code(0);
    daemon.run(&["add", "ram:1M", "--name", "gone", "--save"]).code(0);
    daemon.run(&["remove", "gone", "--save"]).code(0);
    daemon.run(&["add", "ram:1M", "--name", "not-kept"]).code(0);
    // One that it has not been told of cannot be saved.
    daemon
        .run(&["set", "not-kept", "read_only=1", "--save"])
        .code(1)
        .contains(&["no disk \"not-kept\" in the file"]);
    let text = std::fs::read_to_string(daemon.path("yard.toml")).unwrap();
    let expected = format!(
        "# Ours.\n[[disk]]\nname = \"a\"\nuri = \"ram:8M\" # small\n\n[[disk]]\nname = \"c\"\n\
         uri = \"file:{file}\"\nread_only = true\n\n[nbd]\nlisten = \"unix:s\"\n\n"
    );
    assert!(
        text.starts_with("# Ours.\n[[disk]]\nname = \"a\"\nuri = \"ram:8M\" # small\n"),
        "{text}"
    );
    for part in expected.split("\n\n") {
        assert!(text.contains(part.trim()), "{part:?} is not in\n{text}");
    }
    assert!(!text.contains("gone") && !text.contains("not-kept"), "{text}");
    peer("nbdinfo", &["--is", "read-only", &unix("c", &daemon.path("s"))]);
    let mut check = blockyard(&daemon.path("run"));
    let checked = check.args(["up", "--check"]).current_dir(daemon.dir()).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    // A daemon with no file says so, and changes nothing.
    let other = Daemon::serve(&["ram:1M"]);
    other.run(&["add", "ram:1M", "--save"]).code(64).contains(&["blockyard up -f"]);
    assert_eq!(other.report()["disks"].as_array().unwrap().len(), 1);
}
