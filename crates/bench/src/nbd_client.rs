//! Our NBD driver as a client, through `blockyard bench`, beside fio's engine on libnbd; and a proxy beside its upstream.

use super::Context;
use super::fio::{self, Job};
use super::measure::{CLIENT_CPU, Case, Contender, Goal, IOPS, SERVER_CPU, Sample, Target, US};
use super::nbd_light::number;
use super::process::cpu_time;
use super::servers::{DISK, Served, Start, blockyard, nbdkit, proxy};
use anyhow::Result;
use xtask::run::capture;

const FIO: &str = "fio on libnbd";
const DIRECT: &str = "direct";

pub(super) fn cases(_: &Context) -> Vec<Case> {
    let deep = Job { rw: "randread", block: "4k", depth: 32 };
    let deep_write = Job { rw: "randwrite", ..deep };
    let shallow = Job { depth: 1, ..deep };
    let large = Job { rw: "read", block: "256k", depth: 8 };
    let faster = |times| Target { metric: IOPS, goal: Goal::MinTimes(times, FIO) };
    let cheaper = Target { metric: CLIENT_CPU, goal: Goal::MaxTimes(0.5, FIO) };
    let passed_on = |times| Target { metric: IOPS, goal: Goal::MinTimes(times, DIRECT) };
    vec![
        beside_fio("nbdkit", deep, nbdkit, vec![faster(1.2), cheaper]),
        beside_fio("our server", deep, blockyard, vec![faster(1.2)]),
        beside_fio("nbdkit", deep_write, nbdkit, vec![]),
        beside_fio("nbdkit", shallow, nbdkit, vec![faster(1.0)]),
        beside_fio("nbdkit", large, nbdkit, vec![]),
        beside_upstream(deep, vec![passed_on(0.6)]),
        beside_upstream(deep_write, vec![]),
        beside_upstream(large, vec![passed_on(0.8)]),
        beside_upstream(shallow, vec![passed_on(0.6)]),
    ]
}

/// The driver against a server, and fio against the same.
fn beside_fio(server: &str, job: Job, start: Start, targets: Vec<Target>) -> Case {
    Case {
        name: format!("{} {} QD{} to {server}", job.block, job.rw, job.depth),
        contenders: vec![
            Contender::new(US, move |context| bench(context, &start(context)?, job)),
            Contender::new(FIO, move |context| {
                let served = start(context)?;
                fio::fill(context, &served.uri, DISK)?;
                let outcome = fio::load(context, &served.uri, job)?;
                Ok(vec![(IOPS, outcome.iops), (CLIENT_CPU, outcome.client_cpu_us_per_op)])
            }),
        ],
        targets,
    }
}

/// The driver against a proxy, and against what is behind it.
fn beside_upstream(job: Job, targets: Vec<Target>) -> Case {
    Case {
        name: format!("{} {} QD{} through a proxy", job.block, job.rw, job.depth),
        contenders: vec![
            Contender::new(US, move |context| {
                let upstream = nbdkit(context)?;
                bench(context, &proxy(context, &upstream.uri)?, job)
            }),
            Contender::new(DIRECT, move |context| bench(context, &nbdkit(context)?, job)),
        ],
        targets,
    }
}

/// One connection, on one queue thread, as fio has it.
fn bench(context: &Context, served: &Served, job: Job) -> Result<Sample> {
    fio::fill(context, &served.uri, DISK)?;
    let before = cpu_time(served.pid())?;
    let mut command = context.blockyard();
    command.args(["bench", &served.uri, "--rw", job.rw, "--bs", job.block, "--queues", "1"]);
    command.args(["--size", fio::SPAN, "--depth", &job.depth.to_string(), "--json"]);
    command.args(["--time", &format!("{}s", context.seconds)]);
    let said = capture(&mut command)?;
    let spent = cpu_time(served.pid())? - before;
    let iops = number(&said, "iops")?;
    Ok(vec![
        (IOPS, iops),
        (CLIENT_CPU, number(&said, "client_cpu_ns_per_op")? / 1e3),
        (SERVER_CPU, spent.as_secs_f64() * 1e6 / (iops * context.seconds as f64)),
    ])
}
