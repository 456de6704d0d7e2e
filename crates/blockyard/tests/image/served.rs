//! Images of a cluster that we serve, while Ceph's tools and our own command change them; and after a kill.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use blockyard_lab::ceph::Cluster;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::common::{Daemon, Guard, Said, blockyard, nbdsh, noise, peer, run, system};

const POOL: &str = "served";
/// Seconds that anything may take that has to happen some time.
const LIMIT: u64 = 120;

struct Served<'a> {
    lab: &'a Cluster,
    /// What a daemon leaves for the next one.
    run: TempDir,
}

pub(crate) fn images_are_served(lab: &Cluster) {
    lab.create_pool(POOL, 8).unwrap();
    let served = Served { lab, run: TempDir::new().unwrap() };
    served.what_is_written_is_read();
    served.others_change_what_is_served();
    served.a_daemon_that_was_killed_is_followed_at_once();
    served.who_was_kept_out_opens_it_as_somebody_new();
}

impl Served<'_> {
    fn conf(&self) -> String {
        self.lab.conf().to_str().unwrap().to_owned()
    }

    fn uri(&self, image: &str) -> String {
        format!("rbd:{POOL}/{image}?conf={}", self.conf())
    }

    /// `rbd ...`.
    fn theirs(&self, args: &[&str]) -> String {
        let pool = format!("--rbd_default_pool={POOL}");
        self.lab.run(self.lab.tool("rbd").arg(pool).args(args)).unwrap()
    }

    /// `blockyard image ...`, which must succeed.
    fn ours(&self, args: &[&str]) -> String {
        let said = run(&[&["image", "-c", &self.conf(), "-p", POOL], args].concat());
        said.code(0);
        said.out
    }

    fn serve(&self, image: &str) -> Daemon {
        let dir = TempDir::new().unwrap();
        let mut command = blockyard(self.run.path());
        let socket = format!("unix:{}", dir.path().join("s").display());
        command.args(["serve", "-v", &self.uri(image), "--nbd", &socket]);
        Daemon::start(command, dir, 1)
    }

    fn exported(&self, view: &str) -> Vec<u8> {
        let file = self.run.path().join("exported");
        self.theirs(&["export", "--no-progress", view, file.to_str().unwrap()]);
        let bytes = std::fs::read(&file).unwrap();
        std::fs::remove_file(file).unwrap();
        bytes
    }

    fn check_map(&self, image: &str) {
        self.theirs(&["object-map", "check", "--no-progress", image]);
    }

    fn what_is_written_is_read(&self) {
        self.ours(&["create", "fio", "-s", "32", "--order", "20"]);
        let daemon = self.serve("fio");
        let uri = daemon.uri("fio");
        fio(daemon.dir(), &uri);
        let copy = daemon.path("copy");
        peer("nbdcopy", &[&uri, copy.to_str().unwrap()]);
        let said = daemon.run(&["image", "status", &self.uri("fio")]).code(0).out.clone();
        assert!(said.contains("watcher="), "{said}");
        let copied = std::fs::read(&copy).unwrap();
        daemon.stop();
        assert!(self.exported("fio") == copied, "rbd reads what was read by NBD");
        self.check_map("fio");
        // And the other way round.
        let file = self.run.path().join("file");
        std::fs::write(&file, noise(5 << 20, 3)).unwrap();
        self.theirs(&["import", "--no-progress", file.to_str().unwrap(), "imported"]);
        let daemon = self.serve("imported");
        let copy = daemon.path("copy");
        peer("nbdcopy", &[&daemon.uri("imported"), copy.to_str().unwrap()]);
        assert!(std::fs::read(&copy).unwrap() == std::fs::read(&file).unwrap());
        daemon.stop();
        self.ours(&["rm", "imported"]);
    }

    fn others_change_what_is_served(&self) {
        self.ours(&["create", "a", "-s", "8", "--order", "20"]);
        let daemon = self.serve("a");
        let uri = daemon.uri("a");
        let write = |byte: u8| {
            nbdsh(&uri, &format!("h.pwrite(bytes([{byte}]) * 4096, 4096)\nh.flush()"));
        };
        write(1);
        let lock = self.theirs(&["lock", "ls", "a"]);
        assert!(lock.contains("auto "), "{lock}");
        self.theirs(&["snap", "create", "--no-progress", "a@one"]);
        write(2);
        self.ours(&["snap", "create", "a@two"]);
        write(3);
        self.theirs(&["resize", "--no-progress", "--size", "12", "a"]);
        has_size(&uri, 12 << 20);
        write_at_the_end(&uri, 12 << 20);
        self.ours(&["resize", "a", "-s", "4", "--allow-shrink"]);
        let beyond = "try:\n h.pwrite(b'5' * 512, 12582400)\n assert False\nexcept nbd.Error: pass";
        nbdsh(&uri, beyond);
        has_size(&uri, 4 << 20);
        write_at_the_end(&uri, 4 << 20);
        assert_eq!(self.theirs(&["lock", "ls", "a"]), lock, "the lock was not given away");
        // Whoever wants the lock itself gets it, and gives it back.
        let bench = ["bench", "a", "--io-type", "write", "--io-size", "4096", "--io-total", "64K"];
        self.theirs(&[&bench[..], &["--io-threads", "1"]].concat());
        write(4);
        daemon.stop();
        for (view, byte) in [("a@one", 1), ("a@two", 2), ("a", 4)] {
            assert_eq!(self.exported(view)[4096..8192], [byte; 4096], "{view}");
        }
        self.check_map("a");
        assert_eq!(self.theirs(&["lock", "ls", "a"]), "", "the lock was given back");
        self.ours(&["snap", "purge", "a"]);
        self.ours(&["rm", "a"]);
    }

    fn who_was_kept_out_opens_it_as_somebody_new(&self) {
        self.ours(&["create", "f", "-s", "8", "--order", "20"]);
        let daemon = self.serve("f");
        let write = "h.pwrite(b'f' * 4096, 0)\nh.flush()";
        nbdsh(&daemon.uri("f"), write);
        let lock = self.theirs(&["lock", "ls", "--format", "json", "f"]);
        let lock: serde_json::Value = serde_json::from_str(&lock).unwrap();
        let [id, locker] = ["id", "locker"].map(|key| lock[0][key].as_str().unwrap());
        let conf = self.conf();
        let place = ["image", "-c", &conf, "-p", POOL];
        let refused = run(&[&place[..], &["lock", "rm", "f", id, locker]].concat());
        refused.code(75).contains(&["is alive"]);
        nbdsh(&daemon.uri("f"), write);
        self.ours(&["lock", "rm", "--force", "f", id, locker]);
        // Those who store it hear of that a little later.
        let fails = "for _ in range(100_000):\n try: h.pwrite(b'g' * 4096, 0)\n except nbd.Error: break\nelse: assert False";
        nbdsh(&daemon.uri("f"), fails);
        let tell =
            |args: &[&str]| Said::of(&blockyard(self.run.path()).args(args).output().unwrap());
        // Its last flush fails.
        tell(&["remove", "f"]);
        tell(&["add", &self.uri("f")]).code(0);
        nbdsh(&daemon.uri("f"), write);
        daemon.stop();
        assert_eq!(self.exported("f")[..4096], [b'f'; 4096]);
        self.ours(&["rm", "f"]);
    }

    fn a_daemon_that_was_killed_is_followed_at_once(&self) {
        self.ours(&["create", "k", "-s", "64", "--order", "20"]);
        let daemon = self.serve("k");
        let before = self.theirs(&["lock", "ls", "k"]);
        // Each block once, as fast as it goes, and told when it is acknowledged.
        let write = "h.pwrite(bytes([i % 250 + 1]) * 4096, i * 4096)\n  print(i, flush=True)";
        let script = format!("try:\n for i in range(16384):\n  {write}\nexcept nbd.Error: pass");
        let mut command = system("nbdsh");
        command.args(["-u", &daemon.uri("k"), "-c", &script]).stdin(Stdio::null());
        let mut writer = Guard(command.stdout(Stdio::piped()).spawn().unwrap());
        let lines = BufReader::new(writer.0.stdout.take().unwrap()).lines();
        let mut lines = lines.map(|line| line.unwrap().parse::<u64>().unwrap());
        let reached = lines.by_ref().find(|number| *number == 300).unwrap();
        daemon.signal(Signal::KILL);
        daemon.wait();
        let last = lines.last().unwrap_or(reached);
        let next = self.serve("k");
        // It does not wait until the cluster takes the other one for dead.
        let log = next.log();
        assert!(log.contains("lock of a dead process on this host broken"), "{log}");
        assert_ne!(self.theirs(&["lock", "ls", "k"]), before);
        let look = format!(
            "for i in range({}):\n assert h.pread(4096, i * 4096) == bytes([i % 250 + 1]) * 4096, i",
            last + 1
        );
        nbdsh(&next.uri("k"), &look);
        nbdsh(&next.uri("k"), "h.pwrite(b'x' * 4096, 0)\nh.flush()");
        next.stop();
        self.check_map("k");
        // One that has ended in order leaves nobody to follow.
        let again = self.serve("k");
        assert!(!again.log().contains("dead process"));
        again.stop();
        self.ours(&["rm", "k"]);
    }
}

fn has_size(uri: &str, bytes: u64) {
    let begun = Instant::now();
    while peer("nbdinfo", &["--size", uri]).trim() != bytes.to_string() {
        // The disk follows in its own time.
        assert!(begun.elapsed().as_secs() < LIMIT, "the disk does not get {bytes} bytes");
    }
}

fn write_at_the_end(uri: &str, size: u64) {
    nbdsh(
        uri,
        &format!("h.pwrite(b'e' * 512, {0})\nassert h.pread(512, {0}) == b'e' * 512", size - 512),
    );
}

/// Random writes and what they have left, by the engine of libnbd.
fn fio(dir: &Path, uri: &str) {
    let uri = format!("--uri={uri}");
    let mut command = system("fio");
    command.current_dir(dir).args(["--name=verify", "--ioengine=nbd", &uri, "--rw=randrw"]);
    command.args(["--bsrange=4k-64k", "--size=32m", "--iodepth=16", "--verify=crc32c"]);
    command.args(["--verify_fatal=1", "--do_verify=1", "--verify_backlog=64", "--randseed=7"]);
    let output =
        command.stdin(Stdio::null()).output().expect("fio is missing; run: cargo xtask setup");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stdout));
}
