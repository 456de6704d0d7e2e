//! The command line: each flag once, with its help; man pages and completions are made from it.

mod files;
pub mod logging;
mod rados;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::LazyLock;

use blockyard_driver_nbd::TlsFiles;
use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

pub use files::{MountArgs, ShareArgs, ShareCache};
pub use rados::{PlaceArgs, RadosArgs, RadosBenchArgs, RadosCommand, RadosRw};

use crate::attach::Via;
use crate::disks::{self, help};

/// The highest number of a device: minors have 20 bits.
const MAX_NUMBER: i64 = (1 << 20) - 1;

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed (compare: they differ), 2 no (predicates; compare: unknown; check: errors), \
64 bad usage, 69 not available here, 75 in use, 77 not permitted.";

/// The commands that take the URIs of disks.
const WITH_URIS: [&str; 12] = [
    "serve",
    "attach",
    "vhost-user-blk",
    "list",
    "info",
    "bench",
    "copy",
    "compare",
    "map",
    "check",
    "run",
    "add",
];

/// The command line, with what the kinds of disks say of themselves in its help.
#[must_use]
pub fn command() -> clap::Command {
    let mut command = Cli::command().after_help(format!("{}\n{EXIT_CODES}", help::uris()));
    for name in WITH_URIS {
        command = command.mut_subcommand(name, |command| {
            command
                .after_help("--help shows what the URI of a disk can say.")
                .after_long_help(help::uris_and_options())
        });
    }
    command.mut_subcommand("set", |command| {
        command
            .after_help(help::settings())
            .mut_arg("settings", |arg| arg.value_parser(Setting).hide_possible_values(true))
    })
}

/// The command line of this process.
///
/// # Errors
/// A mistake in it, or what was asked for instead: help, say.
pub fn parse() -> Result<Cli, clap::Error> {
    Cli::from_arg_matches(&command().try_get_matches()?)
}

/// How settings begin.
static SETTINGS: LazyLock<Vec<String>> =
    LazyLock::new(|| disks::settings().map(|option| format!("{}=", option.name)).collect());

/// A setting, as shells complete it; what it says is read later.
#[derive(Clone)]
struct Setting;

impl TypedValueParser for Setting {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(SETTINGS.iter().map(|setting| PossibleValue::new(setting.as_str()))))
    }
}

