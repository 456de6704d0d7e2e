//! Load by fio: what all engines have in common, and the NBD engine.

use super::Context;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::process::Command;
use xtask::run::capture;

/// The part of the disk that is loaded: larger than any cache of the CPU, small enough to be filled quickly.
pub(super) const SPAN: &str = "256M";

/// What fio is to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub rw: &'static str,
    pub block: &'static str,
    pub depth: u32,
}

/// What fio found.
#[derive(Debug, PartialEq)]
pub(super) struct Outcome {
    pub ops: f64,
    pub iops: f64,
    pub client_cpu_us_per_op: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

/// Writes to the first bytes of the disk, as many as a load will touch, so that a read finds bytes and a write
/// finds memory.
pub(super) fn fill(context: &Context, uri: &str, span: &str) -> Result<()> {
    let fill = Job { rw: "write", block: "1M", depth: 4 };
    capture(&mut nbd(context, uri, span, fill)).context("cannot fill the disk").map(drop)
}

/// Reads as many bytes once, so that they are wherever a server keeps what was read.
pub(super) fn read_once(context: &Context, uri: &str, span: &str) -> Result<()> {
    let read = Job { rw: "read", block: "256k", depth: 4 };
    capture(&mut nbd(context, uri, span, read)).context("cannot read the disk").map(drop)
}

/// Loads the disk for the context's time.
pub(super) fn load(context: &Context, uri: &str, job: Job) -> Result<Outcome> {
    understand(&capture(timed(&mut nbd(context, uri, SPAN, job), context))?)
}

fn nbd(context: &Context, uri: &str, span: &str, job: Job) -> Command {
    let mut command = context.command("fio");
    drive(&mut command, "nbd", job);
    command.arg(format!("--uri={uri}")).arg(format!("--size={span}"));
    command
}

/// Tells a fio what to do with which engine. What the engine does it to, the caller adds.
pub(super) fn drive(fio: &mut Command, engine: &str, job: Job) {
    fio.args(["--output-format=json", "--name=load", "--randrepeat=1"]);
    fio.arg(format!("--ioengine={engine}")).arg(format!("--rw={}", job.rw));
    fio.arg(format!("--bs={}", job.block)).arg(format!("--iodepth={}", job.depth));
}

/// Makes a fio go on for the context's time.
pub(super) fn timed<'a>(fio: &'a mut Command, context: &Context) -> &'a mut Command {
    fio.args(["--time_based", "--norandommap"]).arg(format!("--runtime={}", context.seconds))
}

/// What fio found, from what it says.
pub(super) fn understand(said: &str) -> Result<Outcome> {
    parse(said).with_context(|| format!("cannot understand what fio says:\n{said}"))
}

/// fio may say something before its JSON.
fn parse(said: &str) -> Option<Outcome> {
    let report: Value = serde_json::from_str(said.get(said.find('{')?..)?).ok()?;
    let job = &report["jobs"][0];
    let side = ["read", "write"]
        .iter()
        .map(|side| &job[side])
        .find(|side| side["iops"].as_f64() > Some(0.0))?;
    let ops = side["total_ios"].as_f64()?;
    let cpu_percent = job["usr_cpu"].as_f64()? + job["sys_cpu"].as_f64()?;
    let run_us = job["job_runtime"].as_f64()? * 1e3;
    let latency_us = |percentile| Some(side["clat_ns"]["percentile"][percentile].as_f64()? / 1e3);
    Some(Outcome {
        ops,
        iops: side["iops"].as_f64()?,
        client_cpu_us_per_op: cpu_percent / 100.0 * run_us / ops,
        p50_us: latency_us("50.000000")?,
        p99_us: latency_us("99.000000")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_understood() {
        let said = r#"note
            {"jobs": [{"job_runtime": 1000, "usr_cpu": 20.0, "sys_cpu": 30.0, "read": {"iops": 0.0},
            "write": {"iops": 5000.0, "total_ios": 5000,
            "clat_ns": {"percentile": {"50.000000": 1000, "99.000000": 9000}}}}]}"#;
        let outcome = Outcome {
            ops: 5000.0,
            iops: 5000.0,
            client_cpu_us_per_op: 100.0,
            p50_us: 1.0,
            p99_us: 9.0,
        };
        assert_eq!(parse(said), Some(outcome));
        assert_eq!(parse("fio: engine nbd not loadable"), None);
    }
}
