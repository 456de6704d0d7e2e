//! What a daemon tells Prometheus, by curl and by Prometheus itself.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Daemon, Guard, peer, run};
use serde_json::Value;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);
const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/monitoring");

/// What `look` finds, as soon as it does.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < LIMIT, "there is no {what}");
        blockyard_conformance::pause();
    }
}

/// A daemon with metrics, and their URL.
fn serve(disks: &[&str]) -> (Daemon, String) {
    let daemon = Daemon::serve(&[disks, &["--metrics", "127.0.0.1:0"]].concat());
    let url = wait_for("address for metrics", || {
        let log = daemon.log();
        let line = log.lines().find_map(|line| line.strip_prefix("metrics at "))?;
        Some(line.trim_end_matches("/metrics").to_owned())
    });
    (daemon, url)
}

fn scrape(url: &str) -> BTreeMap<String, f64> {
    let text = peer("curl", &["-sSf", url]);
    assert!(text.ends_with("# EOF\n"), "{text}");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let parsed = samples.map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    });
    parsed.collect()
}

fn load(daemon: &Daemon, disk: &str) {
    let uri = daemon.uri(disk);
    let commands = ["write 0 1M", "write 1M 64k", "read 0 512k", "discard 0 4k", "flush"];
    let args = commands.iter().flat_map(|command| ["-c", command]);
    let args: Vec<_> = ["-f", "raw", "-t", "none", &uri].into_iter().chain(args).collect();
    peer("qemu-io", &args);
}

#[test]
fn what_was_done_is_counted() {
    let (daemon, url) = serve(&["ram:16M?name=a", "null:1M?name=b"]);
    load(&daemon, "a");
    let got = scrape(&format!("{url}/metrics"));
    let of = |name: &str| got[&format!("blockyard_disk_{name}{{disk=\"a\"}}")];
    assert_eq!(of("written_bytes_total"), f64::from((1 << 20) + (64 << 10)));
    assert_eq!(of("size_bytes"), f64::from(16 << 20));
    assert!(of("read_bytes_total") >= f64::from(512 << 10));
    assert!(of("discarded_bytes_total") >= 4096.0, "{got:?}");
    assert!(of("write_time_seconds_total") > 0.0 && of("io_now") == 0.0);
    let took = |what: &str| {
        got[&format!("blockyard_disk_request_duration_seconds_{what},operation=\"write\"}}")]
    };
    assert_eq!(took("count{disk=\"a\""), of("writes_completed_total"));
    assert_eq!(took("sum{disk=\"a\""), of("write_time_seconds_total"));
    let buckets: Vec<f64> = got
        .iter()
        .filter(|(name, _)| {
            name.starts_with("blockyard_disk_request_duration_seconds_bucket")
                && name.contains("disk=\"a\"")
                && name.contains("operation=\"write\"")
        })
        .map(|(_, &count)| count)
        .collect();
    assert_eq!(buckets.len(), 20);
    assert_eq!(buckets.iter().copied().fold(0.0, f64::max), of("writes_completed_total"));
    assert_eq!(got["blockyard_disk_reads_completed_total{disk=\"b\"}"], 0.0);
    assert_eq!(got["blockyard_disk_info{disk=\"b\",driver=\"null\"}"], 1.0);
    let log = daemon.stop();
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn clients_are_told_one_by_one_only_if_that_is_wanted() {
    let (daemon, url) = serve(&["ram:16M?name=a"]);
    let script = format!(
        "import subprocess\nh.pread(4096, 0)\n\
         for path in ['metrics', 'metrics?clients=true']:\n  \
         print(subprocess.run(['curl', '-sSf', '{url}/' + path], capture_output=True, text=True).stdout)\n"
    );
    let said = common::nbdsh(&daemon.uri("a"), &script);
    let (without, with) = said.split_once("# EOF").unwrap();
    assert!(without.contains("blockyard_nbd_clients 1") && !without.contains("blockyard_client_"));
    assert!(with.contains("blockyard_client_read_bytes_total{client="), "{with}");
}

#[test]
fn an_address_for_metrics_is_for_nothing_else() {
    let (daemon, url) = serve(&["ram:1M"]);
    let status = |path: &str| {
        let url = format!("{url}{path}");
        peer("curl", &["-sS", "-o", "/dev/null", "-w", "%{http_code}", &url])
    };
    assert_eq!((status("/livez"), status("/readyz")), ("200".into(), "200".into()));
    assert_eq!((status("/v1/daemon"), status("/")), ("404".into(), "404".into()));
    let posted = peer(
        "curl",
        &["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-d", "x", &format!("{url}/metrics")],
    );
    assert_eq!(posted, "405");
    let taken = url.trim_start_matches("http://");
    run(&["serve", "ram:1M", "--nbd", "unix:never", "--metrics", taken]).code(75).contains(&[
        &format!("cannot listen for metrics at {taken}"),
        "in use",
        "choose another address",
    ]);
    run(&["serve", "ram:1M", "--metrics", "nowhere"]).code(64);
    drop(daemon);
}

/// The port at which a process listens.
fn port(pid: u32) -> Option<u16> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let sockets: BTreeSet<String> = fds
        .filter_map(|fd| fs::read_link(fd.path()).ok()?.to_str().map(str::to_owned))
        .filter_map(|link| link.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned))
        .collect();
    ["tcp", "tcp6"].iter().find_map(|table| {
        let table = fs::read_to_string(format!("/proc/{pid}/net/{table}")).ok()?;
        table.lines().find_map(|line| {
            // proc_pid_net(5): local address, state (0A listens), inode.
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let listens = *fields.get(3)? == "0A" && sockets.contains(*fields.get(9)?);
            let (_, port) = fields.get(1)?.rsplit_once(':')?;
            listens.then(|| u16::from_str_radix(port, 16).ok()).flatten()
        })
    })
}

