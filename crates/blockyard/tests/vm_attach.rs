//! Disks attached to a real kernel, by each of its drivers.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use blockyard::yard::queue_threads::QueueThreads;
use blockyard_blkmq::{
    BlockSize, Disk, DiskConfig, MonotonicClock, OpenMode, Sector, TagSet, TagSetConfig,
};
use blockyard_conformance::{Volatile, cases};
use blockyard_export_nbd::{Address, Config, Export, Server, bind};
use blockyard_lab::vm::{Guest, Vm};
use blockyard_sys::ublk::Control;
use tempfile::TempDir;

/// Software emulation on a busy machine: some minutes.
const LIMIT: Duration = Duration::from_secs(360);
/// Little: the kernel, the root with its programs, and some to spare.
const MEMORY_MIB: u32 = 384;
/// `ENODEV`.
const NO_DEVICE: i32 = 19;
const SHARED: &str = include_str!("vm/attach.sh");

/// Runs a script in a guest that has both drivers, with those options of attach.
fn run(options: &str, script: &str) {
    run_in(Vm::new(), options, script);
}

fn run_in(vm: Vm, options: &str, script: &str) {
    succeed(boot(vm, options, script));
}

fn boot(vm: Vm, options: &str, script: &str) -> Guest {
    let mut vm = vm.module("ublk_drv").module("nbd").module("ext4").limit(LIMIT);
    vm = vm.program(&common::static_blockyard());
    for program in
        ["mkfs.ext4", "mke2fs", "e2fsck", "fstrim", "blkdiscard", "blockdev", "sfdisk", "setpriv"]
    {
        vm = vm.program(program);
    }
    vm.script(&format!("VIA='{options}'\n{SHARED}\n{script}")).boot().unwrap()
}

fn succeed(guest: Guest) {
    let outcome = guest.finish().unwrap();
    assert_eq!(outcome.status, 0, "{}", outcome.console);
}

const LIFECYCLE: &str = include_str!("vm/lifecycle.sh");
const RECOVERY: &str = include_str!("vm/recovery.sh");
const HOSTILE: &str = include_str!("vm/hostile.sh");
const OWNERSHIP: &str = include_str!("vm/ownership.sh");

#[test]
fn ublk_from_attach_to_detach() {
    // The best there is.
    run("", LIFECYCLE);
}

#[test]
fn nbd_from_attach_to_detach() {
    run("--via nbd", LIFECYCLE);
}

#[test]
fn nbd_with_three_connections_from_attach_to_detach() {
    run("--via nbd --connections 3", LIFECYCLE);
}

#[test]
fn nbd_by_ioctl_from_attach_to_detach() {
    run("--via nbd-ioctl", LIFECYCLE);
}

/// A kernel before 6.15, and 6.12 of Debian's backports, frees a command of a killed daemon to which a request is on its way
/// (`ublk_cancel_cmd` does not look), and then works on what is in its place: I/O fails, or the kernel has a fault. So
/// daemons are killed under load where that is mended.
#[test]
fn ublk_survives_its_daemon() {
    run_in(Vm::new().newest_kernel(), "--via ublk", RECOVERY);
}

/// It takes a new size while it runs.
#[test]
fn ublk_of_the_newest_kernel() {
    run_in(Vm::new().newest_kernel(), "--via ublk", LIFECYCLE);
}

#[test]
fn nbd_survives_its_daemon() {
    run("--via nbd --timeout 3", RECOVERY);
}

#[test]
fn nbd_with_three_connections_survives_its_daemon() {
    run("--via nbd --connections 3 --timeout 3", RECOVERY);
}

#[test]
fn queues_of_four_processors_survive_their_daemon() {
    run_in(Vm::new().newest_kernel().cpus(4), "", include_str!("vm/queues.sh"));
}

/// A kernel that waits for what is asked before it takes a size takes no connections meanwhile.
#[test]
fn a_size_is_told_when_nothing_is_held_back() {
    let options = "--via nbd --timeout 3 --dead-conn-timeout 10";
    run_in(Vm::new().newest_kernel(), options, include_str!("vm/held_sizes.sh"));
}

#[test]
fn what_is_asked_twice_undoes_nothing_newer() {
    let options = "--via nbd --connections 4 --threads 4 --timeout 2";
    run_in(Vm::new().newest_kernel().cpus(4), options, include_str!("vm/asked_twice.sh"));
}

#[test]
fn devices_belong_to_those_who_made_them() {
    let this = std::env::current_exe().unwrap();
    let name = this.file_name().unwrap().to_string_lossy().into_owned();
    let vm = Vm::new().program(this.to_str().unwrap()).program("nbd-client");
    run_in(vm, "", &format!("STRANGER={name}\n{OWNERSHIP}"));
}

