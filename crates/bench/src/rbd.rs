//! Disks in RBD images beside librbd, through fio: both load the same image of one cluster on loopback, without a cache.

use super::Context;
use super::fio::{self, Job};
use super::measure::{
    CLIENT_CPU, Case, Contender, Goal, IOPS, P50, P99, PEAK, RATE, Sample, Target, US,
};
use super::process::{Usage, watch};
use anyhow::{Context as _, Result};
use blockyard_lab::ceph::{Cluster, Options};
use serde_json::Value;
use std::cell::OnceCell;
use std::process::Command;
use std::rc::Rc;
use xtask::run::capture;

/// fio's engine on librbd.
const LIBRBD: &str = "librbd";
const POOL: &str = "bench";
const IMAGE: &str = "image";
/// Placement groups of the pool: enough for all OSDs to have as many.
const GROUPS: u32 = 32;
/// Bytes of the image, all of which are written before anything is measured.
const SPAN: &str = "128M";

/// A load on the image.
#[derive(Clone, Copy)]
struct Load {
    rw: &'static str,
    block: &'static str,
    block_bytes: u32,
    depth: u32,
}

/// The cluster, started by the first who needs it.
#[derive(Clone, Default)]
struct Shared(Rc<OnceCell<Yard>>);

/// A cluster with an image, which all cases share.
struct Yard(Cluster);

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
    let small = |rw, depth| Load { rw, block: "4k", block_bytes: 4 << 10, depth };
    let large = |rw| Load { rw, block: "4M", block_bytes: 4 << 20, depth: 8 };
    let most = |metric, times| Target { metric, goal: Goal::MaxTimes(times, LIBRBD) };
    let least = |metric, times| Target { metric, goal: Goal::MinTimes(times, LIBRBD) };
    let memory = most(PEAK, 0.25);
    vec![
        case(&shared, small("randread", 1), vec![most(P50, 0.75)]),
        case(&shared, small("randread", 32), vec![least(IOPS, 1.3), most(CLIENT_CPU, 0.4), memory]),
        case(&shared, small("randwrite", 32), vec![most(CLIENT_CPU, 0.4)]),
        case(&shared, large("read"), vec![least(RATE, 1.1), memory]),
        case(&shared, large("write"), vec![least(RATE, 1.1)]),
    ]
}

fn case(shared: &Shared, load: Load, targets: Vec<Target>) -> Case {
    let contender = |name, measure: fn(&Yard, &Context, Load) -> Result<Sample>| {
        let shared = shared.clone();
        Contender::new(name, move |context| measure(shared.yard(context)?, context, load))
    };
    let contenders = vec![contender(US, Yard::blockyard), contender(LIBRBD, Yard::fio)];
    Case { name: format!("{} {} QD{}", load.block, load.rw, load.depth), contenders, targets }
}

impl Load {
    fn sample(self, iops: f64, usage: &Usage) -> Sample {
        vec![
            (IOPS, iops),
            (CLIENT_CPU, usage.cpus * 1e6 / iops),
            (RATE, iops * f64::from(self.block_bytes) / f64::from(1 << 20)),
            (PEAK, usage.peak_kib as f64 / 1024.0),
        ]
    }
}

impl Yard {
    /// Starts the cluster, and writes what is read later.
    fn start(context: &Context) -> Result<Self> {
        let lab = Cluster::start(&Options::default())?;
        lab.create_pool(POOL, GROUPS)?;
        lab.wait_clean()?;
        let yard = Self(lab);
        capture(yard.0.tool("rbd").args(["-p", POOL, "create", "--size", SPAN, IMAGE]))?;
        let fill = Load { rw: "write", block: "4M", block_bytes: 4 << 20, depth: 4 };
        capture(yard.bench(context, fill).args(["--count", "32"]))?;
        Ok(yard)
    }

    fn bench(&self, context: &Context, load: Load) -> Command {
        let mut command = context.blockyard();
        let uri = format!("rbd:{POOL}/{IMAGE}?conf={}", self.0.conf().display());
        command.args(["bench", &uri, "--rw", load.rw, "--bs", load.block, "--queues", "1"]);
        command.args(["--depth", &load.depth.to_string(), "--json"]);
        command
    }

    fn blockyard(&self, context: &Context, load: Load) -> Result<Sample> {
        let mut command = self.bench(context, load);
        let (said, usage) = watch(command.args(["--time", &format!("{}s", context.seconds)]))?;
        let report: Value = serde_json::from_str(&said)?;
        let number = |value: &Value| {
            value.as_f64().with_context(|| format!("a figure is missing in:\n{said}"))
        };
        let mut sample = load.sample(number(&report["iops"])?, &usage);
        sample.push((P50, number(&report["lat_ns"]["p50"])? / 1e3));
        sample.push((P99, number(&report["lat_ns"]["p99"])? / 1e3));
        Ok(sample)
    }

    fn fio(&self, context: &Context, load: Load) -> Result<Sample> {
        let mut fio = self.0.tool("fio");
        fio.env("CEPH_ARGS", "--rbd_cache=false");
        fio::drive(&mut fio, "rbd", Job { rw: load.rw, block: load.block, depth: load.depth });
        fio.args(["--thread", "--clientname=admin"]).arg(format!("--pool={POOL}"));
        fio.arg(format!("--rbdname={IMAGE}")).arg(format!("--size={SPAN}"));
        let (said, usage) = watch(fio::timed(&mut fio, context))?;
        let outcome = fio::understand(&said)?;
        let mut sample = load.sample(outcome.iops, &usage);
        sample.extend([(P50, outcome.p50_us), (P99, outcome.p99_us)]);
        Ok(sample)
    }
}
