//! Faults of disks, as their clients see them: set, listed, cleared and told of while a daemon serves.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::process::{Child, Stdio};

use common::{Daemon, nbdkit, nbdsh, peer, system, try_peer};
use serde_json::{Value, json};

/// Runs `blockyard fault`, which has to do it, and gives its output.
#[track_caller]
fn fault(daemon: &Daemon, words: &str) -> String {
    let args: Vec<&str> = ["fault"].into_iter().chain(words.split(' ')).collect();
    let said = daemon.run(&args);
    assert_eq!(said.code, 0, "{words}: {}\n{}", said.out, said.err);
    said.out
}

/// The faults of a disk, as `list --json` has them.
fn faults(daemon: &Daemon, name: &str) -> Vec<Value> {
    let report = daemon.report();
    let disks = report["disks"].as_array().unwrap();
    let disk = disks.iter().find(|disk| disk["name"] == name).unwrap();
    disk["faults"].as_array().unwrap().clone()
}

fn metric(daemon: &Daemon, name: &str) -> f64 {
    let socket = daemon.path("run").join(format!("{}.sock", daemon.pid()));
    let text = peer(
        "curl",
        &["-sSf", "--unix-socket", socket.to_str().unwrap(), "http://blockyard/metrics"],
    );
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    found.unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

/// A client that does something, and says how that ended: `ok`, or the name of the error.
fn tries(daemon: &Daemon, calls: &[&str]) -> Vec<String> {
    let tried = calls.iter().map(|call| format!("t(lambda: h.{call})\n"));
    let script = format!(
        "def t(f):\n  try:\n    f()\n    print('ok')\n  except nbd.Error as e:\n    print(e.errno)\n{}",
        tried.collect::<String>()
    );
    nbdsh(&daemon.uri("a"), &script).lines().map(str::to_owned).collect()
}

#[test]
fn errors_are_injected_told_of_and_cleared() {
    let daemon = Daemon::serve(&["ram:16M?name=a", "ram:1M?name=b"]);
    let set = fault(&daemon, "a error=ENOSPC op=write range=1M+64K count=2 after=1 seed=7");
    assert_eq!(set, "a: fault 1 set: error=ENOSPC op=write range=1048576+65536 count=2 after=1\n");
    let write = "pwrite(bytearray(4096), 1 << 20)";
    let tried = tries(
        &daemon,
        &[write, write, "pread(4096, 1 << 20)", "pwrite(bytearray(4096), 0)", write, write],
    );
    assert_eq!(tried, ["ok", "ENOSPC", "ok", "ok", "ENOSPC", "ok"]);
    let told = &faults(&daemon, "a")[0];
    assert_eq!((&told["matched"], &told["injected"]), (&json!(3), &json!(2)));
    assert_eq!(faults(&daemon, "b"), [] as [Value; 0]);
    daemon.run(&["list"]).code(0).contains(&["a (faults)", "injects fault 1 into a: error=ENOSPC"]);
    daemon.run(&["fault", "a"]).code(0).contains(&["ENOSPC op=write", "INJECTED"]);
    assert_eq!(metric(&daemon, "blockyard_disk_faults{disk=\"a\"}"), 1.0);
    let injected = "blockyard_disk_faults_injected_total{disk=\"a\",fault=\"error\"}";
    assert_eq!(metric(&daemon, injected), 2.0);
    fault(&daemon, "a full");
    assert_eq!(tries(&daemon, &[write, "pread(512, 0)"]), ["ENOSPC", "ok"]);
    fault(&daemon, "a clear 2");
    assert_eq!(tries(&daemon, &[write]), ["ok"]);
    fault(&daemon, "a clear");
    daemon
        .run(&["fault", "a", "clear", "1"])
        .code(1)
        .contains(&["no fault 1", "blockyard fault a"]);
    daemon.run(&["fault", "a", "list"]).code(0).contains(&["no faults are injected into a"]);
    let log = daemon.stop();
    for line in ["fault set", "fault injected for the first time", "fault cleared"] {
        assert!(log.contains(line), "{line}: {log}");
    }
}

#[test]
fn one_in_ten_of_a_seed_is_the_same_again() {
    let run = || {
        let daemon = Daemon::serve(&["ram:16M?name=a"]);
        fault(&daemon, "a error=EIO op=read p=0.1 seed=42");
        tries(&daemon, &["pread(512, 0)"; 200])
    };
    let first = run();
    let failed = first.iter().filter(|tried| *tried == "EIO").count();
    assert!((1..100).contains(&failed), "{failed} of 200");
    assert_eq!(first, run());
}

#[test]
fn a_delay_takes_its_time_and_a_fault_ends_when_its_time_is_over() {
    let daemon = Daemon::serve(&["ram:16M?name=a"]);
    fault(&daemon, "a delay=300ms..400ms op=read for=1m");
    let begun = std::time::Instant::now();
    assert_eq!(tries(&daemon, &["pread(512, 0)"]), ["ok"]);
    assert!(begun.elapsed().as_millis() >= 300);
    let left = faults(&daemon, "a")[0]["seconds_left"].as_f64().unwrap();
    assert!((0.0..=60.0).contains(&left), "{left}");
    fault(&daemon, "a clear");
    fault(&daemon, "a error=EIO for=100ms");
    while !faults(&daemon, "a").is_empty() {
        blockyard_conformance::pause();
    }
    assert_eq!(tries(&daemon, &["pread(512, 0)"]), ["ok"]);
    assert!(daemon.stop().contains("its time is over"));
}

/// qemu-io, which does not end as long as what it asks for does not.
fn qemu_io(daemon: &Daemon, commands: &[&str]) -> Child {
    let mut command = system("qemu-io");
    command.args(["-f", "raw", "-t", "none", &daemon.uri("a")]);
    commands.iter().for_each(|it| _ = command.args(["-c", it]));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
}

fn wait_for_stalled(daemon: &Daemon, count: u64) {
    let stalled = || {
        let all = faults(daemon, "a");
        all.iter().map(|fault| fault["held"].as_u64().unwrap()).sum::<u64>()
    };
    while stalled() != count {
        blockyard_conformance::pause();
    }
}

#[test]
fn a_stall_holds_until_it_is_released_and_nobody_else() {
    let daemon = Daemon::serve(&["ram:16M?name=a", "ram:16M?name=b"]);
    fault(&daemon, "a stall op=write");
    let mut stalled = qemu_io(&daemon, &["write -P 7 0 64k"]);
    wait_for_stalled(&daemon, 1);
    assert_eq!(metric(&daemon, "blockyard_disk_stalled_requests{disk=\"a\"}"), 1.0);
    assert_eq!(tries(&daemon, &["pread(512, 0)"]), ["ok"]);
    daemon
        .run(&["set", "a", "size=32M"])
        .code(75)
        .contains(&["stalled", "blockyard fault a release"]);
    assert!(stalled.try_wait().unwrap().is_none());
    // Who leaves takes what it asked for along.
    let mut gone = qemu_io(&daemon, &["write -P 9 1M 64k"]);
    wait_for_stalled(&daemon, 2);
    gone.kill().unwrap();
    gone.wait().unwrap();
    wait_for_stalled(&daemon, 1);
    assert_eq!(fault(&daemon, "a release"), "a: released 1 requests\n");
    assert!(stalled.wait().unwrap().success());
    peer(
        "qemu-io",
        &["-f", "raw", "-r", &daemon.uri("a"), "-c", "read -P 7 0 64k", "-c", "read -P 0 1M 64k"],
    );
    daemon.run(&["set", "a", "size=32M"]).code(0);
    daemon.stop();
}

#[test]
fn a_daemon_that_ends_ends_its_stalls() {
    let daemon = Daemon::serve(&["ram:16M?name=a"]);
    fault(&daemon, "a stall op=write");
    let mut stalled = qemu_io(&daemon, &["write 0 64k"]);
    wait_for_stalled(&daemon, 1);
    let log = daemon.stop();
    assert!(log.contains("faults ended with the disk"), "{log}");
    stalled.wait().unwrap();
}

#[test]
fn a_power_cut_keeps_what_was_flushed_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let disk = format!("file:{}?create=16M&name=a", path.display());
    let daemon = Daemon::serve(&[disk.as_str()]);
    fault(&daemon, "a volatile=8M");
    let uri = daemon.uri("a");
    let io = |commands: &[&str]| {
        let args = ["-f", "raw", "-t", "none", &uri].into_iter();
        let commands = commands.iter().flat_map(|command| ["-c", command]);
        try_peer("qemu-io", &args.chain(commands).collect::<Vec<_>>())
    };
    // It flushes when it ends, and the last client has.
    io(&["write -P 1 0 1M", "flush", "write -P 2 64k 64k", "read -P 2 64k 64k"]).code(0);
    let script = "h.pwrite(bytearray(b'\\x03' * 65536), 128 << 10)\n\
                  h.pwrite(bytearray(b'\\x04' * 4096), 2 << 20, nbd.CMD_FLAG_FUA)\n\
                  h.pwrite(bytearray(b'\\x05' * 65536), 1 << 20)\nimport os\nos._exit(0)";
    nbdsh(&uri, script);
    let cut = fault(&daemon, "a power-cut");
    assert!(cut.contains("64 KiB of unflushed writes dropped"), "{cut}");
    let off = tries(&daemon, &["pread(512, 0)", "pwrite(bytearray(512), 0)", "flush()"]);
    assert_eq!(off, ["EIO"; 3]);
    fault(&daemon, "a clear 2");
    let kept = [
        "read -P 1 0 64k",
        "read -P 2 64k 64k",
        "read -P 3 128k 64k",
        "read -P 4 2M 4k",
        "read -P 0 1M 64k",
    ];
    let said = io(&kept);
    assert!(!said.out.contains("Pattern verification failed"), "{}", said.out);
    // A flush that lies makes no difference to who asks for it.
    fault(&daemon, "a flush-lies");
    io(&["write -P 6 3M 64k", "flush"]).code(0);
    fault(&daemon, "a power-cut back=100ms");
    while faults(&daemon, "a").len() > 2 {
        blockyard_conformance::pause();
    }
    assert!(io(&["read -P 0 3M 64k"]).out.contains("read 65536/65536"));
    daemon.stop();
    let left = std::fs::read(&path).unwrap();
    assert_eq!((left[0], left[64 << 10], left[2 << 20], left[3 << 20]), (1, 2, 4, 0));
}