/// In a guest of the test above this is another program, which takes a ublk device away.
#[test]
fn a_stranger_takes_a_device_away() {
    let Ok(number) = std::env::var("BLOCKYARD_TEST_TAKE_AWAY") else { return };
    let number = number.parse().unwrap();
    let mut control = Control::open().unwrap();
    control.stop(number).unwrap();
    // Its daemon may be faster.
    let deleted = control.delete(number).map_err(|err| err.raw_os_error());
    assert!(matches!(deleted, Ok(()) | Err(Some(NO_DEVICE))), "{deleted:?}");
}

/// The disk is elsewhere, and larger than the memory: what is written has to go by the daemon before more can be.
#[test]
fn write_back_through_our_own_daemons_comes_to_an_end_where_memory_is_short() {
    let dir = TempDir::new().unwrap();
    let mut command = common::blockyard(&dir.path().join("run"));
    command.args(["serve", "ram:512M", "--nbd", "tcp:127.0.0.1:0"]);
    let daemon = common::Daemon::start(command, dir, 1);
    let port = daemon.uris[0].rsplit_once(':').unwrap().1.trim_end_matches('/').to_owned();
    let script = format!("PORT={port}\n{}", include_str!("vm/pressure.sh"));
    run_in(Vm::new().memory_mib(MEMORY_MIB).module("fuse"), "", &script);
    daemon.stop();
}

/// The disk is at a server whose power fails: what it had not flushed is gone.
#[test]
fn what_was_flushed_survives_a_power_cut() {
    const MIB: u64 = 1 << 20;
    let (volatile, carrier) = Volatile::late(24 * MIB, cases::seed());
    let set = TagSet::new(Arc::clone(&volatile), TagSetConfig::default()).unwrap();
    let limits = Volatile::limits(BlockSize::B512, false);
    let config = DiskConfig::new("x", Sector::from_bytes_floor(24 * MIB), limits);
    let clock = Arc::new(MonotonicClock::new());
    let disk = Disk::alloc(&set, (), config, Arc::<Volatile>::clone(&volatile), clock).unwrap();
    let bdev = Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap());
    let config = Config { exports: vec![Export::new("disk", bdev)], ..Config::default() };
    let threads = QueueThreads::start(1).unwrap();
    let server = Server::new(config, threads.handles().to_vec()).unwrap();
    let listener = bind(&Address::Tcp { host: "127.0.0.1".into(), port: 0 }, None).unwrap();
    let [Address::Tcp { port, .. }] = listener.addresses()[..] else { panic!("one address") };
    server.listen(listener);

    let script = format!("PORT={port}\n{}", include_str!("vm/durable.sh"));
    let mut guest = boot(Vm::new().program("dd"), "", &script);
    for (byte, via) in [(1, "--via ublk"), (2, "--via nbd")] {
        let holds =
            |part: u64| volatile.survivors(part * MIB, MIB).iter().all(|found| *found == byte);
        let mut told = |what: &str, look: &dyn Fn() -> bool| {
            guest.expect(&format!("{what} {via}")).unwrap();
            assert!(look(), "{what} {via}");
            guest.answer("").unwrap();
        };
        told("flushed", &|| holds(0));
        told("durable", &|| holds(0) && holds(1));
        told("written", &|| !holds(2));
        told("file", &|| {
            let file = file_of(&volatile.survivors(0, 24 * MIB));
            file.len() as u64 == MIB && file.iter().all(|found| *found == byte)
        });
        told("detached", &|| true);
    }
    succeed(guest);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(server.shutdown(LIMIT));
    threads.shutdown();
    drop((disk, set, carrier));
}

/// What the file `file` holds, once what a power cut has left of its file system was put in order.
fn file_of(image: &[u8]) -> Vec<u8> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, image).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new(program);
        command.args(arguments).arg(&path).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.output().unwrap()
    };
    let checked = run("e2fsck", &["-f", "-y"]);
    // 1: errors were corrected, or the journal was replayed.
    assert!(matches!(checked.status.code(), Some(0 | 1)), "{checked:?}");
    run("debugfs", &["-R", "cat /file"]).stdout
}

#[test]
fn ublk_daemons_that_die_early_leave_nothing_for_good() {
    // Kernels such as 6.12 look for partitions with a lock held that a server killed then never gives back: the
    // steps end before that.
    run("--via ublk", &format!("STEPS=4\n{HOSTILE}"));
}

#[test]
fn nbd_daemons_that_die_early_leave_nothing_for_good() {
    run("--via nbd --timeout 3", &format!("STEPS=16\n{HOSTILE}"));
}
