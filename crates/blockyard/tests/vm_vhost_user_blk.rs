//! A disk of ours under a real guest's virtio_blk, by QEMU's vhost-user-blk.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use blockyard::disks::DiskMaker;
use blockyard::yard::queue_threads::QueueThreads;
use blockyard_blkmq::{BlockLayer, Clock, MonotonicClock, OpenMode, Sector};
use blockyard_export_vhost_user_blk::{Export, bind, start};
use blockyard_lab::vm::Vm;
use common::{Daemon, Guard, system};
use tempfile::TempDir;

/// Software emulation on a busy machine: some minutes.
const LIMIT: Duration = Duration::from_secs(420);
const MIB: u64 = 1 << 20;
/// Times that the back-end is killed under load.
const KILLS: usize = 4;

fn vm() -> Vm {
    let vm = Vm::new().module("virtio_blk").module("ext4").limit(LIMIT);
    ["mkfs.ext4", "e2fsck", "fstrim", "blkdiscard", "blockdev"].into_iter().fold(vm, Vm::program)
}

/// Writes, reads back after a remount, gives space back; a second disk is read-only.
const LIFECYCLE: &str = "set -e
test $(cat /sys/block/vda/serial) = blockyard-test
test $(cat /sys/block/vdb/ro) = 1
test $(blockdev --getsize64 /dev/vda) = 134217728
mkfs.ext4 -q /dev/vda
mount -t ext4 /dev/vda /mnt
dd if=/dev/urandom of=/mnt/a bs=64k count=512
cp /mnt/a /mnt/b
(cd /mnt && md5sum a b) > /tmp/sums
umount /mnt
echo 3 > /proc/sys/vm/drop_caches
mount -t ext4 /dev/vda /mnt
(cd /mnt && md5sum -c /tmp/sums)
rm /mnt/a /mnt/b
sync
fstrim -v /mnt
umount /mnt
e2fsck -fn /dev/vda
host trimmed
dd if=/dev/vda of=/dev/null bs=4k count=8
/bin/blkdiscard -z /dev/vda
cmp -n 1048576 /dev/vda /dev/zero
dd if=/dev/vdb of=/dev/null bs=4k count=8
refuses dd if=/dev/zero of=/dev/vdb bs=4k count=1 conv=fsync
if dmesg | grep -E ' error, dev vda'; then exit 1; fi
";

#[test]
fn a_guest_makes_a_file_system_and_finds_what_it_wrote() {
    let dir = TempDir::new().unwrap();
    let (socket, fixed) = (dir.path().join("vm.sock"), dir.path().join("fixed.sock"));
    let image = dir.path().join("disk.img");
    let daemon = Daemon::serve(&[
        format!("file:{}?create=128M", image.display()),
        "ram:1M?ro=1".into(),
        format!("--vhost-user-blk={}", socket.display()),
        format!("--vhost-user-blk={}", fixed.display()),
        "--serial=blockyard-test".into(),
    ]);
    let vm = vm().vhost_user_blk(&socket, "num-queues=2").vhost_user_blk(&fixed, "num-queues=1");
    let mut guest = vm.script(LIFECYCLE).boot().unwrap();
    guest.expect("trimmed").unwrap();
    let allocated = image.metadata().unwrap().blocks() * 512;
    assert!(allocated < 24 * MIB, "the guest has given its 64 MiB back, but {allocated} are taken");
    let machine = &machine(&daemon);
    // The guest has one processor, and so uses one queue of the two.
    assert_eq!((machine["clients"].as_u64(), machine["queues"].as_u64()), (Some(1), Some(1)));
    guest.answer("go on").unwrap();
    let outcome = guest.finish().unwrap();
    assert_eq!(outcome.status, 0, "{}\n{}", outcome.console, daemon.log());
    daemon.stop();
}

/// What a daemon tells of its one vhost-user-blk export.
fn machine(daemon: &Daemon) -> serde_json::Value {
    let report = daemon.report();
    let exports = report["exports"].as_array().unwrap();
    let of_kind = exports.iter().find(|export| export["kind"] == "vhost-user-blk");
    of_kind.unwrap().clone()
}

const GROWTH: &str = "set -e
test $(blockdev --getsize64 /dev/vda) = 67108864
host booted
while test $(blockdev --getsize64 /dev/vda) != 134217728; do :; done
dd if=/dev/urandom of=/tmp/end bs=4k count=1
dd if=/tmp/end of=/dev/vda bs=4k seek=32767 conv=fsync
dd if=/dev/vda of=/tmp/read bs=4k skip=32767 count=1 iflag=direct
cmp /tmp/end /tmp/read
host grown
while test $(blockdev --getsize64 /dev/vda) != 33554432; do :; done
";

#[test]
fn a_guest_sees_its_disk_grow_and_shrink() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("vm.sock");
    let threads = QueueThreads::start(2).unwrap();
    let layer = Arc::new(BlockLayer::new());
    let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
    let plan = "ram:64M".parse().unwrap();
    let open = DiskMaker::new(&layer, threads.handles(), clock).open(&plan).unwrap();
    let disk = open.disk();
    let bdev = Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap());
    let listener = bind(&socket, None).unwrap();
    let server = start(Export::new(bdev), listener, threads.handles().to_vec()).unwrap();
    let mut guest = vm().vhost_user_blk(&socket, "num-queues=1").script(GROWTH).boot().unwrap();
    guest.expect("booted").unwrap();
    disk.set_capacity(Sector::from_bytes_floor(128 * MIB)).unwrap();
    server.follow();
    guest.answer("it grows").unwrap();
    guest.expect("grown").unwrap();
    disk.set_capacity(Sector::from_bytes_floor(32 * MIB)).unwrap();
    server.follow();
    guest.answer("it shrinks").unwrap();
    let outcome = guest.finish().unwrap();
    assert_eq!(outcome.status, 0, "{}", outcome.console);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(server.shutdown(Duration::from_secs(30)));
    layer.del_disk(disk);
}

