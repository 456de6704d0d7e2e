//! Disks as files, loaded by fio past the page cache: us beside qemu-storage-daemon's FUSE export, on a file in memory (tmpfs)
//! that has all its data before anybody starts.

use super::Context;
use super::fio::{Job, SPAN, drive, timed, understand};
use super::measure::{
    CLIENT_CPU, Case, Contender, Goal, IOPS, P50, P99, SERVER_CPU, Sample, Target, US,
};
use super::process::cpu_time;
use super::servers::{DISK, DISK_BYTES, memory_dir};
use anyhow::{Context as _, Result, bail};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use xtask::child::{START_LIMIT, Server, fresh_dir};
use xtask::run::capture;

const QEMU: &str = "qemu-storage-daemon";
/// The same load on our disk in memory, where the others have a file in memory.
const US_RAM: &str = "us, ram:";
/// How often it is looked whether it is mounted.
const POLL: Duration = Duration::from_millis(5);

pub(super) fn cases(_: &Context) -> Vec<Case> {
    let case = |rw, block, depth, times| {
        let job = Job { rw, block, depth };
        let contenders = vec![
            Contender::new(US, move |context| measure(context, job, ours)),
            Contender::new(QEMU, move |context| measure(context, job, qemu)),
            Contender::new(US_RAM, move |context| measure(context, job, ours_in_memory)),
        ];
        let targets = vec![Target { metric: IOPS, goal: Goal::MinTimes(times, QEMU) }];
        Case { name: format!("{rw} {block} QD{depth}"), contenders, targets }
    };
    vec![
        case("randread", "4k", 1, 1.2),
        case("randwrite", "4k", 1, 1.2),
        case("randread", "4k", 32, 2.0),
        case("randwrite", "4k", 32, 2.0),
        case("read", "256k", 8, 1.3),
        case("write", "256k", 8, 1.3),
    ]
}

fn ours(context: &Context, image: &Path, file: &Path) -> Command {
    serve(context, &format!("file:{}", image.display()), file)
}

fn ours_in_memory(context: &Context, _: &Path, file: &Path) -> Command {
    serve(context, &format!("ram:{DISK}"), file)
}

fn serve(context: &Context, uri: &str, file: &Path) -> Command {
    let mut command = context.blockyard();
    command.args(["serve", uri, "--fuse"]).arg(file);
    command
}

fn qemu(context: &Context, image: &Path, file: &Path) -> Command {
    let (image, file) = (image.display(), file.display());
    let mut command = context.qemu(QEMU);
    command.arg("--blockdev").arg(format!("driver=file,node-name=disk,filename={image}"));
    command
        .arg("--export")
        .arg(format!("type=fuse,id=export,node-name=disk,mountpoint={file},writable=on"));
    command
}

/// Unmounts what a server has left that did not end well.
struct Mountpoint<'a>(&'a Path);

impl Drop for Mountpoint<'_> {
    fn drop(&mut self) {
        // In the normal case it is not mounted any more.
        let _ = Command::new("umount").arg("-l").arg(self.0).output();
    }
}

fn measure(
    context: &Context,
    job: Job,
    command: fn(&Context, &Path, &Path) -> Command,
) -> Result<Sample> {
    let (dir, memory) = (fresh_dir()?, memory_dir()?);
    let (file, image) = (dir.path().join("disk"), memory.path().join("image"));
    File::create(&file)?;
    fill(&image)?;
    let _mountpoint = Mountpoint(&file);
    let mut command = command(context, &image, &file);
    command.env("BLOCKYARD_RUNTIME_DIR", dir.path().join("run"));
    let server = Server::start(&mut command, &dir.path().join("log"))?;
    wait_mounted(&server, &file)?;
    // The memory of a RAM disk, which nobody has filled, is there then, and everybody's code and caches are warm.
    let warm = Job { rw: "write", block: "1M", depth: 4 };
    capture(&mut fio(context, &file, warm)).context("cannot fill the disk")?;
    let before = cpu_time(server.pid())?;
    let outcome = understand(&capture(timed(&mut fio(context, &file, job), context))?)?;
    let spent = cpu_time(server.pid())? - before;
    Ok(vec![
        (IOPS, outcome.iops),
        (P50, outcome.p50_us),
        (P99, outcome.p99_us),
        (SERVER_CPU, spent.as_secs_f64() * 1e6 / outcome.ops),
        (CLIENT_CPU, outcome.client_cpu_us_per_op),
    ])
}

fn fio(context: &Context, file: &Path, job: Job) -> Command {
    let mut command = context.command("fio");
    drive(&mut command, "libaio", job);
    command.arg("--direct=1").arg("--allow_file_create=0").arg(format!("--size={SPAN}"));
    command.arg(format!("--filename={}", file.display()));
    command
}

/// Data in all of the file.
fn fill(image: &Path) -> Result<()> {
    const CHUNK: usize = 1 << 20;
    let mut file = File::create(image)?;
    let data: Vec<u8> = (1..=251).cycle().take(CHUNK).collect();
    for _ in 0..DISK_BYTES / CHUNK as u64 {
        file.write_all(&data)?;
    }
    Ok(())
}

fn wait_mounted(server: &Server, file: &Path) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    while fs::metadata(file).map_or(0, |found| found.len()) != DISK_BYTES {
        if Instant::now() > deadline {
            bail!(
                "{} does not become a disk; its server said:\n{}",
                file.display(),
                server.logged()
            );
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
