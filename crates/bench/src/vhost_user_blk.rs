//! vhost-user-blk back-ends, loaded by blkio: us beside qemu-storage-daemon, on nothing, on a file in memory (tmpfs), and on a
//! file of the file system that `target` is on, in the page cache and past it. Files have all their data before anybody starts,
//! so that nobody allocates. The peer does I/O by threads, its default, and, where the file is not in memory, by io_uring,
//! too: the better one counts. Of a file in memory io_uring hands each operation to a thread, which serves nobody.

use super::measure::{CLIENT_CPU, Case, Contender, Goal, IOPS, SERVER_CPU, Sample, Target, US};
use super::nbd_light::number;
use super::process::cpu_time;
use super::servers::{DISK, DISK_BYTES};
use super::{Context, VHOST_USER_LOAD};
use anyhow::Result;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use xtask::child::{Server, fresh_dir};
use xtask::paths;
use xtask::run::capture;

const QEMU: &str = "qemu-storage-daemon";
const QEMU_URING: &str = "qemu-storage-daemon, io_uring";
/// The same load on our disk in memory, where the peer has a file in memory.
const US_RAM: &str = "us, ram:";

/// Where the bytes live.
#[derive(Clone, Copy)]
enum Disk {
    /// Nowhere.
    Null,
    /// In a file in memory.
    File,
    /// In a file on storage, all of it in the page cache.
    Cached,
    /// In a file on storage, past the page cache.
    Storage,
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
    let than = |times, peer| Target { metric: IOPS, goal: Goal::MinTimes(times, peer) };
    let faster = |times| vec![than(times, QEMU)];
    let than_both = |times| vec![than(times, QEMU), than(times, QEMU_URING)];
    vec![
        case("no disk", Disk::Null, load("read", 4096, 32), faster(1.5)),
        case("no disk", Disk::Null, load("read", 4096, 1), faster(1.0)),
        case("file in memory", Disk::File, load("read", 4096, 32), faster(1.5)),
        case("file in memory", Disk::File, load("write", 4096, 32), faster(1.5)),
        case("file in memory", Disk::File, load("read", 4096, 1), faster(1.0)),
        case("file in memory", Disk::File, load("read", 256 << 10, 8), faster(1.3)),
        case("cached file", Disk::Cached, load("read", 4096, 32), than_both(1.0)),
        case("cached file", Disk::Cached, load("read", 256 << 10, 8), than_both(1.3)),
        case("file on storage", Disk::Storage, load("read", 4096, 32), vec![]),
        case("file on storage", Disk::Storage, load("write", 4096, 32), vec![]),
        case("file on storage", Disk::Storage, load("read", 4096, 1), vec![]),
    ]
}

fn case(name: &str, disk: Disk, load: Load, targets: Vec<Target>) -> Case {
    let ours = move |disk| move |context: &Context| measure(context, load, disk, blockyard);
    let mut contenders = vec![
        Contender::new(US, ours(disk)),
        Contender::new(QEMU, move |context| measure(context, load, disk, qemu)),
    ];
    if matches!(disk, Disk::Cached | Disk::Storage) {
        contenders.push(Contender::new(QEMU_URING, move |context| {
            measure(context, load, disk, qemu_uring)
        }));
    }
    if matches!(disk, Disk::File) {
        contenders.push(Contender::new(US_RAM, ours(Disk::Ram)));
    }
    let Load { rw, block_bytes, depth } = load;
    Case { name: format!("{name}: {}k {rw} QD{depth}", block_bytes >> 10), contenders, targets }
}

fn blockyard(context: &Context, disk: Disk, image: &Path, socket: &Path) -> Command {
    let uri = match disk {
        Disk::Null => format!("null:{DISK}"),
        Disk::File | Disk::Cached => format!("file:{}", image.display()),
        Disk::Storage => format!("file:{}?direct=1", image.display()),
        Disk::Ram => format!("ram:{DISK}"),
    };
    let mut command = context.blockyard();
    command.args(["serve", &uri, "--vhost-user-blk"]).arg(socket);
    command
}

fn qemu(context: &Context, disk: Disk, image: &Path, socket: &Path) -> Command {
    qemu_by("threads", context, disk, image, socket)
}

fn qemu_uring(context: &Context, disk: Disk, image: &Path, socket: &Path) -> Command {
    qemu_by("io_uring", context, disk, image, socket)
}

fn qemu_by(aio: &str, context: &Context, disk: Disk, image: &Path, socket: &Path) -> Command {
    let node = match disk {
        Disk::Null => format!("driver=null-co,node-name=disk,size={DISK_BYTES},read-zeroes=off"),
        Disk::File | Disk::Cached | Disk::Storage | Disk::Ram => {
            let name = image.display();
            let direct = if matches!(disk, Disk::Storage) { "on" } else { "off" };
            format!("driver=file,node-name=disk,filename={name},aio={aio},cache.direct={direct}")
        }
    };
    let path = socket.display();
    let mut command = context.qemu(QEMU);
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
    let folder = match disk {
        Disk::Cached | Disk::Storage => paths::target(),
        _ => Path::new("/dev/shm").to_owned(),
    };
    let folder = tempfile::Builder::new().prefix("blockyard-").tempdir_in(folder)?;
    let (socket, image) = (dir.path().join("socket"), folder.path().join("image"));
    if matches!(disk, Disk::File | Disk::Cached | Disk::Storage) {
        fill(&image)?;
    } else {
        File::create(&image)?.set_len(DISK_BYTES)?;
    }
    let mut command = command(context, disk, &image, &socket);
    let mut server = Server::start(&mut command, &dir.path().join("log"))?;
    server.wait_accepting(&socket)?;
    // The memory of a RAM disk, which nobody has filled, is there then, and everybody's code and caches are warm.
    let warm_up_seconds = if matches!(disk, Disk::Ram) { 3 } else { 1 };
    run(context, &socket, Load { rw: "write", block_bytes: 1 << 20, depth: 4 }, warm_up_seconds)?;
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

/// Data in all of the file.
fn fill(image: &Path) -> Result<()> {
    const CHUNK: usize = 1 << 20;
    let mut file = File::create(image)?;
    let data: Vec<u8> = (1..=251).cycle().take(CHUNK).collect();
    for _ in 0..DISK_BYTES / CHUNK as u64 {
        file.write_all(&data)?;
    }
    Ok(file.sync_all()?)
}

fn run(context: &Context, socket: &Path, load: Load, seconds: u64) -> Result<String> {
    let mut command = context.command(context.built(VHOST_USER_LOAD.1));
    command.arg(socket).arg(load.rw);
    command.args([u64::from(load.block_bytes), load.depth.into(), seconds].map(|n| n.to_string()));
    capture(&mut command)
}
