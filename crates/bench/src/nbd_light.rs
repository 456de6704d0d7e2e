//! The same servers with a client that costs little: `blockyard bench`. And what the socket itself could do.

use super::Context;
use super::measure::{CLIENT_CPU, Case, Contender, Goal, IOPS, SERVER_CPU, Sample, Target, US};
use super::process::cpu_time;
use super::servers::{DISK, DISK_BYTES, Start, blockyard, nbdkit};
use super::{CEILING, fio};
use anyhow::{Context as _, Result};
use serde_json::Value;
use xtask::run::capture;

const NBDKIT: &str = "nbdkit";
const SOCKET: &str = "bare socket";
/// The socket, and memory of the size of the disk instead of one block in the cache.
const SOCKET_AND_MEMORY: &str = "with memory";

/// A load for the generator and for the bare socket alike.
#[derive(Clone, Copy)]
struct Load {
    rw: &'static str,
    block: &'static str,
    block_bytes: u32,
    depth: u32,
}

pub(super) fn cases(_: &Context) -> Vec<Case> {
    let small = Load { rw: "randread", block: "4k", block_bytes: 4 << 10, depth: 32 };
    let large = Load { rw: "randread", block: "256k", block_bytes: 256 << 10, depth: 8 };
    let targets = [(2.0, NBDKIT), (0.6, SOCKET)];
    let targets =
        targets.map(|(times, peer)| Target { metric: IOPS, goal: Goal::MinTimes(times, peer) });
    vec![case(small, targets.to_vec()), case(large, Vec::new())]
}

fn case(load: Load, targets: Vec<Target>) -> Case {
    let contender =
        |name, start: Start| Contender::new(name, move |context| measure(context, start, load));
    Case {
        name: format!("{} {} QD{}", load.block, load.rw, load.depth),
        contenders: vec![
            contender(US, blockyard),
            contender(NBDKIT, nbdkit),
            Contender::new(SOCKET, move |context| measure_socket(context, load, 0)),
            Contender::new(SOCKET_AND_MEMORY, move |context| {
                measure_socket(context, load, DISK_BYTES >> 20)
            }),
        ],
        targets,
    }
}

fn measure(context: &Context, start: Start, load: Load) -> Result<Sample> {
    let served = start(context)?;
    fio::fill(context, &served.uri, DISK)?;
    let before = cpu_time(served.pid())?;
    let mut command = context.blockyard();
    command.args([
        "bench",
        &served.uri,
        "--rw",
        load.rw,
        "--bs",
        load.block,
        "--queues",
        "1",
        "--json",
    ]);
    command.args(["--depth", &load.depth.to_string(), "--time", &format!("{}s", context.seconds)]);
    let said = capture(&mut command)?;
    let spent = cpu_time(served.pid())? - before;
    let (iops, client_ns) = (number(&said, "iops")?, number(&said, "client_cpu_ns_per_op")?);
    Ok(vec![
        (IOPS, iops),
        (SERVER_CPU, spent.as_secs_f64() * 1e6 / (iops * context.seconds as f64)),
        (CLIENT_CPU, client_ns / 1e3),
    ])
}

fn measure_socket(context: &Context, load: Load, span_mib: u64) -> Result<Sample> {
    let mut command = context.command(context.built(CEILING.1));
    command.args(
        [u64::from(load.block_bytes), load.depth.into(), context.seconds, span_mib]
            .map(|number| number.to_string()),
    );
    Ok(vec![(IOPS, number(&capture(&mut command)?, "exchanges_per_s")?)])
}

/// A number in the JSON object that a program printed.
pub(super) fn number(said: &str, field: &str) -> Result<f64> {
    let object = said.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
    let object = object.or_else(|| serde_json::from_str(said).ok());
    let value = object.as_ref().and_then(|object| object[field].as_f64());
    value.with_context(|| format!("no number `{field}` in the JSON that was printed:\n{said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_objects_of_one_line_and_of_many() {
        assert_eq!(number("building\n{\"iops\": 5.5}\n", "iops").unwrap(), 5.5);
        assert_eq!(number("{\n  \"iops\": 7\n}\n", "iops").unwrap(), 7.0);
        let error = number("{\"iops\": \"many\"}", "iops").unwrap_err().to_string();
        assert!(error.contains("`iops`") && error.contains("many"), "{error}");
    }
}
