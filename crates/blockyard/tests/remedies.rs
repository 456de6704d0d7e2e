//! What an error advises is run here, as it was printed, and helps.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::path::Path;

use common::{Cleanup, Daemon, Said, blockyard, noise, peer, run, system, unix};
use tempfile::TempDir;

/// The command behind `lead` in what was said, up to the end of it or an alternative.
#[track_caller]
fn advised(said: &Said, lead: &str) -> String {
    let (_, rest) =
        said.err.split_once(lead).unwrap_or_else(|| panic!("no {lead:?} in\n{}", said.err));
    rest.split([';', '\n']).next().unwrap().trim().to_owned()
}

/// Does what was advised; `blockyard` is the one of this build.
#[track_caller]
fn follow(dir: &Path, command: &str) -> Said {
    let own = Path::new(env!("CARGO_BIN_EXE_blockyard")).parent().unwrap();
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", own.display());
    let mut shell = system("timeout");
    shell.args(["--kill-after=5", "60", "sh", "-c", command]).current_dir(dir).env("PATH", path);
    let said = Said::of(&shell.env("BLOCKYARD_RUNTIME_DIR", dir.join("run")).output().unwrap());
    said.code(0);
    said
}

fn file(dir: &TempDir, name: &str, len: u64) -> String {
    let path = dir.path().join(name);
    File::create(&path).unwrap().set_len(len).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_missing_file_is_made_as_advised() {
    let dir = TempDir::new().unwrap();
    // To a shell, a name like this is something else.
    for (name, lead) in [("it's a disk.img", "run: "), ("it's $HOME; a.img", "use the URI ")] {
        let path = dir.path().join(name).to_str().unwrap().to_owned();
        run(&["info", &path]).code(1).contains(&["does not exist", "help: correct the path"]);
        let said = run(&["run", &path, "--", "true"]);
        let advice = advised(said.code(1), "help: run: ");
        assert!(advice.starts_with("truncate -s 1G "), "{advice}");
        match lead {
            "run: " => _ = follow(dir.path(), &advice),
            _ => {
                let (_, uri) = said.err.split_once(lead).unwrap();
                let uri = uri.lines().next().unwrap();
                _ = follow(dir.path(), &format!("blockyard run {uri} -- true"));
            }
        }
        run(&["info", &path, "--size"]).code(0).contains(&["1073741824"]);
    }
}

#[test]
fn a_file_that_is_too_small_is_made_larger_as_advised() {
    let dir = TempDir::new().unwrap();
    let (source, small) = (file(&dir, "source", 2 << 20), file(&dir, "it's small", 1 << 20));
    std::fs::write(&source, noise(2 << 20, 1)).unwrap();
    let said = run(&["copy", &source, &small]);
    let part = said.code(1).err.split_once("with size=").unwrap().1;
    let size = part.split(' ').next().unwrap();
    run(&["copy", &format!("file:{source}?size={size}"), &small]).code(0);
    follow(dir.path(), &advised(&said, "run: "));
    run(&["copy", &source, &small]).code(0);
    let wanted = format!("file:{small}?size=4M");
    let said = run(&["info", &wanted]);
    follow(dir.path(), &advised(said.code(1), "run: "));
    run(&["info", &wanted, "--size"]).code(0).contains(&["4194304"]);
}

#[test]
fn a_device_is_made_writable_as_advised() {
    let dir = TempDir::new().unwrap();
    let path = file(&dir, "disk", 1 << 20);
    let device = peer("losetup", &["--find", "--show", &path]).trim().to_owned();
    let detach = Cleanup::with(&["losetup", "--detach", &device]);
    peer("blockdev", &["--setro", &device]);
    let said = run(&["run", &device, "--", "true"]);
    follow(dir.path(), &advised(said.code(77), "or run: "));
    run(&["run", &device, "--", "true"]).code(0);
    detach.now();
}

#[test]
fn what_there_is_is_listed_as_advised() {
    let daemon = Daemon::serve(&["ram:1M?name=disk"]);
    let socket = daemon.path("s");
    let said = run(&["info", &unix("other", &socket)]);
    follow(daemon.dir(), &advised(said.code(1), "list the exports: ")).contains(&["disk"]);
    let said = daemon.run(&["set", "other", "size=2M"]);
    follow(daemon.dir(), &advised(said.code(1), "list daemons and disks: ")).contains(&["disk"]);
    let said = daemon.run(&["set", "disk", "2M"]);
    let examples = advised(said.code(64), "write e.g. ");
    for example in examples.split(" or ") {
        daemon.run(&["set", "disk", example]).code(0);
    }
}

#[test]
fn a_daemon_is_started_as_advised() {
    let dir = TempDir::new().unwrap();
    let output =
        |args: &[&str]| Said::of(&blockyard(&dir.path().join("run")).args(args).output().unwrap());
    let socket = dir.path().join("s").to_str().unwrap().to_owned();
    for said in [output(&["list"]), output(&["add", "ram:1M"])] {
        let command = advised(&said, "start one: ");
        assert!(command.starts_with("blockyard serve "), "{command}");
        let command = command.replace("/tmp/nbd.sock", &socket);
        follow(dir.path(), &format!("{command} --run 'blockyard info \"$uri\" --size'"));
    }
    let said = run(&["serve", "1G", "--nbd", "unix:s"]);
    run(&[
        "info",
        &advised(said.code(64), "write ").replace(" for a RAM disk, or ./1G for a file", ""),
    ])
    .code(0);
}

/// What is looked up, and not done: the program shows what was asked for.
#[test]
fn what_is_to_be_looked_up_is_shown_as_advised() {
    let daemon = Daemon::serve(&["file:disk.img?create=1M"]);
    let (dir, path) = (daemon.dir(), daemon.path("disk.img").to_str().unwrap().to_owned());
    let see = |said: &Said, lead: &str| follow(dir, advised(said, lead).trim_end_matches(')'));
    let other = format!("unix:{}", daemon.path("other").display());
    let said = daemon.run(&["serve", &path, "--nbd", &other]);
    let pid = daemon.pid().to_string();
    let shown = see(said.code(75), "see: ");
    assert!(shown.out.contains(&pid) || shown.err.contains(&pid), "see: fuser: {}", shown.out);
    let socket = format!("unix:{}", daemon.path("s").display());
    let said = daemon.run(&["serve", "ram:1M", "--nbd", &socket]);
    see(said.code(75), "see: ").contains(&[daemon.path("s").to_str().unwrap()]);
    assert!(said.err.contains("see: ss -lpn"), "{}", said.err);
    let said = daemon.run(&["serve", "ram:1M", "--nbd", "tcp:192.0.2.1:0"]);
    see(&said, "see: ").contains(&["127.0.0.1"]);
    assert!(said.err.contains("see: ip address"), "{}", said.err);
    let said = daemon.run(&["info", "/dev/no-such-disk"]);
    see(said.code(1), "list the devices: ");
    let said = daemon.run(&["list", "ram:1M"]);
    see(said.code(64), ", or: ").contains(&["1 MiB"]);
    assert!(said.err.contains("or: blockyard info ram:1M"), "{}", said.err);
    let locked = daemon.path("locked");
    std::fs::write(&locked, [0; 512]).unwrap();
    let said = without_privileges(dir, &["info", locked.to_str().unwrap()]);
    see(said.code(77), "see: ").contains(&["----------"]);
    assert!(said.err.contains("see: ls -l"), "{}", said.err);
}

/// The command about a file that nobody may read, and without the capability to read it all the same.
fn without_privileges(dir: &Path, args: &[&str]) -> Said {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(args[1], std::fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = system("setpriv");
    command.arg("--bounding-set=-dac_override,-dac_read_search");
    command.arg(env!("CARGO_BIN_EXE_blockyard")).args(args);
    Said::of(&command.env("BLOCKYARD_RUNTIME_DIR", dir.join("run")).output().unwrap())
}

#[test]
fn a_place_to_mount_on_is_made_as_advised() {
    let dir = TempDir::new().unwrap();
    let yard = "[[disk]]\nname = \"a\"\nuri = \"ram:1M\"\n";
    std::fs::write(dir.path().join("yard.toml"), yard).unwrap();
    let try_it = |args: &[&str]| {
        let mut command = blockyard(&dir.path().join("run"));
        Said::of(&command.current_dir(dir.path()).args(args).output().unwrap())
    };
    let place = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let said = try_it(&["mount", "yard.toml", &place("disks")]);
    follow(dir.path(), &advised(said.code(1), "help: run: "));
    assert!(dir.path().join("disks").is_dir());
    let said = try_it(&["serve", "ram:1M", "--fuse", &place("file")]);
    follow(dir.path(), &advised(said.code(1), "help: run: "));
    assert!(dir.path().join("file").is_file());
}