#[test]
fn a_power_cut_is_the_same_on_every_driver() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let _server = nbdkit(&dir.path().join("kit"), &["memory", "16M"]);
    std::fs::create_dir(path("images")).unwrap();
    common::run(&["image", "create", "--dir", &path("images"), "--size", "16M", "vm"]).code(0);
    for uri in [
        "ram:16M?name=a".to_owned(),
        format!("file:{}?create=16M&name=a", path("file")),
        format!("nbd+unix:///?socket={}&name=a", path("kit")),
        format!("rbd+dir:{}/vm?name=a", path("images")),
    ] {
        let daemon = Daemon::serve(&[&uri]);
        fault(&daemon, "a volatile=8M");
        let script = "h.pwrite(b'\\x01' * 65536, 0)\nh.flush()\nh.pwrite(b'\\x02' * 65536, 32768)\n\
                      h.zero(4096, 0)\nprint(h.pread(2, 32767), h.pread(1, 0), flush=True)\n\
                      import os\nos._exit(0)";
        let seen = "bytearray(b'\\x01\\x02') bytearray(b'\\x00')\n";
        assert_eq!(nbdsh(&daemon.uri("a"), script), seen, "{uri}");
        fault(&daemon, "a power-cut");
        assert_eq!(faults(&daemon, "a")[1]["bytes"], 65536 + 4096, "{uri}");
        fault(&daemon, "a clear 2");
        let script = "print(h.pread(65536, 0) == b'\\x01' * 65536 and h.pread(65536, 65536) == bytes(65536))\n\
                      h.pwrite(b'\\x03' * 512, 0)";
        assert_eq!(nbdsh(&daemon.uri("a"), script), "True\n", "{uri}");
        // What is held when the fault is cleared is written.
        fault(&daemon, "a clear");
        assert_eq!(
            nbdsh(&daemon.uri("a"), "print(h.pread(513, 0) == b'\\x03' * 512 + b'\\x01')"),
            "True\n"
        );
        let log = daemon.stop();
        assert!(!log.contains("ERROR"), "{log}");
    }
}