/// The Linux block I/O stack in user space: any disk, anywhere.
#[derive(Debug, Parser)]
#[command(name = "blockyard", version, max_term_width = 100, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Log more: -v what happens, -vv details. The variable BLOCKYARD_LOG chooses by part, e.g.
    /// BLOCKYARD_LOG=warn,blockyard_export_nbd=trace.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything that a yard.toml names, in the foreground; without one, a demo.
    Up(UpArgs),
    /// Serve disks over NBD, to virtual machines, or as files.
    Serve(Box<ServeArgs>),
    /// Give a disk to the Linux kernel, and print the path of its device.
    Attach(Box<AttachArgs>),
    /// Take a disk from the kernel again.
    Detach(DetachArgs),
    /// Go on with attached disks whose daemon has died.
    Recover(RecoverArgs),
    /// Open a device and close it: for daemons, which must not open their own.
    #[command(hide = true)]
    LookAt {
        /// The device.
        device: PathBuf,
        /// Make it refuse writes meanwhile, or take them again.
        #[arg(long, value_name = "YES")]
        read_only: Option<bool>,
        /// Claim it meanwhile.
        #[arg(long, conflicts_with = "read_only")]
        claim: bool,
    },
    /// Serve one disk to a virtual machine, with the options that QEMU has programs of this kind take.
    VhostUserBlk(VhostUserBlkArgs),
    /// List what runs on this machine, or the exports of an NBD server.
    ///
    /// Columns: IN FLIGHT are requests that the disk works on now; OPS, READ and WRITTEN count since the daemon was started,
    /// and AVG OPS/S is OPS by its uptime; P50 and P99 are the latencies that half and 99 of 100 requests stayed below.
    List(ListArgs),
    /// Show every disk of a yard as a file of a directory, as they come and go.
    ///
    /// With the file of a yard, this is as `up`, and the directory is there for as long as it runs. With the number of a daemon
    /// that runs, as list shows it, that one mounts it, and the command ends; umount(8) takes it away.
    Mount(MountArgs),
    /// Mount a directory of this machine at another place of it, passed through by FUSE; nothing leads out of it.
    Share(ShareArgs),
    /// Change a disk while it is used: make it larger, or read-only.
    Set(SetArgs),
    /// Open a disk in a daemon that runs, serve it by NBD, and print its name. Who uses its other disks notices nothing.
    Add(AddArgs),
    /// Take a disk from a daemon that runs: what its clients have asked for is answered, and it is flushed.
    Remove(RemoveArgs),
    /// Show what a disk is and what it can do.
    Info(InfoArgs),
    /// Put load on a disk and measure it.
    Bench(BenchArgs),
    /// Read, write and list objects of a Ceph cluster.
    Rados(Box<RadosArgs>),
    /// Copy a disk onto another; holes and zeroes are not read, and stay holes where they can.
    Copy(CopyArgs),
    /// Compare two disks: exit 0 if they are the same, 1 if they differ, 2 if that cannot be told.
    Compare(CompareArgs),
    /// Show how the bytes of a disk are allocated.
    Map(MapArgs),
    /// Read all that is stored on a disk, and look at its partition table: exit 0 if all is well, 1 if that cannot
    /// be told, 2 if there are errors.
    Check(CheckArgs),
    /// Run a command with a disk: $uri leads to it for as long as the command runs. Exits as the command does.
    Run(RunArgs),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the man page, or write all man pages to a directory.
    Man {
        /// Where to write them; it is made if its parent directory exists.
        directory: Option<PathBuf>,
    },
}

impl Command {
    /// Whether it stays and serves, so that its log is read later.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        matches!(
            self,
            Self::Up(_)
                | Self::Serve(_)
                | Self::Mount(_)
                | Self::Share(_)
                | Self::Attach(_)
                | Self::Recover(_)
                | Self::VhostUserBlk(_)
        )
    }
}

/// `up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// The file; ./yard.toml if it exists, else a demo in ./yard.
    #[arg(short, long, value_name = "YARD.TOML")]
    pub file: Option<PathBuf>,
    /// Check the file, and start nothing.
    #[arg(long)]
    pub check: bool,
}

/// When TLS is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Tls {
    /// Never.
    #[default]
    Off,
    /// If the client asks for it.
    Allow,
    /// By all.
    Require,
}