/// Writes go on while the back-end dies; the guest waits for each death to be over, and goes on.
const LOAD: &str = "set -e
mkfs.ext4 -q -E nodiscard /dev/vda
mount -t ext4 /dev/vda /mnt
load() {
  n=0
  while ! test -e /tmp/enough; do
    dd if=/dev/urandom of=/mnt/$1.$((n % 8)) bs=32k count=8 conv=fsync 2>/dev/null || touch /tmp/failed
    n=$((n + 1))
  done
  echo $n > /tmp/rounds.$1
}
load a & load b & load c &
for kill in 1 2 3 4; do host \"under load $kill\"; done
touch /tmp/enough
wait
cat /tmp/rounds.*
refuses test -e /tmp/failed
(cd /mnt && md5sum *.*) > /tmp/sums
umount /mnt
echo 3 > /proc/sys/vm/drop_caches
e2fsck -fn /dev/vda
mount -t ext4 /dev/vda /mnt
(cd /mnt && md5sum -c /tmp/sums)
umount /mnt
no_trouble
";

/// The disk lives at a slow server, which survives, so that requests are open whenever the back-end dies.
fn slow_disk(socket: &Path) -> Guard {
    let mut command = system("nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--filter=delay", "--unix"]).arg(socket);
    command.args(["memory", "128M", "wdelay=20ms"]).stdin(Stdio::null());
    let child = command.spawn().expect("nbdkit is missing; run: cargo xtask setup");
    let mut guard = Guard(child);
    while UnixStream::connect(socket).is_err() {
        assert!(guard.0.try_wait().unwrap().is_none(), "nbdkit ended");
        blockyard_conformance::pause();
    }
    guard
}

#[test]
fn a_guest_never_sees_its_back_end_die() {
    back_end_dies(1);
}

#[test]
fn four_queues_of_a_guest_never_see_their_back_end_die() {
    back_end_dies(4);
}

/// As many processors in the guest, each with a queue of its own.
fn back_end_dies(queues: u32) {
    let dir = TempDir::new().unwrap();
    let (socket, slow) = (dir.path().join("vm.sock"), dir.path().join("slow.sock"));
    let _nbdkit = slow_disk(&slow);
    let serve = || {
        Daemon::serve(&[
            // Not the usual minute: what the daemon before had sent is done when its writes are, which take 20 ms.
            format!("nbd+unix:///?socket={}&fence_timeout=1s", slow.display()),
            format!("--vhost-user-blk={}", socket.display()),
            format!("--threads={queues}"),
            "-v".into(),
        ])
    };
    let mut daemon = serve();
    let vm = vm().cpus(queues).vhost_user_blk(&socket, &format!("num-queues={queues}"));
    let mut guest = vm.script(LOAD).boot().unwrap();
    let mut begun_anew = 0;
    for kill in 1..=KILLS {
        guest.expect(&format!("under load {kill}")).unwrap();
        // In the middle of it: so much more has been asked for since the last death.
        let served = || machine(&daemon)["requests"].as_u64().unwrap();
        while served() < 200 {
            blockyard_conformance::pause();
        }
        assert_eq!(machine(&daemon)["queues"], queues);
        daemon.signal(rustix::process::Signal::KILL);
        let (status, log) = daemon.wait();
        assert!(!status.success());
        begun_anew += log.matches("resubmitting requests").count();
        daemon = serve();
        guest.answer("go on").unwrap();
    }
    let outcome = guest.finish().unwrap();
    let log = daemon.stop();
    begun_anew += log.matches("resubmitting requests").count();
    assert_eq!(outcome.status, 0, "{}\n{log}", outcome.console);
    assert!(
        begun_anew >= KILLS / 2,
        "the back-end died {KILLS} times, and {begun_anew} times nothing was open"
    );
}

/// Programs of this kind are started with a socket that was passed to them.
#[test]
fn a_passed_socket_is_served_until_its_front_end_leaves() {
    let dir = TempDir::new().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = Command::new("bash");
    command
        .args(["-c", "exec 9<&0; exec \"$0\" vhost-user-blk --fd=9 --blk-file=ram:1M </dev/null"])
        .arg(env!("CARGO_BIN_EXE_blockyard"))
        .env("BLOCKYARD_RUNTIME_DIR", dir.path())
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    let mut child = Guard(command.spawn().unwrap());
    drop(command);
    use blockyard_vhost_user::wire::{HEADER_LEN, Header, Message, Reply};
    use std::io::{Read, Write};
    (&ours).write_all(&Message::GetQueueNum.encode(false)).unwrap();
    let mut header = [0; HEADER_LEN];
    (&ours).read_exact(&mut header).unwrap();
    let mut payload = vec![0; Header::parse(&header).unwrap().size as usize];
    (&ours).read_exact(&mut payload).unwrap();
    let reply = Reply::parse(&Message::GetQueueNum, &payload).unwrap();
    assert_eq!(reply, Reply::Number(64));
    drop(ours);
    let status = child.0.wait().unwrap();
    assert!(status.success(), "{status}");
}
