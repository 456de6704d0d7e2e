//! Our RADOS client beside Ceph's own, through fio and `rados bench`: all of them load the same cluster on loopback.
//!
//! What is read was written before by another process, so that the memory of a client is that of reading. Ours and fio
//! use the very same objects, as many and in the same groups.

use super::Context;
use super::fio::{self, Job};
use super::measure::{
    CLIENT_CPU, Case, Contender, Goal, IOPS, Metric, P50, P99, PEAK, RATE, Sample, Target, US,
};
use super::process::{Usage, watch};
use anyhow::{Context as _, Result};
use blockyard_lab::ceph::{Cluster, Options};
use serde_json::Value;
use std::cell::OnceCell;
use std::process::Command;
use std::rc::Rc;
use xtask::run::capture;

/// fio's engine on librados.
const LIBRADOS: &str = "librados";
/// Ceph's own benchmark, on librados too.
const RADOS_BENCH: &str = "rados bench";
const POOL: &str = "bench";
/// Placement groups of the pool: enough for all OSDs to have as many.
const GROUPS: u32 = 32;
const OBJECTS: u32 = 32;

const THREADS: Metric = Metric("threads");
/// To OSDs; there is one to a monitor beside them.
const CONNECTIONS: Metric = Metric("osd_connections");

/// A cluster that all cases share.
struct Yard {
    lab: Cluster,
    osd_ports: Vec<u16>,
}

/// A size of objects, and of the requests to them.
#[derive(Clone, Copy)]
struct Block {
    name: &'static str,
    bytes: u32,
}

const SMALL: Block = Block { name: "4k", bytes: 4 << 10 };
const LARGE: Block = Block { name: "4M", bytes: 4 << 20 };

/// A load on objects of one block each.
#[derive(Clone, Copy)]
struct Load {
    rw: &'static str,
    block: Block,
    depth: u32,
}

/// The cluster, started by the first who needs it.
#[derive(Clone, Default)]
struct Shared(Rc<OnceCell<Yard>>);

impl Shared {
    fn yard(&self, context: &Context) -> Result<&Yard> {
        if self.0.get().is_none() {
            let yard = Yard::start(context)?;
            // Nobody else has set it: there is one thread.
            let _ = self.0.set(yard);
        }
        self.0.get().context("a cluster that was just started")
    }
}

pub(super) fn cases(_: &Context) -> Vec<Case> {
    let shared = Shared::default();
    let shallow = Load { rw: "read", block: SMALL, depth: 1 };
    let deep = Load { depth: 32, ..shallow };
    let large = Load { block: LARGE, depth: 16, ..shallow };
    let goal = |metric, goal| Target { metric, goal };
    let cheaper = goal(CLIENT_CPU, Goal::MaxTimes(0.5, LIBRADOS));
    vec![
        case(&shared, shallow, vec![goal(IOPS, Goal::MinTimes(1.2, LIBRADOS))]),
        case(
            &shared,
            deep,
            vec![
                cheaper,
                goal(THREADS, Goal::Max(1.0)),
                goal(CONNECTIONS, Goal::Max(f64::from(Options::default().osds))),
            ],
        ),
        case(&shared, Load { rw: "write", ..deep }, vec![cheaper]),
        case(
            &shared,
            large,
            vec![
                goal(RATE, Goal::MinTimes(1.0, LIBRADOS)),
                goal(RATE, Goal::MinTimes(1.0, RADOS_BENCH)),
                goal(PEAK, Goal::MaxTimes(0.25, LIBRADOS)),
                goal(PEAK, Goal::MaxTimes(0.25, RADOS_BENCH)),
            ],
        ),
    ]
}

fn case(shared: &Shared, load: Load, targets: Vec<Target>) -> Case {
    let contender = |name, measure: fn(&Yard, &Context, Load) -> Result<Sample>| {
        let shared = shared.clone();
        Contender::new(name, move |context| measure(shared.yard(context)?, context, load))
    };
    let mut contenders = vec![contender(US, Yard::blockyard), contender(LIBRADOS, Yard::fio)];
    if load.rw == "read" {
        contenders.push(contender(RADOS_BENCH, Yard::rados_bench));
    }
    Case { name: format!("{} {} QD{}", load.block.name, load.rw, load.depth), contenders, targets }
}

impl Load {
    /// What the names of its objects begin with. Writes go to the same objects as reads.
    fn run_name(self) -> String {
        format!("of_{}", self.block.name)
    }

    fn sample(self, yard: &Yard, iops: f64, usage: &Usage) -> Sample {
        let is_osd = |port: &&u16| yard.osd_ports.contains(port);
        vec![
            (IOPS, iops),
            (CLIENT_CPU, usage.cpus * 1e6 / iops),
            (RATE, iops * f64::from(self.block.bytes) / f64::from(1 << 20)),
            (PEAK, usage.peak_kib as f64 / 1024.0),
            (THREADS, usage.threads as f64),
            (CONNECTIONS, usage.peer_ports.iter().filter(is_osd).count() as f64),
        ]
    }
}

