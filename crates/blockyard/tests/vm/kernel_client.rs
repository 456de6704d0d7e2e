//! The kernel's NBD client, configured by nbd-client, on our server on the host.

use crate::common::peer;
use crate::{nbd_guest, serve_tcp, succeed};
use std::fs::OpenOptions;
use tempfile::TempDir;

/// By netlink and by ioctl, over one connection and over several; on a RAM disk and on a file.
#[test]
fn file_systems_over_one_and_several_connections() {
    let (daemon, port) = serve_tcp(
        TempDir::new().unwrap(),
        0,
        &["ram:64M", "file:disk.img?create=64M", "--threads", "2"],
    );
    let guest = nbd_guest().script(&format!("PORT={port}\n{}", include_str!("kernel_client.sh")));
    let mut guest = guest.boot().unwrap();
    for export in ["ram0", "disk"] {
        guest.expect("how many clients?").unwrap();
        let report = daemon.report();
        let clients = report["nbd"]["clients"].as_array().unwrap().len();
        guest.answer(&clients.to_string()).unwrap();
        guest.expect("how much data is left?").unwrap();
        let uri = format!("nbd://127.0.0.1:{port}/{export}");
        let map = peer("nbdinfo", &["--map", &uri]);
        let is_empty = map.lines().all(|line| line.ends_with("hole,zero"));
        guest.answer(if is_empty { "none" } else { &map }.lines().next().unwrap()).unwrap();
    }
    succeed(guest);
    let log = daemon.stop();
    assert!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");
}

#[test]
fn a_read_only_export_is_a_read_only_device() {
    let (daemon, port) = serve_tcp(TempDir::new().unwrap(), 0, &["ram:8M", "--read-only"]);
    let script = "set -e
nbd-client -N ram0 10.0.2.2 $PORT /dev/nbd0
test \"$(blockdev --getro /dev/nbd0)\" = 1
check_attribute nbd0 ro 1
check_attribute nbd0 size 16384
if dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 conv=fsync; then exit 1; fi
dd if=/dev/nbd0 bs=1M of=/dev/null
nbd-client -d /dev/nbd0
no_disk_errors
";
    succeed(nbd_guest().script(&format!("PORT={port}\n{script}")).boot().unwrap());
    daemon.stop();
}

/// The server is killed while the guest writes. What was synced before is there when it is served again, now on
/// a larger file, of which the device and then the file system take the new size.
#[test]
fn synced_files_survive_a_killed_server_and_the_disk_grows() {
    let files = TempDir::new().unwrap();
    let image = files.path().join("disk.img");
    let uri = format!("file:{}", image.display());
    let (first, port) =
        serve_tcp(TempDir::new().unwrap(), 0, &[&format!("{uri}?create=64M"), "--threads", "2"]);
    let script = format!("PORT={port}\n{}", include_str!("killed_server.sh"));
    let mut guest = nbd_guest().program("resize2fs").script(&script).boot().unwrap();

    guest.expect("kill the server").unwrap();
    first.signal(rustix::process::Signal::KILL);
    assert!(!first.wait().0.success());
    guest.answer("killed").unwrap();

    guest.expect("start a larger one").unwrap();
    OpenOptions::new().write(true).open(&image).unwrap().set_len(96 << 20).unwrap();
    let (second, _) = serve_tcp(TempDir::new().unwrap(), port, &[&uri]);
    guest.answer("started").unwrap();
    succeed(guest);
    second.stop();
}