#[test]
fn a_disk_with_a_volatile_cache_is_made_smaller() {
    let dir = tempfile::tempdir().unwrap();
    let file = format!("file:{}?create=16M&name=a", dir.path().join("disk.img").display());
    for uri in ["ram:16M?name=a", &file] {
        let daemon = Daemon::serve(&[uri]);
        fault(&daemon, "a volatile=8M");
        let script = "h.pwrite(b'\\x01' * 65536, 12 << 20)\nh.pwrite(b'\\x02' * 65536, 4 << 20)";
        nbdsh(&daemon.uri("a"), script);
        daemon.run(&["set", "a", "size=8M", "--shrink"]).code(0);
        assert_eq!(tries(&daemon, &["flush()"]), ["ok"], "{uri}");
        daemon.run(&["set", "a", "size=16M"]).code(0);
        let script = "print(h.pread(65536, 12 << 20) == bytes(65536), h.pread(1, 4 << 20))";
        assert_eq!(nbdsh(&daemon.uri("a"), script), "True bytearray(b'\\x02')\n", "{uri}");
        fault(&daemon, "a clear");
        daemon.stop();
    }
}

#[test]
fn torn_writes_and_corrupted_reads_are_as_they_say() {
    let daemon = Daemon::serve(&["ram:16M?name=a"]);
    fault(&daemon, "a torn seed=5 count=1");
    fault(&daemon, "a corrupt seed=5 range=8M+4K");
    let script = "try:\n  h.pwrite(bytearray(b'\\x01' * 65536), 0)\nexcept nbd.Error as e:\n  print(e.errno)\n\
                  got = h.pread(65536, 0)\nn = len(got.rstrip(b'\\0'))\n\
                  print(n % 512 == 0 and n < 65536 and got[:n] == b'\\x01' * n)\n\
                  got = h.pread(65536, (8 << 20) - 32768)\nprint(bin(int.from_bytes(got, 'big')).count('1'))";
    assert_eq!(nbdsh(&daemon.uri("a"), script), "EIO\nTrue\n1\n");
    fault(&daemon, "a clear");
    let copied = daemon.path("copy");
    peer("nbdcopy", &[daemon.uri("a"), copied.display().to_string()]);
    let copied = std::fs::read(copied).unwrap();
    assert!(copied[8 << 20..].iter().all(|&byte| byte == 0), "the disk itself is not corrupted");
}