/// `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The disks; each becomes an export, the first is the default one.
    #[arg(required = true, value_name = "URI")]
    pub uris: Vec<String>,
    /// Listen there: unix:/path, tcp:host:port, vsock:cid:port, or systemd for the sockets that it passes. May
    /// be repeated.
    #[arg(long, value_name = "ADDR")]
    pub nbd: Vec<String>,
    /// Be the disk of a virtual machine: a vhost-user-blk back-end at this unix socket. Repeated: for the first disk, the
    /// second, ...
    #[arg(long, value_name = "SOCKET")]
    pub vhost_user_blk: Vec<PathBuf>,
    /// Be a file: the disk covers this one, which is there, until it is unmounted. Repeated: for the first disk, the second, ...
    #[arg(long, value_name = "FILE")]
    pub fuse: Vec<PathBuf>,
    /// The serial number that a virtual machine sees; the disk's name without. Repeated as --vhost-user-blk.
    #[arg(long, value_name = "TEXT", requires = "vhost_user_blk")]
    pub serial: Vec<String>,
    /// The name of an export; the disk's own name without. Repeated: for the first disk, the second, ...
    #[arg(long, value_name = "NAME")]
    pub name: Vec<String>,
    /// A text for people who list the exports. Repeated as --name.
    #[arg(long, value_name = "TEXT")]
    pub description: Vec<String>,
    /// Let nobody change the disks.
    #[arg(long)]
    pub read_only: bool,
    /// When TLS is spoken.
    #[arg(long, value_enum, default_value_t)]
    pub tls: Tls,
    /// The server's certificate, in PEM, with those between it and what clients trust.
    #[arg(long, value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,
    /// The key of the certificate, in PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Only clients with a certificate of this authority, in PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// Instead of certificates: users and the keys that they share with the server, as psktool of GnuTLS writes them.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["tls_certificate", "tls_key", "tls_client_ca"]
    )]
    pub tls_psk: Option<PathBuf>,
    /// Clients at a time. As many again may be in their handshake.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_clients: Option<u32>,
    /// Of these, from one host (an address, a guest, a user at a unix socket); without, three quarters from one that is no
    /// user of this machine.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_clients_per_host: Option<u32>,
    /// Requests of a client that are worked on at a time.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_in_flight: Option<u32>,
    /// Memory for the requests and replies of all NBD clients together, as 512M; 256M without. Who finds none waits.
    #[arg(long, value_name = "SIZE")]
    pub max_memory: Option<String>,
    /// Queue threads; as many as CPUs without.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    /// Permissions of unix sockets, in octal, as 660.
    #[arg(long, value_name = "MODE")]
    pub socket_mode: Option<String>,
    /// Run this shell command with $uri set, then end with its exit code.
    #[arg(long, value_name = "CMD")]
    pub run: Option<OsString>,
}

/// `attach`.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// The disk.
    pub uri: String,
    /// By which driver of the kernel; the best there is without.
    #[arg(long, value_enum)]
    pub via: Option<Via>,
    /// Stay in the foreground, as service managers want it.
    #[arg(long)]
    pub foreground: bool,
    /// Let nobody change the disk.
    #[arg(long)]
    pub read_only: bool,
    /// The number of the device, as 3 for /dev/ublkb3; a free one without.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=MAX_NUMBER))]
    pub number: Option<u32>,
    /// Queue threads; as many as CPUs without.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    /// ublk: requests of each queue at a time; 128 without.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub depth: Option<u16>,
    /// nbd: connections, and with that queues of the kernel's; 1 without.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub connections: Option<u16>,
    /// nbd: after so long without an answer, in seconds or as 1m, the kernel asks again on another connection; 30 without.
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub timeout: Option<u64>,
    /// nbd: so long I/O waits for a new connection, as by `recover` after the daemon has died, in seconds or as 5m; together with
    /// --timeout it has to be longer than the disk's fence_timeout; 5m without.
    #[arg(long, alias = "dead-timeout", value_name = "TIME", value_parser = seconds)]
    pub dead_conn_timeout: Option<u64>,
    /// Told to end while the device is in use, leave it to the next `recover`, instead of staying until nobody uses it.
    #[arg(long)]
    pub hand_over: bool,
    /// In the background: where the daemon's output goes.
    #[arg(long, value_name = "FILE", hide = true)]
    pub log: Option<PathBuf>,
}

/// A whole number of seconds, up to a day: alone, or as a time in a URI is written.
fn seconds(text: &str) -> Result<u64, String> {
    let seconds = match text.parse::<u64>() {
        Ok(seconds) => Some(seconds),
        Err(_) => {
            let time = crate::disks::parse_duration(text)?;
            (time.subsec_nanos() == 0).then_some(time.as_secs())
        }
    };
    seconds
        .filter(|seconds| (1..=86_400).contains(seconds))
        .ok_or_else(|| format!("{text:?} is not from 1 second to a day; write 30, 30s or 5m"))
}

/// `detach`.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// Devices, as /dev/ublkb0, or the disks in them.
    #[arg(value_name = "DEVICE|URI", required_unless_present = "all")]
    pub devices: Vec<String>,
    /// All.
    #[arg(long, conflicts_with = "devices")]
    pub all: bool,
    /// Also one whose daemon has died: what the kernel has not written to it yet is lost.
    #[arg(long)]
    pub force: bool,
    /// For the daemon of that process id, and only as long as it lives.
    #[arg(long, value_name = "PID", hide = true)]
    pub for_daemon: Option<u32>,
}

