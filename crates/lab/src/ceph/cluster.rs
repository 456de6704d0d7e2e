//! The cluster.

use super::config::Options;
use super::daemon::Daemon;
use super::wait::eventually;
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;

/// Where a monitor's port is looked for: below those that the kernel gives to connections, so that none of these has it
/// when the monitor is restarted.
const MONITOR_PORTS: std::ops::Range<u16> = 20_000..30_000;
/// How often a port is tried before no port is found.
const PORT_TRIES: u16 = 200;
const MONITOR: &str = "mon.a";
const MANAGER: &str = "mgr.x";
/// The state of a placement group that has all of its copies.
const CLEAN: &str = "active+clean";
/// How long a command of Ceph's looks for a monitor, in seconds.
const CONNECT_SECONDS: &str = "60";
/// Lines of a daemon's that an error has.
const LAST_LINES: usize = 20;
/// How long a command may take before it is ended, in seconds.
const COMMAND_SECONDS: &str = "120";
/// The same of a command that is tried again: one whose daemon went while it waited for an answer may never get one.
const LOOK_SECONDS: &str = "20";

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    // Daemons end before their directory goes.
    daemons: Mutex<BTreeMap<String, Daemon>>,
    dir: TempDir,
    osds: u32,
    monitor: SocketAddr,
    programs: Option<PathBuf>,
}