impl Yard {
    /// Starts the cluster, and writes what is read later.
    fn start(context: &Context) -> Result<Self> {
        let lab = Cluster::start(&Options::default())?;
        lab.create_pool(POOL, GROUPS)?;
        lab.wait_clean()?;
        let osd_ports = osd_ports(&lab.ceph_json(&["osd", "dump"])?)?;
        let yard = Self { lab, osd_ports };
        for block in [SMALL, LARGE] {
            let load = Load { rw: "write", block, depth: 16 };
            capture(yard.bench(context, load).args(["--time", "1ms"]))?;
            let mut theirs = yard.lab.tool("rados");
            theirs.args(["-p", POOL, "bench", "60", "write", "--no-cleanup", "--run-name"]);
            theirs.args([block.name, "-t", "16", "-b", &block.bytes.to_string()]);
            capture(theirs.args(["--max-objects", &OBJECTS.to_string()]))?;
        }
        Ok(yard)
    }

    fn bench(&self, context: &Context, load: Load) -> Command {
        let mut command = context.blockyard();
        command.args(["rados", "--json", "--pool", POOL, "--conf"]).arg(self.lab.conf());
        command.args([
            "bench",
            load.rw,
            "--bs",
            load.block.name,
            "--depth",
            &load.depth.to_string(),
        ]);
        command.args(["--objects", &OBJECTS.to_string(), "--no-cleanup"]);
        command.args(["--run-name", &load.run_name()]);
        command
    }

    fn blockyard(&self, context: &Context, load: Load) -> Result<Sample> {
        let mut command = self.bench(context, load);
        command.args(["--no-prepare", "--time", &format!("{}s", context.seconds)]);
        let (said, usage) = watch(&mut command)?;
        let report: Value = serde_json::from_str(&said)?;
        let number = |value: &Value| {
            value.as_f64().with_context(|| format!("a figure is missing in:\n{said}"))
        };
        let mut sample = load.sample(self, number(&report["iops"])?, &usage);
        sample.push((P50, number(&report["lat_ns"]["p50"])? / 1e3));
        sample.push((P99, number(&report["lat_ns"]["p99"])? / 1e3));
        Ok(sample)
    }

    fn fio(&self, context: &Context, load: Load) -> Result<Sample> {
        let mut fio = self.lab.tool("fio");
        let job = Job { rw: load.rw, block: load.block.name, depth: load.depth };
        fio::drive(&mut fio, "rados", job);
        fio.args(["--thread", "--clientname=admin"]).arg(format!("--pool={POOL}"));
        fio.arg(format!("--conf={}", self.lab.conf().display()));
        let bytes = u64::from(OBJECTS) * u64::from(load.block.bytes);
        fio.arg(format!("--nrfiles={OBJECTS}")).arg(format!("--size={bytes}"));
        fio.arg(format!("--filename_format={}.$filenum", load.run_name()));
        let (said, usage) = watch(fio::timed(&mut fio, context))?;
        let outcome = fio::understand(&said)?;
        let mut sample = load.sample(self, outcome.iops, &usage);
        sample.extend([(P50, outcome.p50_us), (P99, outcome.p99_us)]);
        Ok(sample)
    }

    fn rados_bench(&self, context: &Context, load: Load) -> Result<Sample> {
        let mut command = self.lab.tool("rados");
        // Ours looks at no data either.
        let seconds = context.seconds.to_string();
        command.args(["-p", POOL, "bench", &seconds, "rand", "--no-verify"]);
        command.args(["-t", &load.depth.to_string(), "--run-name", load.block.name]);
        let (said, usage) = watch(&mut command)?;
        let ops = labelled(&said, "Total reads made:");
        let seconds = labelled(&said, "Total time run:");
        let iops = ops.zip(seconds).map(|(ops, seconds)| ops / seconds);
        let iops = iops.with_context(|| format!("cannot understand what rados says:\n{said}"))?;
        Ok(load.sample(self, iops, &usage))
    }
}

/// The number behind a label at the begin of a line.
fn labelled(said: &str, label: &str) -> Option<f64> {
    said.lines().find_map(|line| line.strip_prefix(label)?.trim().parse().ok())
}

/// The ports at which clients reach OSDs, from what `ceph osd dump` says.
fn osd_ports(dump: &Value) -> Result<Vec<u16>> {
    let osds = dump["osds"].as_array().context("`ceph osd dump` names OSDs")?;
    let addrs = osds.iter().filter_map(|osd| osd["public_addrs"]["addrvec"].as_array()).flatten();
    let ports = addrs.filter_map(|addr| addr["addr"].as_str()?.rsplit_once(':')?.1.parse().ok());
    Ok(ports.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_ceph_says_is_understood() {
        let said = "hints = 1\nTotal time run:       2.5\nTotal reads made:     500\n";
        assert_eq!(labelled(said, "Total reads made:"), Some(500.0));
        assert_eq!(labelled(said, "Read size:"), None);
        let dump = json!({"osds": [
            {"public_addrs": {"addrvec": [{"type": "v2", "addr": "127.0.0.1:6802", "nonce": 7}]}},
            {"public_addrs": {"addrvec": [{"type": "v2", "addr": "127.0.0.1:6810", "nonce": 8}]}}]});
        assert_eq!(osd_ports(&dump).unwrap(), [6802, 6810]);
    }
}