/// `recover`.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// Devices, as /dev/ublkb0; all without.
    #[arg(value_name = "DEVICE")]
    pub devices: Vec<String>,
    /// Stay in the foreground, as service managers want it.
    #[arg(long)]
    pub foreground: bool,
    /// In the background: where the daemon's output goes.
    #[arg(long, value_name = "FILE", hide = true)]
    pub log: Option<PathBuf>,
}

/// `vhost-user-blk`.
#[derive(Debug, Args)]
pub struct VhostUserBlkArgs {
    /// Where the front-end connects to.
    #[arg(long, value_name = "PATH", conflicts_with = "fd")]
    pub socket_path: Option<PathBuf>,
    /// The socket of the front-end, which was passed to this process: one that listens, or is connected.
    #[arg(long, value_name = "FDNUM")]
    pub fd: Option<u32>,
    /// The disk: a file, a block device, or the URI of any disk.
    #[arg(long, value_name = "PATH")]
    pub blk_file: Option<String>,
    /// Do not let the virtual machine change it.
    #[arg(long)]
    pub read_only: bool,
    /// Say in JSON what this program can do, and end.
    #[arg(long)]
    pub print_capabilities: bool,
}

/// TLS of a client.
#[derive(Clone, Debug, Args)]
pub struct ClientTlsArgs {
    /// Trust the servers of this authority, in PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Our own certificate, in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// The key of our certificate, in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
}

impl From<ClientTlsArgs> for TlsFiles {
    fn from(args: ClientTlsArgs) -> Self {
        Self { ca: args.tls_ca, certificate: args.tls_certificate, key: args.tls_key }
    }
}

/// `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// An NBD server; without, what runs on this machine.
    #[arg(value_name = "NBD-URI")]
    pub uri: Option<String>,
    /// JSON.
    #[arg(long)]
    pub json: bool,
    /// The disks of the daemons as /proc/diskstats would show them.
    #[arg(long, conflicts_with_all = ["json", "uri", "partitions"])]
    pub diskstats: bool,
    /// The disks of the daemons as /proc/partitions would show them.
    #[arg(long, conflicts_with_all = ["json", "uri"])]
    pub partitions: bool,
    /// TLS.
    #[command(flatten)]
    pub tls: ClientTlsArgs,
}

/// `set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// The disk's name, as list shows it; PID:NAME where several daemons have one of that name.
    #[arg(value_name = "DISK")]
    pub disk: String,
    /// What to change: size=2G, read_only=1.
    #[arg(required = true, value_name = "SETTING")]
    pub settings: Vec<String>,
    /// Also make it smaller: what is past the new end is out of reach for those who use it.
    #[arg(long)]
    pub shrink: bool,
    /// Write it to the yard.toml of the daemon, too.
    #[arg(long)]
    pub save: bool,
}

/// `add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// The disk.
    pub uri: String,
    /// What it is called, and its exports; made from the URI without.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The daemon, where several run.
    #[arg(long, value_name = "PID")]
    pub daemon: Option<u32>,
    /// Let nobody change the disk.
    #[arg(long)]
    pub read_only: bool,
    /// Be the disk of a virtual machine at this unix socket.
    #[arg(long, value_name = "SOCKET")]
    pub vhost_user_blk: Option<PathBuf>,
    /// Be this file.
    #[arg(long, value_name = "FILE")]
    pub fuse: Option<PathBuf>,
    /// Do not serve it by NBD.
    #[arg(long)]
    pub no_nbd: bool,
    /// Write it to the yard.toml of the daemon, too.
    #[arg(long)]
    pub save: bool,
}

/// `remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The disk's name, as list shows it; PID:NAME where several daemons have one of that name.
    #[arg(value_name = "DISK")]
    pub disk: String,
    /// Take it out of the yard.toml of the daemon, too.
    #[arg(long)]
    pub save: bool,
}

