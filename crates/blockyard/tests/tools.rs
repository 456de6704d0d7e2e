//! copy, compare, map, check and run: against what the field has, and at the edges.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use blockyard_conformance::{LoopDevice, in_own_mounts};
use common::{Cleanup, Guard, Said, blockyard, nbdkit, noise, peer, run, try_peer, unix};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// Files and sockets of a test.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A sparse file with data here and there, some of it zeroes, in odd places.
    fn sparse(&self, name: &str, len: u64) -> String {
        let file = File::create(self.path(name)).unwrap();
        file.set_len(len).unwrap();
        for (seed, at) in (1..).zip([0, MIB + 512, len / 2 + 1024, len - 70_000]) {
            file.write_all_at(&noise(70_000 - 512 * seed, seed as u64), at / 512 * 512).unwrap();
        }
        file.write_all_at(&vec![0; 300_000], 2 * MIB).unwrap();
        file.sync_all().unwrap();
        self.text(name)
    }

    fn run(&self, args: &[&str]) -> Said {
        let output = blockyard(&self.path("run")).current_dir(self.0.path()).args(args).output();
        Said::of(&output.unwrap())
    }
}

fn allocated(path: &str) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).unwrap()) * 512
}

#[test]
fn copies_are_the_same_bytes_and_keep_holes() {
    let place = Place::new();
    let source = place.sparse("source", 24 * MIB);
    fs::create_dir(place.path("copy")).unwrap();
    let copied = place.run(&["copy", &source, "./copy/source", "--json"]).code(0).json();
    peer("cmp", &[&source, &place.text("copy/source")]);
    assert!(allocated(&place.text("copy/source")) <= allocated(&source));
    assert_eq!(copied["size"], 24 * MIB);
    assert_eq!(copied["zeroed"], 0, "a new file is zeroes already");
    let sum = ["copied", "zeroed", "skipped", "resumed"].map(|key| copied[key].as_u64().unwrap());
    assert_eq!(sum.iter().sum::<u64>(), 24 * MIB);
    // To a server, and back through a foreign client; over another server's headers; over two connections.
    for options in [&["memory", "24M"][..], &["--no-sr", "memory", "24M"]] {
        let socket = place.path("s");
        let _server = nbdkit(&socket, options);
        let uri = format!("{}&connections=2", unix("", &socket));
        // What was there is overwritten, holes too.
        peer("nbdsh", &["-u", &unix("", &socket), "-c", "h.pwrite(b'x' * 8388608, 0)"]);
        place.run(&["copy", &source, &uri, "--threads", "2"]).code(0).contains(&["24 MiB in"]);
        let _ = fs::remove_file(place.path("back"));
        peer("nbdcopy", &[&unix("", &socket), &place.text("back")]);
        peer("cmp", &[&source, &place.text("back")]);
        fs::remove_file(place.path("back")).unwrap();
        place.run(&["copy", &uri, "./back"]).code(0);
        peer("cmp", &[&source, &place.text("back")]);
        peer("qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &place.text("back")]);
        place.run(&["compare", &source, &uri]).code(0).contains(&["are identical"]);
    }
}

#[test]
fn zeroes_in_data_become_holes_if_asked_for() {
    let place = Place::new();
    let source = place.text("source");
    fs::write(&source, [noise(1 << 20, 1), vec![0; 8 << 20], noise(1 << 20, 2)].concat()).unwrap();
    let copied = place.run(&["copy", &source, "./plain", "--json"]).code(0).json();
    assert_eq!(copied["copied"], 10 * MIB);
    let copied =
        place.run(&["copy", &source, "./thin", "--detect-zeroes", "--json"]).code(0).json();
    assert_eq!((&copied["copied"], &copied["zeroed"]), (&(2 * MIB).into(), &(8 * MIB).into()));
    peer("cmp", &[&source, &place.text("thin")]);
    assert!(
        allocated(&place.text("thin")) < 3 * MIB && allocated(&place.text("plain")) >= 10 * MIB
    );
    // Over something else.
    fs::write(place.path("old"), noise(10 << 20, 3)).unwrap();
    place.run(&["copy", &source, "./old", "--detect-zeroes"]).code(0);
    peer("cmp", &[&source, &place.text("old")]);
}

#[test]
fn disks_that_do_not_go_together_are_refused_before_anything_is_written() {
    let place = Place::new();
    let source = place.sparse("source", 4 * MIB);
    fs::write(place.path("small"), noise(1 << 20, 9)).unwrap();
    let before = fs::read(place.path("small")).unwrap();
    place.run(&["copy", &source, "./small"]).code(1).contains(&[
        "3145728 missing",
        "truncate -s 4194304",
        "size=1048576",
    ]);
    assert!(fs::read(place.path("small")).unwrap() == before);
    place.run(&["copy", "file:source?size=1M", "./small"]).code(0);
    peer("cmp", &["-n", "1048576", &source, &place.text("small")]);
    place.run(&["copy", &source, "file:source"]).code(64).contains(&["are the same disk"]);
    let device = LoopDevice::attach(&[&source]);
    for [one, two] in [[&source, device.path()], [device.path(), &source]] {
        place.run(&["copy", one, two]).code(64).contains(&["overlap"]);
    }
    drop(device);
    place.run(&["copy", &source, "./source?ro"]).code(64).contains(&["file:./source?ro"]);
    place.run(&["copy", &source, "file:small?ro"]).code(77).contains(&["read-only"]);
    place.run(&["copy", "./none", "./new"]).code(1).contains(&["does not exist"]);
    assert!(!place.path("new").exists(), "a source that cannot be opened makes no target");
    fs::write(place.path("odd"), vec![1; 1000]).unwrap();
    place.run(&["copy", "./odd", "./even"]).code(0);
    assert_eq!(fs::read(place.path("even")).unwrap(), [1; 1000]);
    place.run(&["compare", "./odd", "./even"]).code(0);
    place.run(&["copy", "ram:1536", "ram:4K?block=4096"]).code(0);
    // What is behind the source's last byte in a larger target is not touched.
    fs::write(place.path("behind"), vec![2; 2000]).unwrap();
    place.run(&["copy", "./odd", "./behind"]).code(0);
    let behind = fs::read(place.path("behind")).unwrap();
    assert_eq!((&behind[..1000], &behind[1000..]), (&[1; 1000][..], &[2; 1000][..]));
    place.run(&["compare", "./odd", "./behind"]).code(1).contains(&["1000"]);
    // A target that is larger keeps the rest.
    fs::write(place.path("large"), noise(6 << 20, 4)).unwrap();
    let rest = fs::read(place.path("large")).unwrap()[4 << 20..].to_vec();
    place.run(&["copy", &source, "./large"]).code(0);
    peer("cmp", &["-n", "4194304", &source, &place.text("large")]);
    assert!(fs::read(place.path("large")).unwrap()[4 << 20..] == rest);
    let socket = place.path("s");
    let _server = nbdkit(&socket, &["--readonly", "memory", "4M"]);
    place.run(&["copy", &source, &unix("", &socket)]).code(77).contains(&["read-only"]);
}

#[test]
fn a_full_disk_says_where() {
    let place = Place::new();
    let mount = place.text("tmpfs");
    fs::create_dir(&mount).unwrap();
    peer("mount", &["-t", "tmpfs", "-o", "size=4M", "tmpfs", &mount]);
    let unmount = Cleanup::with(&["umount", &mount]);
    fs::write(place.path("source"), noise(16 << 20, 1)).unwrap();
    let target = format!("{mount}/target");
    place.run(&["copy", "./source", &target]).code(1).contains(&[
        "cannot write",
        "bytes at",
        &target,
    ]);
    unmount.now();
}

/// A server that is so slow that a copy from it can be stopped midway: half a second for each request, sixteen at a
/// time. nbdkit 1.32 may abort when a client goes that waits for answers (`raw_send_socket: Assertion`): whoever stops one
/// starts the server anew.
fn slow(socket: &Path, source: &str, len: u64) -> Guard {
    let size = format!("get_size=echo {len}");
    let dd = "iflag=skip_bytes,count_bytes bs=1M status=none";
    let read = format!("pread=sleep 0.5; dd if={source} skip=$4 count=$3 {dd}");
    nbdkit(socket, &["eval", "thread_model=echo parallel", &size, &read])
}

/// Starts a copy, and waits until its journal says that something is done.
fn start_copy(place: &Place, args: &[&str]) -> Guard {
    let mut command = blockyard(&place.path("run"));
    command.current_dir(place.0.path()).arg("copy").args(args).stdout(Stdio::null());
    let mut child = Guard(command.stderr(Stdio::piped()).spawn().unwrap());
    let done =
        || fs::read_to_string(place.path("journal")).is_ok_and(|text| text.contains("\ndone "));
    while !done() {
        assert!(child.0.try_wait().unwrap().is_none(), "it ended before anything was written down");
        blockyard_conformance::pause();
    }
    child
}

#[test]
fn a_copy_that_was_killed_or_interrupted_goes_on() {
    let place = Place::new();
    fs::write(place.path("source"), noise(96 << 20, 7)).unwrap();
    let start = || slow(&place.path("slow"), &place.text("source"), 96 * MIB);
    let server = start();
    let uri = format!("{}&connections=1", unix("", &place.path("slow")));
    let args = [&uri, "./target", "--resume", "journal", "--threads", "1"].map(AsRef::as_ref);
    let mut killed = start_copy(&place, &args);
    killed.0.kill().unwrap();
    killed.0.wait().unwrap();
    let first = fs::read_to_string(place.path("journal")).unwrap();
    // Another copy does not take it.
    let other = place.run(&["copy", "./source", "./target", "--resume", "journal"]);
    other.code(1).contains(&["belongs to another copy"]);
    drop(server);
    let server = start();
    let mut child = start_copy(&place, &args);
    // It has written more down than was there.
    while fs::read_to_string(place.path("journal")).unwrap() == first {
        if let Some(status) = child.0.try_wait().unwrap() {
            let mut said = String::new();
            std::io::Read::read_to_string(&mut child.0.stderr.take().unwrap(), &mut said).unwrap();
            panic!("it ended ({status}) and said {said}");
        }
        blockyard_conformance::pause();
    }
    let pid = rustix::process::Pid::from_child(&child.0);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.0.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(child.0.wait().unwrap().code(), Some(1), "{said}");
    assert!(
        said.contains("interrupted after") && said.contains("run the same command again"),
        "{said}"
    );
    drop(server);
    let _server = start();
    let all = [&["copy"], &args[..], &["--json"]].concat();
    let copied = place.run(&all).code(0).json();
    assert!(copied["resumed"].as_u64().unwrap() > 0);
    peer("cmp", &[place.text("source"), place.text("target")]);
    assert!(!place.path("journal").exists(), "there is nothing left to go on with");
    // A target that is gone is not taken for one that is half done.
    fs::write(place.path("journal"), first).unwrap();
    fs::remove_file(place.path("target")).unwrap();
    place.run(&all).code(1).contains(&["remove the journal"]);
}

#[test]
fn what_takes_long_shows_progress_on_a_terminal_only() {
    let place = Place::new();
    fs::write(place.path("source"), noise(32 << 20, 6)).unwrap();
    let _server = slow(&place.path("slow"), &place.text("source"), 32 * MIB);
    let uri = format!("{}&connections=1", unix("", &place.path("slow")));
    let binary = env!("CARGO_BIN_EXE_blockyard");
    let command = format!("{binary} copy '{uri}' {} --threads 1", place.text("target"));
    // A terminal of its own.
    let shown = peer("script", &["-qec", &command, "/dev/null"]);
    assert!(shown.contains("copying [") && shown.contains("32 MiB in"), "{shown}");
    let said = place.run(&["copy", &uri, "./target", "--threads", "1"]);
    assert_eq!(said.code(0).err, "");
}

#[test]
fn a_server_that_dies_while_it_is_copied_from_is_waited_for() {
    let place = Place::new();
    fs::write(place.path("source"), noise(64 << 20, 8)).unwrap();
    let mut server = slow(&place.path("slow"), &place.text("source"), 64 * MIB);
    let uri = format!("{}&connections=1", unix("", &place.path("slow")));
    let args = [&uri, "./target", "--resume", "journal", "--threads", "1"].map(AsRef::as_ref);
    let mut copy = start_copy(&place, &args);
    server.0.kill().unwrap();
    server.0.wait().unwrap();
    server = slow(&place.path("slow"), &place.text("source"), 64 * MIB);
    assert!(copy.0.wait().unwrap().success());
    peer("cmp", &[place.text("source"), place.text("target")]);
    drop(server);
    // One that stays away is an error within its limit.
    let socket = place.path("gone");
    let mut server = slow(&socket, &place.text("source"), 64 * MIB);
    let uri = format!("{}&connections=1&dead_conn_timeout=50ms", unix("", &socket));
    fs::remove_file(place.path("target")).unwrap();
    let args = [&uri, "./target", "--resume", "journal", "--threads", "1"].map(AsRef::as_ref);
    let mut copy = start_copy(&place, &args);
    server.0.kill().unwrap();
    server.0.wait().unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut copy.0.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(copy.0.wait().unwrap().code(), Some(1));
    assert!(said.contains("cannot read") && said.contains("bytes at"), "{said}");
}

#[test]
fn compare_finds_the_first_difference() {
    let place = Place::new();
    let one = place.sparse("one", 24 * MIB);
    fs::copy(&one, place.path("two")).unwrap();
    place.run(&["compare", "./one", "./two"]).code(0);
    let two = File::options().write(true).open(place.path("two")).unwrap();
    for at in [20 * MIB + 7, 9 * MIB + 4321, 22 * MIB] {
        two.write_all_at(b"\xff", at).unwrap();
    }
    let said = place.run(&["compare", "./one", "./two", "--json"]);
    let found = said.code(1).json();
    assert_eq!(
        (&found["same"], &found["first_difference"]),
        (&false.into(), &(9 * MIB + 4321).into())
    );
    let theirs = try_peer("cmp", &[one.as_str(), &place.text("two")]);
    assert!(theirs.out.contains(&format!("byte {}", 9 * MIB + 4322)), "{}", theirs.out);
    // Zeroes that are stored are those that are not.
    fs::write(place.path("zeroes"), vec![0; 4 << 20]).unwrap();
    place.run(&["compare", "./zeroes", "ram:4M"]).code(0);
    place.run(&["compare", "null:4M", "./zeroes"]).code(0);
    let said = place.run(&["compare", "./zeroes", "ram:5M"]);
    said.code(1).contains(&["4194304 bytes", "5242880 bytes", "from byte 4194304"]);
    place.run(&["compare", "./zeroes", "./missing"]).code(2).contains(&["does not exist"]);
    place.run(&["compare", "./zeroes", "rma:1"]).code(64);
}

#[test]
fn maps_are_those_of_other_tools() {
    let place = Place::new();
    let source = place.sparse("source", 24 * MIB);
    let theirs: serde_json::Value =
        serde_json::from_str(&peer("qemu-img", &["map", "-f", "raw", "--output=json", &source]))
            .unwrap();
    let holes = |map: &serde_json::Value, offset: &str| -> Vec<(u64, u64)> {
        let runs = map.as_array().unwrap().iter();
        let holes = runs.filter(|run| run["zero"] == true);
        holes.map(|run| (run[offset].as_u64().unwrap(), run["length"].as_u64().unwrap())).collect()
    };
    let ours = place.run(&["map", "./source", "--json"]).code(0).json();
    assert_eq!(holes(&ours, "offset"), holes(&theirs, "start"));
    let socket = place.path("s");
    let _server = nbdkit(&socket, &["memory", "24M"]);
    place.run(&["copy", "./source", &unix("", &socket), "--detect-zeroes"]).code(0);
    let fields = |text: &str| -> Vec<Vec<String>> {
        text.lines()
            .map(|line| {
                line.split_whitespace()
                    .filter(|word| word.parse::<u8>() != Ok(3))
                    .map(str::to_owned)
                    .collect()
            })
            .map(|line: Vec<String>| [&line[..2], &line[line.len() - 1..]].concat())
            .collect()
    };
    let theirs = peer("nbdinfo", &["--map", &unix("", &socket)]);
    let ours = place.run(&["map", &unix("", &socket)]);
    assert_eq!(fields(&ours.code(0).out), fields(&theirs), "{theirs}\n{}", ours.out);
    let totals = place.run(&["map", "ram:4M", "--totals", "--json"]).code(0).json();
    assert_eq!(
        (&totals[0]["bytes"], &totals[0]["description"]),
        (&4_194_304.into(), &"hole,zero".into())
    );
    place.run(&["map", "./source", "--totals"]).code(0).contains(&["data", "hole,zero", "%"]);
}

/// A server on a shell script, of which some bytes cannot be read.
fn broken(socket: &Path) -> Guard {
    let read = "if [ $4 -lt $((5242880 + 1024)) ] && [ $(($4 + $3)) -gt 5242880 ]; then \
                echo EIO bad >&2; exit 1; fi; head -c $3 /dev/zero";
    let read = format!("pread={read}");
    nbdkit(socket, &["eval", "get_size=echo 8M", &read, "open=true"])
}

#[test]
fn check_reads_everything_and_looks_at_the_partition_table() {
    let place = Place::new();
    let socket = place.path("s");
    let server = broken(&socket);
    let said = place.run(&["check", &unix("", &socket)]);
    said.code(2).contains(&["unreadable: 1024 bytes at 5242880", "errors on"]);
    drop(server);
    place.sparse("good", 24 * MIB);
    let checked = place.run(&["check", "./good", "--json"]).code(0).json();
    let sum = checked["read"].as_u64().unwrap() + checked["zero"].as_u64().unwrap();
    assert_eq!((sum, &checked["unreadable"]), (24 * MIB, &serde_json::json!([])));
    place.run(&["check", "./missing"]).code(1);
    let disk = |name: &str, script: &str| {
        File::create(place.path(name)).unwrap().set_len(16 << 20).unwrap();
        let script = format!("printf '{script}' | sfdisk -q --force {}", place.text(name));
        peer("sh", &["-c", &script]);
    };
    disk("gpt", "label: gpt\\nsize=4096\\nsize=8192\\n");
    place.run(&["check", "./gpt"]).code(0).contains(&["no errors"]);
    // The header of the primary table.
    File::options()
        .write(true)
        .open(place.path("gpt"))
        .unwrap()
        .write_all_at(b"x", 512 + 40)
        .unwrap();
    place.run(&["check", "./gpt"]).code(2).contains(&["partition table:", "primary GPT"]);
    disk("dos", "label: dos\\nstart=2048, size=4096\\nstart=10000, size=100\\n");
    place.run(&["check", "./dos"]).code(0);
    // The first sector of the second partition moves into the first one.
    let sector = 4000_u32.to_le_bytes();
    File::options()
        .write(true)
        .open(place.path("dos"))
        .unwrap()
        .write_all_at(&sector, 446 + 16 + 8)
        .unwrap();
    place.run(&["check", "./dos"]).code(2).contains(&["partitions 1 and 2 overlap"]);
}

/// As one that was made on a disk with blocks of 4096 bytes and copied into a file.
#[test]
fn a_partition_table_for_other_blocks_is_told_and_what_to_do() {
    in_own_mounts!();
    let place = Place::new();
    File::create(place.path("gpt")).unwrap().set_len(16 * MIB).unwrap();
    let device = LoopDevice::attach(&["--sector-size", "4096", &place.text("gpt")]);
    let sfdisk =
        format!("printf 'label: gpt\\nsize=1024\\n' | sfdisk -q --force {}", device.path());
    peer("sh", &["-c", &sfdisk]);
    drop(device);
    for json in [&[][..], &["--json"]] {
        let said = place.run(&[&["check", "./gpt"], json].concat());
        said.code(2).contains(&["blocks of 4096 bytes", "set block=4096"]);
    }
    place.run(&["check", "file:gpt?block=4096"]).code(0).contains(&["no errors"]);
    let found = place.run(&["info", "file:gpt?block=4096", "--json"]).code(0).json();
    assert_eq!(found["partitions"].as_array().unwrap().len(), 1, "{found}");
}

#[test]
fn run_gives_a_command_the_disk_and_takes_its_exit_code() {
    let place = Place::new();
    let source = place.sparse("source", 4 * MIB);
    let said = place.run(&["run", "./source", "--", "sh", "-c", "nbdcopy \"$uri\" out && exit 7"]);
    said.code(7);
    peer("cmp", &[&source, &place.text("out")]);
    place
        .run(&["run", "ram:1M", "--", "sh", "-c", "nbdinfo --size $uri"])
        .code(0)
        .contains(&["1048576"]);
    place
        .run(&["run", "ram:1M", "--read-only", "--", "sh", "-c", "nbdinfo --is read-only $uri"])
        .code(0);
    place
        .run(&["run", "ram:1M", "--", "no-such-command"])
        .code(127)
        .contains(&["cannot run no-such-command: no such command"]);
    place.run(&["run", "ram:1M", "--", "./source"]).code(126).contains(&["cannot run ./source"]);
    place.run(&["run", "ram:1M"]).code(64);
    let socket = place.path("s");
    let _server = nbdkit(&socket, &["memory", "2M"]);
    let uri = unix("", &socket);
    place
        .run(&["run", &uri, "--", "sh", "-c", "nbdinfo --size $uri"])
        .code(0)
        .contains(&["2097152"]);
    run(&["run", "ram:1M", "--", "sh", "-c", "kill -9 $$"]).code(137);
}

#[test]
fn the_command_gets_the_signals_and_has_its_disk_until_it_ends() {
    use rustix::process::{Pid, Signal, kill_process};
    let place = Place::new();
    let temporary = place.path("tmp");
    fs::create_dir(&temporary).unwrap();
    // A shell does not trap what it was started to ignore, as in a background job.
    let program = "import os, signal, subprocess, sys\n\
        signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}\n\
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)\n\
        open('ready', 'w').close()\n\
        signal.sigwait(signals)\n\
        size = subprocess.check_output(['nbdinfo', '--size', os.environ['uri']])\n\
        open('size', 'wb').write(size)\n\
        sys.exit(3)\n";
    fs::write(place.path("command.py"), program).unwrap();
    let script = "exec python3 command.py";
    let run: &[&str] = &["run", "ram:1M", "--", "sh", "-c", script];
    let serve: &[&str] = &["serve", "ram:1M", "--run", script];
    for args in [run, serve] {
        for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
            let mut command = blockyard(&place.path("run"));
            command.current_dir(place.0.path()).env("TMPDIR", &temporary).args(args);
            // No terminal that would send the signal to the command as well.
            let mut child = Guard(command.stdin(Stdio::null()).spawn().unwrap());
            while !place.path("ready").exists() {
                assert!(child.0.try_wait().unwrap().is_none());
                blockyard_conformance::pause();
            }
            let private: Vec<_> = fs::read_dir(&temporary).unwrap().flatten().collect();
            let mode = std::os::unix::fs::MetadataExt::mode(&private[0].metadata().unwrap());
            assert_eq!((private.len(), mode & 0o777), (1, 0o700));
            let guessed = format!("blockyard-run-{}", child.0.id());
            assert_ne!(private[0].file_name().to_str(), Some(guessed.as_str()));
            kill_process(Pid::from_child(&child.0), signal).unwrap();
            assert_eq!(child.0.wait().unwrap().code(), Some(3), "{args:?} {signal:?}");
            assert_eq!(fs::read_to_string(place.path("size")).unwrap().trim(), "1048576");
            assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "something is left behind");
            fs::remove_file(place.path("size")).unwrap();
            fs::remove_file(place.path("ready")).unwrap();
        }
    }
}