impl Cluster {
    /// Starts a cluster, and returns when its OSDs are up.
    ///
    /// # Errors
    /// A program of Ceph's is missing or fails; what it said is part of the error.
    pub fn start(options: &Options) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("blockyard-ceph-").tempdir()?;
        for name in ["mon", "mgr", "run", "log"] {
            fs::create_dir(dir.path().join(name))?;
        }
        let monitor = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(dir.path())?));
        let (osds, programs) = (options.osds, options.programs.clone());
        let cluster = Self { daemons: Mutex::default(), dir, osds, monitor, programs };
        let fsid = uuid()?;
        fs::write(cluster.conf(), options.conf(cluster.dir(), &fsid, monitor.port()))?;
        cluster.make_keyring()?;
        cluster.make_monitor(&fsid)?;
        cluster.start_daemon(MONITOR)?;
        cluster.make_osds()?;
        for id in 0..cluster.osds {
            cluster.start_daemon(&format!("osd.{id}"))?;
        }
        cluster.start_daemon(MANAGER)?;
        cluster.wait_osds_up(options.osds)?;
        Ok(cluster)
    }

    /// Keys for everybody, in one file.
    fn make_keyring(&self) -> Result<()> {
        let mut entities = vec![
            ("mon.".to_owned(), vec!["mon", "allow *"]),
            ("client.admin".to_owned(), vec!["mon", "allow *", "osd", "allow *", "mgr", "allow *"]),
            (MANAGER.to_owned(), vec!["mon", "allow profile mgr", "osd", "allow *"]),
        ];
        entities.extend((0..self.osds).map(|id| {
            let caps =
                vec!["mon", "allow profile osd", "osd", "allow *", "mgr", "allow profile osd"];
            (format!("osd.{id}"), caps)
        }));
        for (at, (entity, caps)) in entities.iter().enumerate() {
            let mut tool = self.tool("ceph-authtool");
            tool.arg(self.keyring()).args(["--gen-key", "-n", entity]);
            if at == 0 {
                tool.arg("--create-keyring");
            }
            for cap in caps.chunks(2) {
                tool.arg("--cap").args(cap);
            }
            self.run(&mut tool)?;
        }
        Ok(())
    }

    fn make_monitor(&self, fsid: &str) -> Result<()> {
        let map = self.dir().join("monmap");
        let address = format!("[v2:{}]", self.monitor);
        let mut tool = self.tool("monmaptool");
        tool.args(["--create", "--addv", "a", &address, "--fsid", fsid]).arg(&map);
        self.run(&mut tool)?;
        let mut make = self.tool("ceph-mon");
        make.args(["--mkfs", "-i", "a", "--monmap"]).arg(&map).arg("--keyring").arg(self.keyring());
        self.run(&mut make)?;
        Ok(())
    }

    /// Enters the OSDs into the map with one interpreter, and makes their stores side by side.
    fn make_osds(&self) -> Result<()> {
        let uuids = (0..self.osds).map(|_| uuid()).collect::<Result<Vec<_>>>()?;
        let mut making = Vec::new();
        let mut commands = String::new();
        for (id, uuid) in uuids.iter().enumerate() {
            let id = id.to_string();
            fs::create_dir(self.dir().join(format!("osd{id}")))?;
            let mut make = self.tool("ceph-osd");
            make.args(["-i", &id, "--mkfs", "--osd-uuid", uuid]);
            making.push(make.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?);
            commands += &format!("osd new {uuid} {id}\n");
        }
        let entered = self.enter_osds(&commands);
        // Whatever came of that: nobody writes into the directory any more when it is removed.
        let made: Vec<_> =
            making.into_iter().map(Child::wait_with_output).collect::<std::io::Result<_>>()?;
        entered?;
        match made.iter().find(|made| !made.status.success()) {
            Some(failed) => bail!("`ceph-osd --mkfs` failed: {}", said(failed)),
            None => Ok(()),
        }
    }

    fn enter_osds(&self, commands: &str) -> Result<()> {
        let mut ceph = Self::bounded(COMMAND_SECONDS, &self.ceph_command(&[]));
        ceph.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut ceph = ceph.spawn().context("cannot start ceph")?;
        ceph.stdin.take().context("a pipe to ceph")?.write_all(commands.as_bytes())?;
        let entered = ceph.wait_with_output()?;
        if !entered.status.success() {
            self.check()?;
            bail!("`ceph osd new` failed: {}\n{}", entered.status, said(&entered));
        }
        Ok(())
    }

    /// Where everything of the cluster lies.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its `ceph.conf`.
    #[must_use]
    pub fn conf(&self) -> PathBuf {
        self.dir().join("ceph.conf")
    }

    /// Its keyring, with the keys of the daemons and of `client.admin`.
    #[must_use]
    pub fn keyring(&self) -> PathBuf {
        self.dir().join("keyring")
    }

    /// Where its monitor is.
    #[must_use]
    pub const fn monitor(&self) -> SocketAddr {
        self.monitor
    }

    /// A program that takes the cluster from its environment, as all of Ceph's do.
    #[must_use]
    pub fn tool(&self, program: &str) -> Command {
        let mut command = Command::new(self.program(program));
        command.env("CEPH_CONF", self.conf()).env_remove("CEPH_ARGS").stdin(Stdio::null());
        command
    }

    fn program(&self, name: &str) -> PathBuf {
        self.programs.as_ref().map_or_else(|| PathBuf::from(name), |programs| programs.join(name))
    }

    /// Runs a command, and returns what it wrote to stdout.
    ///
    /// # Errors
    /// It cannot be started, fails, or takes more than two minutes; what it said is part of the error.
    pub fn run(&self, command: &mut Command) -> Result<String> {
        Self::run_within(COMMAND_SECONDS, command)
    }

    /// The same command, which is ended after so many seconds.
    fn bounded(seconds: &str, command: &Command) -> Command {
        let mut bounded = Command::new("timeout");
        bounded
            .args(["--kill-after=5", seconds])
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => bounded.env(name, value),
                None => bounded.env_remove(name),
            };
        }
        bounded.stdin(Stdio::null());
        bounded
    }

    fn run_within(seconds: &str, command: &Command) -> Result<String> {
        let mut command = Self::bounded(seconds, command);
        let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
        if !output.status.success() {
            bail!("{command:?} failed: {}\n{}", output.status, said(&output));
        }
        String::from_utf8(output.stdout).with_context(|| format!("{command:?} wrote no text"))
    }

    fn ceph_command(&self, args: &[&str]) -> Command {
        let mut command = self.tool("ceph");
        command.args(["--connect-timeout", CONNECT_SECONDS]).args(args);
        command
    }

    /// Runs `ceph` with these arguments.
    ///
    /// # Errors
    /// It fails, or there is no monitor within a minute.
    pub fn ceph(&self, args: &[&str]) -> Result<String> {
        self.run(&mut self.ceph_command(args))
    }

    /// Runs `ceph` with these arguments, and reads the JSON that it prints.
    ///
    /// # Errors
    /// As [`ceph`](Self::ceph); or it printed something else.
    pub fn ceph_json(&self, args: &[&str]) -> Result<Value> {
        self.ceph_json_within(COMMAND_SECONDS, args)
    }

    fn ceph_json_within(&self, seconds: &str, args: &[&str]) -> Result<Value> {
        let text = Self::run_within(seconds, self.ceph_command(args).args(["--format", "json"]))?;
        serde_json::from_str(&text).with_context(|| format!("`ceph {args:?}` printed: {text}"))
    }

    /// Makes a replicated pool, and waits until all of its groups can be written to.
    ///
    /// # Errors
    /// The monitor refuses it, or the groups do not come up.
    pub fn create_pool(&self, name: &str, groups: u32) -> Result<()> {
        let groups = groups.to_string();
        self.ceph(&["osd", "pool", "create", name, &groups, &groups])?;
        self.ceph(&["osd", "pool", "application", "enable", name, "test"])?;
        // The manager may not count yet when the cluster is new; a write to every group needs all of them.
        self.run(self.tool("rados").args(["-p", name, "ls"])).map(|_| ())
    }

    /// Splits a pool's placement groups until there are so many, and places each on its own.
    ///
    /// # Errors
    /// The monitor refuses it, or the groups are not split in time.
    pub fn split_groups(&self, pool: &str, groups: u32) -> Result<()> {
        // The manager does it step by step after the command has ended, each step a new map.
        for count in ["pg_num", "pgp_num"] {
            self.ceph(&["osd", "pool", "set", pool, count, &groups.to_string()])?;
            eventually(&format!("{count} {groups} of {pool}"), || {
                let told =
                    self.ceph_json_within(LOOK_SECONDS, &["osd", "pool", "get", pool, count])?;
                Ok((told[count].as_u64() == Some(groups.into())).then_some(()))
            })?;
        }
        Ok(())
    }

    /// Starts a daemon (`mon.a`, `mgr.x`, `osd.0`...) that was killed or stopped.
    ///
    /// # Errors
    /// Its program cannot be started.
    pub fn start_daemon(&self, name: &str) -> Result<()> {
        let kind = name.split('.').next().unwrap_or(name);
        let program = self.program(&format!("ceph-{kind}"));
        let daemon = Daemon::start(name, &program, self.dir(), &self.conf())?;
        self.daemons().insert(name.to_owned(), daemon);
        Ok(())
    }

    /// Kills a daemon: it has no time to say goodbye.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&self, name: &str) -> Result<()> {
        self.take(name)?.kill()
    }

    /// Asks a daemon to end, and waits until it has.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn stop(&self, name: &str) -> Result<()> {
        self.take(name)?.stop()
    }

    /// Makes a daemon hang (SIGSTOP), or run on.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&self, name: &str, paused: bool) -> Result<()> {
        self.daemons().get(name).with_context(|| format!("{name} does not run"))?.pause(paused)
    }

    fn take(&self, name: &str) -> Result<Daemon> {
        self.daemons().remove(name).with_context(|| format!("{name} does not run"))
    }

    fn daemons(&self) -> MutexGuard<'_, BTreeMap<String, Daemon>> {
        self.daemons.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails if a daemon ended by itself; what it printed last is part of the error.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self) -> Result<()> {
        for (name, daemon) in self.daemons().iter_mut() {
            daemon.check().with_context(|| format!("{name} said:\n{}", self.last_words(name)))?;
        }
        Ok(())
    }

    /// The last lines that a daemon has printed.
    fn last_words(&self, name: &str) -> String {
        let path = self.dir().join("log").join(format!("{name}.out"));
        let text = fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    /// Waits until so many OSDs are up.
    ///
    /// # Errors
    /// The time is over; it says so if a daemon ended.
    pub fn wait_osds_up(&self, count: u32) -> Result<()> {
        eventually(&format!("{count} OSDs that are up"), || {
            self.check()?;
            let stat = self.ceph_json_within(LOOK_SECONDS, &["osd", "stat"])?;
            Ok((stat["num_up_osds"].as_u64() == Some(count.into())).then_some(()))
        })
    }

    /// Waits until all placement groups are active and clean in the map of now, or a later one.
    ///
    /// # Errors
    /// The time is over; it says so if a daemon ended.
    pub fn wait_clean(&self) -> Result<()> {
        let epoch = self.ceph_json(&["osd", "stat"])?["epoch"].as_u64().context("an epoch")?;
        eventually("placement groups that are all active and clean", || {
            self.check()?;
            self.is_clean(epoch).map(|clean| clean.then_some(()))
        })
    }

    /// What the manager knows may be seconds old, from before an OSD went, so each group's primary is asked too.
    fn is_clean(&self, epoch: u64) -> Result<bool> {
        let stats = self.ceph_json_within(LOOK_SECONDS, &["pg", "dump", "pgs_brief"])?;
        let groups = stats["pg_stats"].as_array().cloned().unwrap_or_default();
        if groups.is_empty() || groups.iter().any(|group| group["state"] != CLEAN) {
            return Ok(false);
        }
        for group in &groups {
            let id = group["pgid"].as_str().context("a group has an id")?;
            let told = self.ceph_json_within(LOOK_SECONDS, &["pg", id, "query"])?;
            if told["state"] != CLEAN || told["epoch"].as_u64().is_none_or(|its| its < epoch) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What a command said, on both of its outputs.
fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    format!("{}\n{}", text(&output.stdout), text(&output.stderr))
}

fn uuid() -> Result<String> {
    let output = Command::new("uuidgen").output().context("cannot start uuidgen")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A port that nobody has now. The search starts where the directory's name, which is made by chance, says.
fn free_port(dir: &Path) -> Result<u16> {
    let name = dir.as_os_str().as_encoded_bytes();
    let chance =
        name.iter().fold(0_u32, |hash, &byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let span = u32::from(MONITOR_PORTS.end - MONITOR_PORTS.start);
    let start = u16::try_from(chance % span)?;
    (0..PORT_TRIES)
        .map(|step| {
            MONITOR_PORTS.start + (start + step) % (MONITOR_PORTS.end - MONITOR_PORTS.start)
        })
        .find(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
        .context("no port for a monitor is free")
}