/// `info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// The disk.
    pub uri: String,
    /// JSON.
    #[arg(long)]
    pub json: bool,
    /// Only print the size in bytes.
    #[arg(long, conflicts_with_all = ["json", "is", "can"])]
    pub size: bool,
    /// Say nothing, but exit 0 if it is, 2 if it is not: read-only, rotational, tls.
    #[arg(long, value_name = "WHAT", conflicts_with_all = ["json", "can"])]
    pub is: Option<String>,
    /// Say nothing, but exit 0 if it can, 2 if it cannot: flush, fua, trim, zero, fast-zero, cache, df,
    /// multi-conn, block-status, write.
    #[arg(long, value_name = "WHAT", conflicts_with = "json")]
    pub can: Option<String>,
    /// TLS.
    #[command(flatten)]
    pub tls: ClientTlsArgs,
}

/// What `bench` does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Rw {
    /// Read one block after the other.
    Read,
    /// Write one block after the other.
    Write,
    /// Read anywhere.
    #[default]
    Randread,
    /// Write anywhere.
    Randwrite,
    /// Read and write one block after the other.
    Rw,
    /// Read and write anywhere.
    Randrw,
}

/// `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The disk.
    pub uri: String,
    /// What to do. Writing destroys what is there.
    #[arg(long, value_enum, default_value_t)]
    pub rw: Rw,
    /// The percentage of reads in rw and randrw.
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub rwmixread: u8,
    /// Bytes of one request.
    #[arg(long, value_name = "SIZE", default_value = "4k")]
    pub bs: String,
    /// Requests at a time, in each queue.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=10240))]
    pub depth: u32,
    /// Queue threads, or connections to an NBD server.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub queues: u32,
    /// How long; 3s if there is no --count.
    #[arg(long, value_name = "TIME", conflicts_with = "count")]
    pub time: Option<String>,
    /// So many requests in all.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Use this much of the disk.
    #[arg(long, value_name = "SIZE")]
    pub size: Option<String>,
    /// From there on.
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub offset: String,
    /// The same seed makes the same requests.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// JSON.
    #[arg(long)]
    pub json: bool,
    /// TLS.
    #[command(flatten)]
    pub tls: ClientTlsArgs,
}

/// `copy`.
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// The disk to copy.
    pub source: String,
    /// The disk to overwrite. A file that does not exist is made.
    pub target: String,
    /// Look for zeroes in the data, too, and write them as holes.
    #[arg(long)]
    pub detect_zeroes: bool,
    /// Write down in this file what is done; if it is there, go on from that.
    #[arg(long, value_name = "FILE")]
    pub resume: Option<PathBuf>,
    /// Queue threads; as many as CPUs without.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    /// JSON.
    #[arg(long)]
    pub json: bool,
    /// TLS.
    #[command(flatten)]
    pub tls: ClientTlsArgs,
}

/// `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// A disk.
    pub one: String,
    /// Another.
    pub two: String,
    /// Queue threads; as many as CPUs without.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    /// JSON.
    #[arg(long)]
    pub json: bool,
    /// TLS.
    #[command(flatten)]
    pub tls: ClientTlsArgs,
}

/// `map`.
#[derive(Debug, Args)]
pub struct MapArgs {
    /// The disk.
    pub uri: String,
    /// Only how much there is of each kind.
    #[arg(long)]
    pub totals: bool,
    /// JSON.
    #[arg(long)]
    pub json: bool,
    /// TLS.
    #[command(flatten)]
    pub tls: ClientTlsArgs,
}

/// `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The disk.
    pub uri: String,
    /// Queue threads; as many as CPUs without.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    /// JSON.
    #[arg(long)]
    pub json: bool,
    /// TLS.
    #[command(flatten)]
    pub tls: ClientTlsArgs,
}

/// `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The disk.
    pub uri: String,
    /// Let the command not change it.
    #[arg(long)]
    pub read_only: bool,
    /// The command and its arguments, after --.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}