#[test]
fn a_fault_that_cannot_be_says_what_can() {
    let daemon = Daemon::serve(&["ram:1M?name=a"]);
    for (words, why) in [
        ("error=EWHAT", "unknown error \"EWHAT\"; supported: EIO"),
        ("error=EIO p=2", "above 0 and up to 1"),
        ("error=EIO count=0", "never inject"),
        ("error=EIO range=1M+64K", "is not within the disk"),
        ("error=EIO range=0+64K range=0+1K", "given twice"),
        ("error=EIO stall", "of one kind"),
        ("erorr=EIO", "did you mean \"error\""),
        ("clear x", "invalid ID"),
    ] {
        let args: Vec<&str> = ["fault", "a"].into_iter().chain(words.split(' ')).collect();
        daemon.run(&args).code(64).contains(&[why]);
    }
    daemon.run(&["fault", "b", "stall"]).code(1).contains(&["no daemon has a disk"]);
    assert_eq!(faults(&daemon, "a"), [] as [Value; 0]);
    for _ in 0..64 {
        fault(&daemon, "a error=EIO after=1000");
    }
    daemon.run(&["fault", "a", "stall"]).code(75).contains(&["64 faults", "clear some"]);
    common::run(&["fault", "--help"]).code(0).contains(&["power-cut", "START+LEN", "ENOSPC"]);
    common::run(&["completions", "bash"]).code(0).contains(&["flush-lies"]);
}
