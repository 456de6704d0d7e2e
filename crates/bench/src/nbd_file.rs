//! NBD servers on a file in the page cache, loaded by fio and by nbdcopy through a unix socket. The file is where cargo builds: a
//! file system in memory says nothing of others. It is written through the server, synchronised and read once before a load
//! begins, and afterwards what the server shows is compared with the file.

use std::fs::File;
use std::time::Instant;

use super::Context;
use super::fio::{self, Job};
use super::measure::{
    CLIENT_CPU, Case, Contender, Goal, IOPS, P99, RATE, SERVER_CPU, Sample, Target, US,
};
use super::process::cpu_time;
use super::servers::{Served, Start, blockyard_file, nbdkit_file};
use anyhow::Result;
use xtask::run::capture;

const NBDKIT: &str = "nbdkit";
/// What nbdcopy finds data in, as people write it, and in MiB. The rest of the disk is a hole.
const COPIED: &str = "512M";
const COPIED_MIB: f64 = 512.0;
/// What nbdcopy asks for at a time: four of them are a MiB.
const COPIED_AT_ONCE_PER_MIB: f64 = 4.0;

/// Each load, how many times nbdkit's requests a second we want at least, and its CPU time a request at most.
const LOADS: &[(Job, f64, f64)] = &[
    (Job { rw: "read", block: "256k", depth: 8 }, 1.5, 0.3),
    (Job { rw: "write", block: "256k", depth: 8 }, 1.2, 0.8),
    (Job { rw: "randread", block: "4k", depth: 32 }, 1.6, 0.6),
    (Job { rw: "randwrite", block: "4k", depth: 32 }, 1.4, 1.0),
    (Job { rw: "randread", block: "4k", depth: 1 }, 1.7, 1.0),
];

pub(super) fn cases(_: &Context) -> Vec<Case> {
    let mut cases: Vec<_> = LOADS.iter().map(|&(job, times, cpu)| load(job, times, cpu)).collect();
    cases.push(copy());
    cases
}

fn load(job: Job, times: f64, cpu: f64) -> Case {
    let contender =
        |name, start: Start| Contender::new(name, move |context| measure(context, start, job));
    Case {
        name: format!("{} {} QD{}", job.block, job.rw, job.depth),
        contenders: vec![contender(US, blockyard_file), contender(NBDKIT, nbdkit_file)],
        targets: vec![
            Target { metric: IOPS, goal: Goal::MinTimes(times, NBDKIT) },
            Target { metric: SERVER_CPU, goal: Goal::MaxTimes(cpu, NBDKIT) },
        ],
    }
}

fn measure(context: &Context, start: Start, job: Job) -> Result<Sample> {
    let served = warm(context, start, fio::SPAN)?;
    let before = cpu_time(served.pid())?;
    let outcome = fio::load(context, &served.uri, job)?;
    let spent = cpu_time(served.pid())? - before;
    verify(context, &served)?;
    Ok(vec![
        (IOPS, outcome.iops),
        (P99, outcome.p99_us),
        (SERVER_CPU, spent.as_secs_f64() * 1e6 / outcome.ops),
        (CLIENT_CPU, outcome.client_cpu_us_per_op),
    ])
}

/// nbdcopy reads the disk as often as the time lasts, and throws it away.
fn copy() -> Case {
    let contender =
        |name, start: Start| Contender::new(name, move |context| measure_copy(context, start));
    Case {
        name: "nbdcopy to null:".to_owned(),
        contenders: vec![contender(US, blockyard_file), contender(NBDKIT, nbdkit_file)],
        targets: vec![Target { metric: RATE, goal: Goal::MinTimes(1.5, NBDKIT) }],
    }
}

fn measure_copy(context: &Context, start: Start) -> Result<Sample> {
    let served = warm(context, start, COPIED)?;
    let once = || capture(context.command("nbdcopy").args([&served.uri, "null:"])).map(drop);
    once()?;
    let (before, begun, mut rounds) = (cpu_time(served.pid())?, Instant::now(), 0.0);
    while begun.elapsed().as_secs() < context.seconds {
        once()?;
        rounds += 1.0;
    }
    let rate = rounds * COPIED_MIB / begun.elapsed().as_secs_f64();
    let spent = cpu_time(served.pid())? - before;
    verify(context, &served)?;
    let ops = rounds * COPIED_MIB * COPIED_AT_ONCE_PER_MIB;
    Ok(vec![(RATE, rate), (SERVER_CPU, spent.as_secs_f64() * 1e6 / ops)])
}

/// A server whose disk begins with so many bytes of data, all of them in the page cache and none waiting to be written back.
fn warm(context: &Context, start: Start, span: &str) -> Result<Served> {
    let served = start(context)?;
    fio::fill(context, &served.uri, span)?;
    if let Some(image) = served.image() {
        File::open(image)?.sync_all()?;
    }
    fio::read_once(context, &served.uri, span)?;
    Ok(served)
}

/// What the server shows is what the file has.
fn verify(context: &Context, served: &Served) -> Result<()> {
    let Some(image) = served.image() else { return Ok(()) };
    let mut compare = context.qemu("qemu-img");
    // The server has the file locked.
    compare.args(["compare", "-U", "-f", "raw", "-F", "raw", &served.uri]).arg(image);
    capture(&mut compare).map(drop)
}
