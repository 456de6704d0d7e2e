//! NBD servers on memory, loaded by fio through a unix socket.

use super::Context;
use super::fio::{self, Job};
use super::measure::{
    CLIENT_CPU, Case, Contender, Goal, IOPS, P50, P99, PEAK, RESIDENT, SERVER_CPU, Sample, Target,
    US,
};
use super::process::{cpu_time, memory};
use super::servers::{Start, blockyard, nbdkit, qemu_nbd};
use anyhow::Result;

const NBDKIT: &str = "nbdkit";

/// Each load, and how many times nbdkit's requests a second we want at least.
const LOADS: &[(Job, f64)] = &[
    (Job { rw: "randread", block: "4k", depth: 32 }, 1.4),
    (Job { rw: "randwrite", block: "4k", depth: 32 }, 1.05),
    (Job { rw: "read", block: "256k", depth: 8 }, 1.3),
    (Job { rw: "randread", block: "4k", depth: 1 }, 1.5),
];
/// How many times nbdkit's CPU time a request we want at most, for the first load.
const CPU_TIMES: f64 = 0.65;

pub(super) fn cases(context: &Context) -> Vec<Case> {
    let mut cases: Vec<_> = LOADS.iter().map(|&(job, times)| case(context, job, times)).collect();
    cases[0].targets.push(Target { metric: SERVER_CPU, goal: Goal::MaxTimes(CPU_TIMES, NBDKIT) });
    cases
}

fn case(context: &Context, job: Job, times: f64) -> Case {
    let contender =
        |name, start: Start| Contender::new(name, move |context| measure(context, start, job));
    let mut contenders = vec![contender(US, blockyard), contender(NBDKIT, nbdkit)];
    if context.all_peers {
        contenders.push(contender("qemu-nbd", qemu_nbd));
    }
    Case {
        name: format!("{} {} QD{}", job.block, job.rw, job.depth),
        contenders,
        targets: vec![Target { metric: IOPS, goal: Goal::MinTimes(times, NBDKIT) }],
    }
}

fn measure(context: &Context, start: Start, job: Job) -> Result<Sample> {
    let served = start(context)?;
    fio::fill(context, &served.uri, fio::SPAN)?;
    let before = cpu_time(served.pid())?;
    let outcome = fio::load(context, &served.uri, job)?;
    let spent = cpu_time(served.pid())? - before;
    let memory = memory(served.pid())?;
    Ok(vec![
        (IOPS, outcome.iops),
        (SERVER_CPU, spent.as_secs_f64() * 1e6 / outcome.ops),
        (CLIENT_CPU, outcome.client_cpu_us_per_op),
        (P50, outcome.p50_us),
        (P99, outcome.p99_us),
        (RESIDENT, memory.resident_kib as f64 / 1024.0),
        (PEAK, memory.peak_kib as f64 / 1024.0),
    ])
}