struct Prometheus {
    _child: Guard,
    url: String,
    _dir: TempDir,
}

fn programs() -> PathBuf {
    let dir = std::env::var_os("BLOCKYARD_PROMETHEUS");
    PathBuf::from(dir.expect("set BLOCKYARD_PROMETHEUS, or run: cargo xtask test --part e2e"))
}

impl Prometheus {
    fn of(target: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let config = format!(
            "global: {{ scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 200ms }}\n\
             rule_files: [\"{DOCS}/alerts.yml\"]\n\
             scrape_configs: [{{ job_name: blockyard, static_configs: [{{ targets: [\"{target}\"] }}] }}]\n"
        );
        let file = dir.path().join("prometheus.yml");
        fs::write(&file, config).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut command = Command::new(programs().join("prometheus"));
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()));
        command.arg("--web.listen-address=127.0.0.1:0").stdin(Stdio::null()).stderr(log);
        let mut child = Guard(command.spawn().unwrap());
        let port = wait_for("port of Prometheus", || {
            let ended = child.0.try_wait().unwrap();
            assert!(ended.is_none(), "{}", fs::read_to_string(dir.path().join("log")).unwrap());
            port(child.0.id())
        });
        Self { _child: child, url: format!("http://127.0.0.1:{port}/api/v1"), _dir: dir }
    }

    fn get(&self, path: &str, query: Option<&str>) -> Value {
        let url = format!("{}/{path}", self.url);
        let mut args = vec!["-sS".to_owned(), "-G".to_owned(), url];
        args.extend(query.iter().flat_map(|it| ["--data-urlencode".into(), format!("query={it}")]));
        let said = common::try_peer("curl", &args).out;
        serde_json::from_str(&said).unwrap_or(Value::Null)
    }

    /// The value of an expression, as soon as it has one.
    fn value(&self, expression: &str) -> f64 {
        wait_for(expression, || {
            let said = self.get("query", Some(expression));
            said.pointer("/data/result/0/value/1")?.as_str()?.parse().ok()
        })
    }
}

#[test]
fn prometheus_collects_them_and_the_rules_fit() {
    let (daemon, url) = serve(&["ram:16M?name=a"]);
    load(&daemon, "a");
    let prometheus = Prometheus::of(url.trim_start_matches("http://"));
    assert_eq!(prometheus.value("up == 1"), 1.0);
    let written = f64::from((1 << 20) + (64 << 10));
    assert_eq!(prometheus.value("blockyard_disk_written_bytes_total{disk=\"a\"}"), written);
    let quantile = "histogram_quantile(0.99, blockyard_disk_request_duration_seconds_bucket{operation=\"write\"})";
    assert!(prometheus.value(quantile) > 0.0);
    let rules = wait_for("alert that it was just started", || {
        let said = prometheus.get("rules", None);
        let rules = said.pointer("/data/groups/0/rules")?.as_array()?.clone();
        let fires =
            |rule: &Value| rule["name"] == "BlockyardRestarted" && rule["state"] == "firing";
        let all_known = rules.iter().all(|rule| rule["health"] != "unknown");
        (all_known && rules.iter().any(fires)).then_some(rules)
    });
    assert!(rules.len() >= 5);
    for rule in &rules {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
}

/// All words that begin with `blockyard_`.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("blockyard_")).map(str::to_owned).collect()
}

#[test]
fn alerts_and_dashboard_name_metrics_that_there_are() {
    let (daemon, url) = serve(&["ram:16M?name=a"]);
    load(&daemon, "a");
    let there: BTreeSet<String> = scrape(&format!("{url}/metrics"))
        .into_keys()
        .map(|name| name.split('{').next().unwrap().to_owned())
        .collect();
    for file in ["alerts.yml", "grafana.json"] {
        let text = fs::read_to_string(Path::new(DOCS).join(file)).unwrap();
        let named = names(&text);
        assert!(named.len() >= 4, "{file}: {named:?}");
        let unknown: Vec<_> = named.difference(&there).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
    let promtool = programs().join("promtool").display().to_string();
    peer(&promtool, &["check", "rules", &format!("{DOCS}/alerts.yml")]);
}

#[test]
fn a_scrape_is_the_same_at_the_control_socket() {
    let (daemon, url) = serve(&["ram:16M?name=a"]);
    let socket = daemon.path(&format!("run/{}.sock", daemon.pid())).display().to_string();
    let of_socket =
        peer("curl", &["-sSf", "-D", "-", "--unix-socket", &socket, "http://blockyard/metrics"]);
    assert!(of_socket.contains("content-type: application/openmetrics-text"), "{of_socket}");
    for name in scrape(&format!("{url}/metrics")).keys() {
        assert!(of_socket.contains(name), "{name}");
    }
}
