//! Images as disks: served, copied, compared, by one writer at a time, and after a kill.

use std::process::Command;

use rustix::process::Signal;

use crate::common::{Daemon, noise, peer};
use crate::{Yard, text};

#[test]
fn others_read_what_was_written_to_a_served_image() {
    let yard = Yard::new();
    let bytes = noise(9 << 20, 7);
    let file = yard.write("file", &bytes);
    yard.image(&["create", "a", "-s", "9"]);
    let daemon = Daemon::serve(&[yard.uri("a")]);
    let uri = daemon.uri("a");
    peer("nbdcopy", &[text(&file), &uri]);
    let back = yard.path("back");
    peer("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, text(&back)]);
    assert!(std::fs::read(&back).unwrap() == bytes);
    // A second writer is told who the first one is; a reader is not in the way.
    let pid = daemon.pid().to_string();
    yard.try_image(&["rm", "a"]).code(75).contains(&["in use by process", &pid]);
    yard.try_image(&["trash", "mv", "a"]).code(75);
    yard.try_image(&["sparsify", "a"]).code(75);
    yard.run(&["copy", text(&file), &yard.uri("a")]).code(75).contains(&[&pid]);
    assert!(yard.image(&["status", "a"]).contains(&pid));
    assert!(yard.image(&["ls", "-l"]).contains("excl"));
    yard.run(&["compare", text(&file), &yard.uri("a")]).code(0);
    yard.run(&["info", &yard.uri("a"), "--size"]).code(0).contains(&["9437184"]);
    yard.run(&["check", &yard.uri("a")]).code(0);
    daemon.stop();
    yard.image(&["snap", "create", "a@s"]);
    assert!(yard.bytes("a@s") == bytes);
    yard.image(&["object-map", "check", "a"]);
}

#[test]
fn a_snapshot_is_a_disk_that_is_only_read() {
    let yard = Yard::new();
    let bytes = noise(5 << 20, 8);
    let file = yard.write("file", &bytes);
    yard.image(&["import", text(&file), "a"]);
    yard.image(&["snap", "create", "a@s"]);
    let (image, snapshot) = (yard.uri("a"), yard.uri("a@s"));
    let daemon = Daemon::serve(&[&*snapshot, "--name", "s"]);
    peer("nbdinfo", &["--is", "read-only", &daemon.uri("s")]);
    // The image is written meanwhile.
    yard.run(&["copy", "null:5M", &image]).code(0);
    let back = yard.path("back");
    peer("nbdcopy", &[&daemon.uri("s"), text(&back)]);
    assert!(std::fs::read(&back).unwrap() == bytes);
    yard.run(&["info", &snapshot, "--is", "read-only"]).code(0);
    yard.run(&["copy", text(&file), &snapshot]).code(77);
    yard.run(&["compare", &image, &snapshot]).code(1);
    yard.run(&["copy", &snapshot, &image]).code(0);
    yard.run(&["compare", &image, &snapshot]).code(0);
    daemon.stop();
}

#[test]
fn an_image_that_is_not_there_is_made_by_copying() {
    let yard = Yard::new();
    let file = yard.write("file", &noise((1 << 20) + 777, 9));
    yard.run(&["copy", text(&file), &yard.uri("new")]).code(0);
    yard.run(&["compare", text(&file), &yard.uri("new")]).code(0);
    let map = yard.run(&["map", &yard.uri("new"), "--json"]);
    map.code(0);
    yard.run(&["serve", &yard.uri("other"), "--run", "true"]).code(1).contains(&["image ls"]);
    let made = format!("{}?create=8M", yard.uri("other"));
    yard.run(&["serve", &made, "--run", "nbdinfo --size \"$uri\""]).code(0).contains(&["8388608"]);
    yard.run(&["copy", &yard.uri("new"), &yard.uri("new")]).code(64);
}

/// What was acknowledged is there after a kill, and whoever comes next has the image at once.
#[test]
fn what_was_acknowledged_survives_a_kill() {
    let yard = Yard::new();
    yard.image(&["create", "a", "-s", "16"]);
    for round in 1..4_u64 {
        let daemon = Daemon::serve(&[yard.uri("a")]);
        let script = format!(
            "h.pwrite(bytes([{round}]) * 65536, {round} << 22)\nh.flush()\nh.pwrite(b'x' * 512, 512)"
        );
        peer("nbdsh", &["-u", &daemon.uri("a"), "-c", &script]);
        daemon.signal(Signal::KILL);
        daemon.wait();
        let next = Daemon::serve(&[yard.uri("a")]);
        let look = (1..=round)
            .map(|round| {
                format!("assert h.pread(65536, {round} << 22) == bytes([{round}]) * 65536")
            })
            .collect::<Vec<_>>()
            .join("\n");
        peer("nbdsh", &["-u", &next.uri("a"), "-c", &look]);
        next.stop();
    }
    yard.image(&["object-map", "check", "a"]);
    let said = yard.image(&["check"]);
    assert!(said.contains("0 problems"), "{said}");
}

/// The daemon that serves an image changes it for whoever wants that, and keeps its lock.
#[test]
fn an_image_is_changed_while_it_is_served() {
    let yard = Yard::new();
    yard.image(&["create", "a", "-s", "8", "--order", "20"]);
    let daemon = Daemon::serve(&[yard.uri("a")]);
    let uri = daemon.uri("a");
    let write = |byte: char| {
        let script = format!("h.pwrite(b'{byte}' * 4096, 4096)\nh.flush()");
        peer("nbdsh", &["-u", &uri, "-c", &script]);
    };
    write('1');
    let lock = yard.json(&["lock", "ls", "a"]);
    assert_eq!(lock.as_array().unwrap().len(), 1, "{lock}");
    // Whoever breaks the lock of a client that is alive takes all of its images from it.
    let [id, locker] = ["id", "locker"].map(|key| lock[0][key].as_str().unwrap());
    let refused = yard.try_image(&["lock", "rm", "a", id, locker]);
    refused.code(75).contains(&["is alive", "lock rm --force IMAGE ID CLIENT"]);
    yard.try_image(&["lock", "rm", "--force", "a", id, locker]).code(75);
    yard.image(&["snap", "create", "a@one"]);
    write('2');
    yard.image(&["snap", "create", "a@two"]);
    yard.image(&["snap", "rename", "a@two", "a@second"]);
    yard.image(&["snap", "protect", "a@one"]);
    yard.try_image(&["snap", "rm", "a@one"]).code(75);
    write('3');
    yard.image(&["resize", "a", "-s", "12"]);
    let has_size = |bytes: u64| {
        let begun = std::time::Instant::now();
        while peer("nbdinfo", &["--size", &uri]).trim() != bytes.to_string() {
            // It follows in its own time.
            assert!(begun.elapsed().as_secs() < 60, "the disk does not get {bytes} bytes");
        }
    };
    has_size(12 << 20);
    yard.image(&["rename", "a", "b"]);
    for (view, byte) in [("b@one", b'1'), ("b@second", b'2')] {
        assert_eq!(yard.bytes(view)[4096..8192], [byte; 4096], "{view}");
    }
    let look = "assert h.pread(4096, 4096) == b'3' * 4096\nh.pwrite(b'4' * 512, 12582400)";
    peer("nbdsh", &["-u", &uri, "-c", look]);
    yard.image(&["resize", "b", "-s", "2", "--allow-shrink"]);
    let beyond = "try:\n h.pwrite(b'5' * 512, 12582400)\n assert False\nexcept nbd.Error: pass";
    peer("nbdsh", &["-u", &uri, "-c", beyond]);
    has_size(2 << 20);
    assert_eq!(yard.json(&["lock", "ls", "b"]), lock, "the lock was not given away");
    daemon.stop();
    assert_eq!(yard.json(&["lock", "ls", "b"]).as_array().unwrap().len(), 0);
    yard.image(&["object-map", "check", "b"]);
    yard.image(&["snap", "unprotect", "b@one"]);
    yard.image(&["snap", "purge", "b"]);
    assert!(yard.image(&["check"]).contains("0 problems"));
}

#[test]
fn a_clone_is_flattened_while_it_is_served() {
    let yard = Yard::new();
    let bytes = noise(6 << 20, 11);
    let file = yard.write("file", &bytes);
    yard.image(&["import", text(&file), "a", "--order", "18"]);
    yard.image(&["snap", "create", "a@s"]);
    yard.image(&["clone", "a@s", "c"]);
    let daemon = Daemon::serve(&[yard.uri("c")]);
    peer("nbdsh", &["-u", &daemon.uri("c"), "-c", "h.pwrite(b'x' * 65536, 65536)"]);
    yard.image(&["flatten", "c"]);
    let back = yard.path("back");
    peer("nbdcopy", &[&daemon.uri("c"), text(&back)]);
    daemon.stop();
    let mut expected = bytes;
    expected[65536..131_072].fill(b'x');
    assert!(std::fs::read(&back).unwrap() == expected);
    assert!(yard.json(&["info", "c"]).get("parent").is_none());
    yard.image(&["snap", "purge", "a"]);
}

#[test]
fn a_disk_in_an_image_grows_while_it_is_served() {
    let yard = Yard::new();
    yard.image(&["create", "a", "-s", "8"]);
    let daemon = Daemon::serve(&[yard.uri("a")]);
    daemon.run(&["set", "a", "size=12M"]).code(0);
    assert_eq!(peer("nbdinfo", &["--size", &daemon.uri("a")]).trim(), "12582912");
    daemon.stop();
    assert_eq!(yard.json(&["info", "a"])["size"], 12 << 20);
}

#[test]
fn watching_ends_when_it_is_interrupted() {
    let yard = Yard::new();
    yard.image(&["create", "a", "-s", "1"]);
    let mut command = Command::new("timeout");
    // It is there when it has said so; then it is interrupted.
    let program = env!("CARGO_BIN_EXE_blockyard");
    let script = format!(
        "{program} image -d {} watch a 2>said & pid=$!; \
         until grep -q watching said; do kill -0 $pid; done; kill -INT $pid; wait $pid",
        yard.store().display()
    );
    let said =
        command.args(["120", "sh", "-ec", &script]).current_dir(yard.dir.path()).output().unwrap();
    assert!(said.status.success(), "{said:?}");
}
