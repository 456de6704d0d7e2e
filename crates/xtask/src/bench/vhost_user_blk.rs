//! vhost-user-blk back-ends, loaded by blkio: us beside qemu-storage-daemon.

use super::measure::{CLIENT_CPU, Case, Contender, Goal, IOPS, SERVER_CPU, Sample, Target, US};
use super::nbd_light::number;
use super::process::cpu_time;
use super::servers::{DISK, DISK_BYTES};
use super::{Context, VHOST_USER_LOAD};
use crate::child::{Server, fresh_dir};
use crate::paths;
use crate::run::capture;
use anyhow::Result;
use std::fs::File;
use std::path::Path;
use std::process::Command;

const QEMU: &str = "qemu-storage-daemon";
/// The same load on our disk in memory, where the peer has a file in memory.
const US_RAM: &str = "us, ram:";

/// Where the bytes live.
#[derive(Clone, Copy)]
enum Disk {
    /// Nowhere.
    Null,
    /// In a file in memory.
    File,
    /// In our own memory.
    Ram,
}

#[derive(Clone, Copy)]
struct Load {
    rw: &'static str,
    block_bytes: u32,
    depth: u32,
}

pub(super) fn cases(_: &Context) -> Vec<Case> {
    let load = |rw, block_bytes, depth| Load { rw, block_bytes, depth };
    let faster = |times| Some(Target { metric: IOPS, goal: Goal::MinTimes(times, QEMU) });
    vec![
        case("no disk", Disk::Null, load("read", 4096, 32), faster(1.5)),
        case("no disk", Disk::Null, load("read", 4096, 1), faster(1.0)),
        case("file", Disk::File, load("read", 4096, 32), faster(1.5)),
        case("file", Disk::File, load("write", 4096, 32), faster(1.5)),
        case("file", Disk::File, load("read", 4096, 1), faster(1.0)),
        case("file", Disk::File, load("read", 256 << 10, 8), None),
    ]
}

fn case(name: &str, disk: Disk, load: Load, target: Option<Target>) -> Case {
    let ours = move |disk| move |context: &Context| measure(context, load, disk, blockyard);
    let mut contenders = vec![
        Contender::new(US, ours(disk)),
        Contender::new(QEMU, move |context| measure(context, load, disk, qemu)),
    ];
    if matches!(disk, Disk::File) {
        contenders.push(Contender::new(US_RAM, ours(Disk::Ram)));
    }
    let Load { rw, block_bytes, depth } = load;
    Case {
        name: format!("{name}: {}k {rw} QD{depth}", block_bytes >> 10),
        contenders,
        targets: target.into_iter().collect(),
    }
}

fn blockyard(context: &Context, disk: Disk, image: &Path, socket: &Path) -> Command {
    let uri = match disk {
        Disk::Null => format!("null:{DISK}"),
        Disk::File => format!("file:{}", image.display()),
        Disk::Ram => format!("ram:{DISK}"),
    };
    let mut command = context.blockyard();
    command.args(["serve", &uri, "--vhost-user-blk"]).arg(socket);
    command
}

fn qemu(context: &Context, disk: Disk, image: &Path, socket: &Path) -> Command {
    let node = match disk {
        Disk::Null => format!("driver=null-co,node-name=disk,size={DISK_BYTES},read-zeroes=off"),
        Disk::File | Disk::Ram => {
            let name = image.display();
            format!("driver=file,node-name=disk,filename={name},aio=io_uring,cache.direct=off")
        }
    };
    let path = socket.display();
    let mut command = context.command(QEMU);
    command.args(["--object", "iothread,id=thread", "--blockdev", &node, "--export"]).arg(format!(
        "type=vhost-user-blk,id=export,node-name=disk,iothread=thread,writable=on,addr.type=unix,addr.path={path}"
    ));
    command
}

fn measure(
    context: &Context,
    load: Load,
    disk: Disk,
    command: fn(&Context, Disk, &Path, &Path) -> Command,
) -> Result<Sample> {
    let dir = fresh_dir()?;
    let memory = tempfile::Builder::new().prefix("blockyard-").tempdir_in("/dev/shm")?;
    let (socket, image) = (dir.path().join("socket"), memory.path().join("image"));
    File::create(&image)?.set_len(DISK_BYTES)?;
    let mut command = command(context, disk, &image, &socket);
    let mut server = Server::start(&mut command, &dir.path().join("log"))?;
    server.wait_accepting(&socket)?;
    // Once over the disk, so that its memory is there.
    run(context, &socket, Load { rw: "write", block_bytes: 1 << 20, depth: 4 }, 1)?;
    let before = cpu_time(server.pid())?;
    let said = run(context, &socket, load, context.seconds)?;
    let spent = cpu_time(server.pid())? - before;
    let iops = number(&said, "iops")?;
    Ok(vec![
        (IOPS, iops),
        (SERVER_CPU, spent.as_secs_f64() * 1e6 / (iops * context.seconds as f64)),
        (CLIENT_CPU, number(&said, "client_cpu_us")?),
    ])
}

fn run(context: &Context, socket: &Path, load: Load, seconds: u64) -> Result<String> {
    let mut command = context.command(paths::release_program(VHOST_USER_LOAD.1));
    command.arg(socket).arg(load.rw);
    command.args([u64::from(load.block_bytes), load.depth.into(), seconds].map(|n| n.to_string()));
    capture(&mut command)
}
