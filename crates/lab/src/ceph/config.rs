//! What a cluster is to be, and its configuration file.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The environment variable that names a directory of Ceph's programs, in the place of those on `PATH`.
pub const PROGRAMS_VARIABLE: &str = "BLOCKYARD_CEPH";

/// How everybody in the cluster proves who they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// By keys and tickets.
    #[default]
    Cephx,
    /// Not at all.
    None,
}

/// How the cluster and its own clients want connections protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// As Ceph does by default: monitors prefer encryption, OSDs checksums.
    #[default]
    Default,
    /// Checksums, and nothing else.
    Crc,
    /// Encryption, and nothing else.
    Secure,
}

/// What a cluster is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many OSDs there are.
    pub osds: u32,
    /// How many copies of an object pools keep, unless told otherwise.
    pub replicas: u32,
    /// Who may in.
    pub auth: Auth,
    /// How connections are protected.
    pub mode: Mode,
    /// The directory of Ceph's programs, if it is not `PATH` that finds them; by default what `BLOCKYARD_CEPH` says.
    pub programs: Option<PathBuf>,
    /// Lines for `[global]`, for what only one test wants.
    pub extra: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        let (auth, mode) = (Auth::default(), Mode::default());
        let programs = std::env::var_os(PROGRAMS_VARIABLE).map(PathBuf::from);
        Self { osds: 3, replicas: 2, auth, mode, programs, extra: Vec::new() }
    }
}

/// Bytes that an OSD's memory store takes before it is full.
const STORE_BYTES: u64 = 2 << 30;

impl Options {
    /// The text of `ceph.conf`.
    pub(super) fn conf(&self, dir: &Path, fsid: &str, monitor_port: u16) -> String {
        let dir = dir.display();
        let auth = match self.auth {
            Auth::Cephx => "cephx",
            Auth::None => "none",
        };
        let mut text = format!(
            "[global]\nfsid = {fsid}\nmon host = v2:127.0.0.1:{monitor_port}\nms bind msgr1 = false\n\
             auth cluster required = {auth}\nauth service required = {auth}\nauth client required = {auth}\n\
             keyring = {dir}/keyring\nrun dir = {dir}/run\nadmin socket = {dir}/run/$name.$pid.asok\n\
             log file = {dir}/log/$name.log\npublic addr = 127.0.0.1\ncluster addr = 127.0.0.1\n\
             osd pool default size = {}\nosd pool default min size = 1\nosd crush chooseleaf type = 0\n\
             osd pool default pg autoscale mode = off\nosd objectstore = memstore\n\
             memstore device bytes = {STORE_BYTES}\nmon allow pool delete = true\n\
             mon data = {dir}/mon\nmgr data = {dir}/mgr\nosd data = {dir}/osd$id\n",
            self.replicas
        );
        // A monitor ends if the file system that it is on is nearly full, however little it needs itself.
        text.push_str("mon data avail crit = 0\nmon data avail warn = 0\n");
        // An OSD that is asked to end takes its time, and writes its memory to a file, where the next one finds it.
        text.push_str("osd fast shutdown = false\n");
        // A dead OSD is told of by the others within a second or two, where a cluster of many machines waits longer.
        text.push_str(
            "osd heartbeat interval = 1\nosd heartbeat grace = 4\nmon osd min down reporters = 1\n\
             mon osd adjust heartbeat grace = false\n",
        );
        let modes = match self.mode {
            Mode::Default => None,
            Mode::Crc => Some("crc"),
            Mode::Secure => Some("secure"),
        };
        for (name, mode) in
            ["cluster", "service", "client", "mon cluster", "mon service", "mon client"]
                .iter()
                .flat_map(|name| modes.map(|mode| (name, mode)))
        {
            let option = match name.strip_prefix("mon ") {
                Some(name) => format!("ms mon {name} mode"),
                None => format!("ms {name} mode"),
            };
            let _infallible = writeln!(text, "{option} = {mode}");
        }
        for line in &self.extra {
            let _infallible = writeln!(text, "{line}");
        }
        text
    }
}
