//! Copying a disk of which half is holes: between NBD servers, between a server and a file, and from file to file. All copy by
//! the map of the source and write zeroes where it has holes; none looks for zeroes in the data, all make the copy durable, and
//! the peers have as many requests out as serve them best. Files are where cargo builds, and in the page cache. What was copied
//! is compared afterwards, by a peer.

use super::Context;
use super::measure::{COPIER_CPU, Case, Contender, Goal, RATE, Sample, Target, US};
use super::process::cpu_time_of_ended;
use super::servers::{Served, nbdkit_of, storage_dir};
use anyhow::Result;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use tempfile::TempDir;
use xtask::run::capture;

const NBDCOPY: &str = "nbdcopy";
const QEMU_IMG: &str = "qemu-img convert";
const CP: &str = "cp";
/// Bytes of the disk, as people write it, and in MiB.
const DISK: &str = "2G";
const DISK_MIB: u64 = 2048;
/// Data and holes take turns, so many MiB each.
const HOLES_MIB: [u64; 2] = [1, 32];

/// What a disk is on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Nbd,
    File,
}

/// From there to there.
type Way = (Place, Place);

/// A command that copies from the first to the second, each a URI or a path.
type Copier = fn(&Context, Way, &str, &str) -> Command;

pub(super) fn cases(_: &Context) -> Vec<Case> {
    use Place::{File, Nbd};
    let faster = |times, peer| Target { metric: RATE, goal: Goal::MinTimes(times, peer) };
    let cheaper = Target { metric: COPIER_CPU, goal: Goal::MaxTimes(0.6, NBDCOPY) };
    let ways = [
        ("NBD to NBD", (Nbd, Nbd), vec![faster(1.3, NBDCOPY), faster(1.3, QEMU_IMG), cheaper]),
        ("file to NBD", (File, Nbd), vec![faster(1.5, NBDCOPY), faster(1.5, QEMU_IMG), cheaper]),
        ("NBD to file", (Nbd, File), vec![faster(1.3, NBDCOPY), faster(1.3, QEMU_IMG), cheaper]),
        ("file to file", (File, File), vec![faster(1.0, CP), cheaper]),
    ];
    let cases = ways.iter().flat_map(|(name, way, targets)| {
        HOLES_MIB.map(|holes_mib| case(name, *way, holes_mib, targets.clone()))
    });
    cases.collect()
}

fn case(name: &str, way: Way, holes_mib: u64, targets: Vec<Target>) -> Case {
    let contender = |name, copier: Copier| {
        Contender::new(name, move |context| measure(context, way, holes_mib, copier))
    };
    let mut contenders =
        vec![contender(US, us), contender(NBDCOPY, nbdcopy), contender(QEMU_IMG, qemu_img)];
    if way == (Place::File, Place::File) {
        contenders.push(contender(CP, cp));
    }
    Case { name: format!("{name}, holes of {holes_mib} MiB"), contenders, targets }
}

fn us(context: &Context, _: Way, from: &str, to: &str) -> Command {
    let mut command = context.blockyard();
    command.args(["copy", from, to]);
    command
}

fn nbdcopy(context: &Context, _: Way, from: &str, to: &str) -> Command {
    let mut command = context.command("nbdcopy");
    command.args(["--sparse=0", "--flush", from, to]);
    command
}

fn qemu_img(context: &Context, (_, to_place): Way, from: &str, to: &str) -> Command {
    let mut command = context.qemu("qemu-img");
    command.args(["convert", "-S", "0", "-W", "-m", "16", "-t", "writeback"]);
    if to_place == Place::Nbd {
        command.arg("-n");
    }
    command.args(["-f", "raw", "-O", "raw", from, to]);
    command
}

/// It leaves it to others to make the copy durable.
fn cp(context: &Context, _: Way, from: &str, to: &str) -> Command {
    let mut command = context.command("sh");
    command.args(["-c", "cp -- \"$0\" \"$1\" && sync --data -- \"$1\"", from, to]);
    command
}

/// A disk, until it is dropped.
enum Disk {
    Server(Served),
    Folder(TempDir),
}

impl Disk {
    /// A server of nothing yet, or a file that is not there yet.
    fn new(context: &Context, place: Place) -> Result<Self> {
        Ok(match place {
            Place::Nbd => Self::Server(nbdkit_of(context, DISK)?),
            Place::File => Self::Folder(storage_dir()?),
        })
    }

    fn name(&self) -> String {
        match self {
            Self::Server(served) => served.uri.clone(),
            Self::Folder(folder) => folder.path().join("image").display().to_string(),
        }
    }

    fn fill(&self, context: &Context, holes_mib: u64) -> Result<()> {
        match self {
            Self::Server(served) => {
                let script = format!(
                    "import os; b = os.urandom({holes_mib} << 20)\n\
                     for at in range(0, {DISK_MIB}, {holes_mib} * 2): h.pwrite(b, at << 20)"
                );
                capture(context.command("nbdsh").args(["-u", &served.uri, "-c", &script]))?;
            }
            Self::Folder(_) => fill(Path::new(&self.name()), holes_mib)?,
        }
        Ok(())
    }
}

/// The file with its data is in the page cache, and on storage: what is written back while it is copied is the copy.
fn fill(path: &Path, holes_mib: u64) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(DISK_MIB << 20)?;
    let data: Vec<u8> = (1..=251).cycle().take(1 << 20).collect();
    for mib in (0..DISK_MIB).filter(|mib| (mib / holes_mib).is_multiple_of(2)) {
        file.write_all_at(&data, mib << 20)?;
    }
    Ok(file.sync_all()?)
}

fn measure(context: &Context, way: Way, holes_mib: u64, copier: Copier) -> Result<Sample> {
    let (from, to) = (Disk::new(context, way.0)?, Disk::new(context, way.1)?);
    from.fill(context, holes_mib)?;
    let (source, target) = (from.name(), to.name());
    let (before, begun) = (cpu_time_of_ended()?, Instant::now());
    capture(&mut copier(context, way, &source, &target))?;
    let seconds = begun.elapsed().as_secs_f64();
    let spent = cpu_time_of_ended()? - before;
    let same = ["compare", "-f", "raw", "-F", "raw", &source, &target];
    capture(context.qemu("qemu-img").args(same))?;
    Ok(vec![(RATE, DISK_MIB as f64 / seconds), (COPIER_CPU, spent.as_secs_f64())])
}
