//! A server that starts and then has nothing to do.

use super::Context;
use super::fio::{self, Job};
use super::measure::{Case, Contender, Goal, Metric, RESIDENT, Sample, Target, US, summarize};
use super::process::{activity, memory};
use super::servers::{blockyard, blockyard_command, socket_in};
use anyhow::{Context as _, Result, bail};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};
use xtask::child::{START_LIMIT, Server, fresh_dir};

const START: Metric = Metric("start_ms");
const IDLE_CPU: Metric = Metric("idle_cpu_us");
const IDLE_SLEEPS: Metric = Metric("idle_wake_ups");
const GROWTH: Metric = Metric("resident_growth_mib");

/// How many starts make a sample.
const STARTS: usize = 20;
/// How long nothing is asked of the server while it is watched.
const WATCHED: Duration = Duration::from_secs(5);
/// How long a server may take to come to rest.
const SETTLE: Duration = Duration::from_millis(500);
/// What the last client leaves behind: its handshake's deadline of 10 s is a timer of the runtime, which may wake a
/// thread once more though nobody waits for it.
const AFTERMATH: Duration = Duration::from_secs(12);
/// What an NBD server says first.
const GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";
const LARGE: &str = "ram:1T";
const SMALL: &str = "ram:1M";

pub(super) fn cases(_: &Context) -> Vec<Case> {
    let at_most = |metric, bound| Target { metric, goal: Goal::Max(bound) };
    let case = |name: &str, measure: fn(&Context) -> Result<Sample>, targets: &[Target]| Case {
        name: name.to_owned(),
        contenders: vec![Contender::new(US, measure)],
        targets: targets.to_vec(),
    };
    let quiet = [at_most(IDLE_CPU, 0.0), at_most(IDLE_SLEEPS, 0.0)];
    vec![
        case("from exec to the greeting, ram:1T", start_time, &[at_most(START, 20.0)]),
        case(
            "5 s with nothing to do, ram:1T",
            rest_at_start,
            &[quiet[0], quiet[1], at_most(RESIDENT, 16.0)],
        ),
        case("5 s with nothing to do after load", rest_after_load, &quiet),
        case("ram:1T against ram:1M", growth, &[at_most(GROWTH, 1.0)]),
    ]
}

fn start_time(context: &Context) -> Result<Sample> {
    let mut times_ms = Vec::new();
    for _ in 0..STARTS {
        let dir = fresh_dir()?;
        let socket = socket_in(&dir);
        let mut command = blockyard_command(context, LARGE, &socket);
        let start = Instant::now();
        let server = Server::start(&mut command, &dir.path().join("log"))?;
        wait_greeting(&socket, start)
            .with_context(|| format!("the server said:\n{}", server.logged()))?;
        times_ms.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(summarize(&times_ms).map(|times| vec![(START, times.median)]).unwrap_or_default())
}

/// Connects again and again, without a pause that would count, until the server greets.
fn wait_greeting(socket: &Path, start: Instant) -> Result<()> {
    while start.elapsed() < START_LIMIT {
        let Ok(mut stream) = UnixStream::connect(socket) else {
            std::thread::yield_now();
            continue;
        };
        let mut greeting = [0; GREETING.len()];
        stream.set_read_timeout(Some(START_LIMIT))?;
        stream.read_exact(&mut greeting).context("the server accepts, but does not greet")?;
        if &greeting != GREETING {
            bail!("the greeting is not that of an NBD server: {greeting:x?}");
        }
        return Ok(());
    }
    bail!("no greeting within {START_LIMIT:?}")
}

fn rest_at_start(context: &Context) -> Result<Sample> {
    let dir = fresh_dir()?;
    let server = serving(context, LARGE, &dir)?;
    watch(server.pid())
}

fn rest_after_load(context: &Context) -> Result<Sample> {
    let served = blockyard(context)?;
    fio::load(context, &served.uri, Job { rw: "randread", block: "4k", depth: 1 })?;
    watch(served.pid())
}

fn watch(pid: u32) -> Result<Sample> {
    sleep(AFTERMATH);
    let before = activity(pid)?;
    sleep(WATCHED);
    let after = activity(pid)?;
    let on_cpu = after.on_cpu.saturating_sub(before.on_cpu);
    Ok(vec![
        (IDLE_CPU, on_cpu.as_secs_f64() * 1e6),
        (IDLE_SLEEPS, after.sleeps.saturating_sub(before.sleeps) as f64),
        (RESIDENT, resident_mib(pid)?),
    ])
}

fn growth(context: &Context) -> Result<Sample> {
    let settled = |disk| {
        let dir = fresh_dir()?;
        let server = serving(context, disk, &dir)?;
        sleep(SETTLE);
        resident_mib(server.pid())
    };
    let (large, small) = (settled(LARGE)?, settled(SMALL)?);
    Ok(vec![(GROWTH, large - small), (RESIDENT, large)])
}

fn serving(context: &Context, disk: &str, dir: &tempfile::TempDir) -> Result<Server> {
    let socket = socket_in(dir);
    let mut server =
        Server::start(&mut blockyard_command(context, disk, &socket), &dir.path().join("log"))?;
    server.wait_accepting(&socket)?;
    Ok(server)
}

fn resident_mib(pid: u32) -> Result<f64> {
    Ok(memory(pid)?.resident_kib as f64 / 1024.0)
}