#[test]
fn extents_may_end_anywhere() {
    let place = Place::new();
    let socket = place.path("s");
    // 2^32 - 1 bytes at a time, as its file plugin caps them.
    let server = nbdkit(&socket, &["null", "8G"]);
    let uri = unix("", &socket);
    let said = place.run(&["map", &uri]);
    said.code(0);
    assert_eq!(said.out.split_whitespace().collect::<Vec<_>>(), ["0", "8589934592", "hole,zero"]);
    place.run(&["check", &uri]).code(0);
    place.run(&["copy", &uri, "./copy"]).code(0);
    place.run(&["compare", &uri, "./copy"]).code(0);
    drop(server);
    // Odd ends, and one that never gets to the end of a block.
    let bytes = noise(200 << 10, 1);
    fs::write(
        place.path("bytes"),
        [&bytes[..5001], &vec![0; 100_000 - 5001], &bytes[100_000..]].concat(),
    )
    .unwrap();
    let dd = format!(
        "dd if={} skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none",
        place.text("bytes")
    );
    let extents = "extents=if [ $4 -lt 5001 ]; then echo 0 5001; echo 5001 94999 hole,zero; \
                   elif [ $4 -lt 100000 ]; then echo 5001 94999 hole,zero; else echo $4 100; fi";
    let pread = format!("pread={dd}");
    let all = ["eval", "get_size=echo 200K", "can_extents=exit 0", extents, &pread];
    let _server = nbdkit(&socket, &all);
    place.run(&["map", &uri]).code(0).contains(&["5120", "hole,zero"]);
    place.run(&["check", &uri]).code(0);
    place.run(&["copy", &uri, "./odd"]).code(0);
    peer("cmp", &[place.text("bytes"), place.text("odd")]);
    place.run(&["compare", &uri, "./bytes"]).code(0);
}
