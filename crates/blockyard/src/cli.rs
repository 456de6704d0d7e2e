//! The command line: each flag once, with its help; man pages and completions are made from it.

mod about;
mod changes;
mod copy;
mod export_flags;
mod files;
mod image;
pub mod logging;
pub mod mistakes;
mod rados;
mod serve;
mod uri_arg;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::LazyLock;

use blockyard_driver_nbd::TlsFiles;
use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use about::{ENVIRONMENT, EXIT_CODES, LONG_VERSION, takes_uri};
pub use changes::{AddArgs, FaultArgs, RemoveArgs, SetArgs};
pub use copy::{CopyArgs, Reflink};
pub use export_flags::{ExportFlags, GivenFlag, WantedExport};
pub use files::{MountArgs, ShareArgs, ShareCache, SharePlace};
pub use image::{
    DeepCommand, DiffArgs, ImageArgs, ImageBenchArgs, ImageCommand, ImagePlaceArgs, IoPattern,
    IoType, LimitCommand, LockCommand, MetaCommand, NamespaceCommand, NewImageArgs,
    ObjectMapCommand, SnapCommand, TrashCommand,
};
pub use rados::{PlaceArgs, RadosArgs, RadosBenchArgs, RadosCommand, RadosRw};
pub use serve::{ServeArgs, Tls};
use uri_arg::uri;

use crate::attach::Via;
use crate::disks::{self, help};

/// The highest number of a device: minors have 20 bits.
const MAX_NUMBER: i64 = (1 << 20) - 1;

/// The command line, with what the kinds of disks say of themselves in its help.
#[must_use]
pub fn command() -> clap::Command {
    let mut command = Cli::command()
        .long_version(LONG_VERSION)
        .after_help(format!("{}\n{EXIT_CODES}\n\n{ENVIRONMENT}", help::uris()));
    let with_uris: Vec<_> = command
        .get_subcommands()
        .filter(|command| takes_uri(command))
        .map(|command| command.get_name().to_owned())
        .collect();
    for name in with_uris {
        command = command.mut_subcommand(name, |command| {
            command
                .after_help("For disk URIs and their options, see --help.")
                .after_long_help(help::uris_and_options())
        });
    }
    let command = command.mut_subcommand("set", |command| {
        command.after_help(help::settings()).mut_arg("settings", |arg| {
            arg.value_parser(Words(&SETTINGS)).hide_possible_values(true)
        })
    });
    command.mut_subcommand("fault", |command| {
        command
            .after_help(disks::fault::help())
            .mut_arg("words", |arg| arg.value_parser(Words(&FAULTS)).hide_possible_values(true))
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

/// How what is said of faults begins.
static FAULTS: LazyLock<Vec<String>> = LazyLock::new(|| disks::fault::words().collect());

/// Words, as shells complete them; what they say is read later.
#[derive(Clone)]
struct Words(&'static LazyLock<Vec<String>>);

impl TypedValueParser for Words {
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
        Some(Box::new(self.0.iter().map(|word| PossibleValue::new(word.as_str()))))
    }
}

/// Serve, attach, copy and inspect block devices from user space.
#[derive(Debug, Parser)]
#[command(name = "blockyard", version, max_term_width = 100, propagate_version = true)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
    /// Increase log verbosity: -v info, -vv debug, -vvv trace. BLOCKYARD_LOG sets levels by module.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the disks and exports of a configuration file in the foreground.
    Up(UpArgs),
    /// Serve disks over NBD or vhost-user-blk, or as files.
    Serve(Box<ServeArgs>),
    /// Attach a disk to this kernel and print the path of its device (/dev/ublkbN or /dev/nbdN).
    Attach(Box<AttachArgs>),
    /// Detach devices that `attach` created.
    Detach(DetachArgs),
    /// Restart the daemons of attached devices after a crash; queued I/O resumes.
    Recover(RecoverArgs),
    /// Open a device and close it, on behalf of a daemon, which must not open its own device.
    #[command(hide = true)]
    LookAt {
        /// The device.
        device: PathBuf,
        /// Set the device read-only or writable.
        #[arg(long, value_name = "YES")]
        read_only: Option<bool>,
        /// Open it exclusively.
        #[arg(long, conflicts_with = "read_only")]
        claim: bool,
    },
    /// Run a vhost-user-blk back-end with the standard options of such programs, for libvirt and scripts.
    ///
    /// A virtual machine with such a disk cannot be migrated live: the back-end keeps no log of dirty memory (LOG_SHMFD).
    VhostUserBlk(VhostUserBlkArgs),
    /// List running Blockyard daemons, or the exports of an NBD server.
    ///
    /// Columns: IN FLIGHT is the number of requests in progress. OPS, READ and WRITTEN count since the daemon started; AVG OPS/S
    /// is OPS divided by its uptime. P50 and P99 are latency percentiles.
    List(ListArgs),
    /// Show every disk of a yard as a file in a directory.
    ///
    /// Given a yard.toml, this is like `up`, with the directory mounted as long as it runs. Given the process ID of a running
    /// daemon, that daemon mounts the directory, and the command returns; unmount it with umount(8). Disks appear and vanish as
    /// they are added and removed.
    Mount(MountArgs),
    /// Share a directory with a virtual machine by virtiofs, or mount it at another place of this machine by FUSE.
    Share(ShareArgs),
    /// Resize a disk in use, or make it read-only.
    Set(SetArgs),
    /// Inject faults into a disk in use: errors, delays, stalls, torn writes, power cuts.
    ///
    /// Faults end with their daemon, which tells of them in its log, in `list` and in its metrics.
    Fault(FaultArgs),
    /// Add a disk to a running daemon, serve it over NBD, and print its name. Other clients are not disturbed.
    Add(AddArgs),
    /// Remove a disk from a running daemon, after answering the requests of its clients and flushing it.
    Remove(RemoveArgs),
    /// Show size, block sizes, capabilities, allocation and partitions of a disk.
    Info(InfoArgs),
    /// Benchmark a disk. Write modes destroy its contents.
    Bench(BenchArgs),
    /// Read, write and list objects of a Ceph cluster.
    Rados(Box<RadosArgs>),
    /// Manage RBD images in a directory or a Ceph cluster, with the commands of rbd(8).
    ///
    /// An image of a directory is named rbd+dir:DIR/IMAGE, or IMAGE with --dir DIR; one of a cluster POOL/IMAGE; a snapshot
    /// IMAGE@SNAPSHOT.
    Image(Box<ImageArgs>),
    /// Copy one disk to another. Holes are skipped, and stay holes where the target allows it.
    Copy(CopyArgs),
    /// Compare two disks. Exit status: 0 identical, 1 different, 2 unknown.
    Compare(CompareArgs),
    /// Show which ranges of a disk are data, zeroes or holes.
    Map(MapArgs),
    /// Read every allocated block and validate the partition table. Exit status: 0 no errors, 1 check incomplete, 2 errors found.
    Check(CheckArgs),
    /// Serve a disk while a command runs, with its NBD URI in $uri. Exits with the status of the command.
    Run(RunArgs),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Show the man page, or write all man pages to a directory.
    Man {
        /// Directory for all man pages; created if its parent exists.
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
    /// Configuration file [default: ./yard.toml, else a demo in ./yard].
    #[arg(short, long, value_name = "YARD.TOML")]
    pub file: Option<PathBuf>,
    /// Configuration file, like --file.
    #[arg(value_name = "YARD.TOML", conflicts_with = "file", hide = true)]
    pub path: Option<PathBuf>,
    /// Validate the file and exit.
    #[arg(long)]
    pub check: bool,
}

/// `attach`.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// URI of the disk.
    #[arg(value_parser = uri())]
    pub uri: String,
    /// Kernel driver [default: ublk if available, else nbd].
    #[arg(long, value_enum)]
    pub via: Option<Via>,
    /// Stay in the foreground, for service managers.
    #[arg(long)]
    pub foreground: bool,
    /// Attach the disk read-only.
    #[arg(long)]
    pub read_only: bool,
    /// Device number, e.g. 3 for /dev/ublkb3 [default: a free one].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=MAX_NUMBER))]
    pub number: Option<u32>,
    /// Queue threads [default: one per CPU].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    /// ublk: requests per queue [default: 128].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub depth: Option<u16>,
    /// nbd: connections, each with a queue of the kernel [default: 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub connections: Option<u16>,
    /// nbd: time after which the kernel sends a request again on another connection, e.g. 30s or 1m [default: 30s].
    #[arg(long = "kernel-timeout", alias = "timeout", value_name = "TIME", value_parser = seconds)]
    pub timeout: Option<u64>,
    /// nbd: time that I/O waits for a new connection, e.g. for `recover` after the daemon died, before it fails. Together with
    /// --kernel-timeout it must exceed the fence_timeout of the disk [default: 5m].
    #[arg(
        long = "kernel-dead-conn-timeout",
        aliases = ["dead-timeout", "dead-conn-timeout"],
        value_name = "TIME",
        value_parser = seconds
    )]
    pub dead_conn_timeout: Option<u64>,
    /// On SIGTERM while the device is in use, exit and leave it to the next `recover`, instead of waiting until it is unused.
    #[arg(long)]
    pub hand_over: bool,
    /// Log file of the daemon in the background.
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
    /// Devices, e.g. /dev/ublkb0, or the URIs of their disks.
    #[arg(value_name = "DEVICE|URI", required_unless_present = "all", value_parser = uri())]
    pub devices: Vec<String>,
    /// Detach all devices.
    #[arg(long, conflicts_with = "devices")]
    pub all: bool,
    /// Detach even if the daemon is dead; writes still queued in the kernel are lost.
    #[arg(long)]
    pub force: bool,
    /// PID of the daemon that asks; detach only while it lives.
    #[arg(long, value_name = "PID", hide = true)]
    pub for_daemon: Option<u32>,
}

/// `recover`.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// Devices, e.g. /dev/ublkb0 [default: all].
    #[arg(value_name = "DEVICE")]
    pub devices: Vec<String>,
    /// Stay in the foreground, for service managers.
    #[arg(long)]
    pub foreground: bool,
    /// Log file of the daemon in the background.
    #[arg(long, value_name = "FILE", hide = true)]
    pub log: Option<PathBuf>,
}

/// `vhost-user-blk`.
#[derive(Debug, Args)]
pub struct VhostUserBlkArgs {
    /// Socket that the front-end connects to.
    #[arg(long, value_name = "PATH", conflicts_with = "fd")]
    pub socket_path: Option<PathBuf>,
    /// Inherited socket, listening or connected.
    #[arg(long, value_name = "FDNUM")]
    pub fd: Option<u32>,
    /// Disk: a file, a block device, or a disk URI.
    #[arg(long, value_name = "PATH|URI")]
    pub blk_file: Option<String>,
    /// Serve the disk read-only.
    #[arg(long)]
    pub read_only: bool,
    /// Print the capabilities of the back-end as JSON and exit.
    #[arg(long)]
    pub print_capabilities: bool,
}

/// TLS of a client.
#[derive(Clone, Debug, Args)]
pub struct ClientTlsArgs {
    /// CA certificate for verifying the server (PEM).
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Client certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// Private key of the client certificate (PEM).
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
    /// NBD server [default: the daemons of this machine].
    #[arg(value_name = "NBD-URI", value_parser = uri())]
    pub uri: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Print the disks in the format of /proc/diskstats.
    #[arg(long, conflicts_with_all = ["json", "uri", "partitions"])]
    pub diskstats: bool,
    /// Print the disks in the format of /proc/partitions.
    #[arg(long, conflicts_with_all = ["json", "uri"])]
    pub partitions: bool,
    /// TLS.
    #[command(flatten)]
    pub tls: ClientTlsArgs,
}

/// `info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// URI of the disk.
    #[arg(value_parser = uri())]
    pub uri: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Print only the size in bytes.
    #[arg(long, conflicts_with_all = ["json", "is", "can"])]
    pub size: bool,
    /// Test a property silently: read-only, rotational, tls. Exit status: 0 yes, 2 no.
    #[arg(long, value_name = "WHAT", conflicts_with_all = ["json", "can"])]
    pub is: Option<String>,
    /// Test a capability silently: flush, fua, trim, zero, fast-zero, cache, df, multi-conn, block-status, write. Exit status: 0
    /// yes, 2 no.
    #[arg(long, value_name = "WHAT", conflicts_with = "json")]
    pub can: Option<String>,
    /// TLS.
    #[command(flatten)]
    pub tls: ClientTlsArgs,
}

/// What `bench` does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Rw {
    /// Sequential reads.
    Read,
    /// Sequential writes.
    Write,
    /// Random reads.
    #[default]
    Randread,
    /// Random writes.
    Randwrite,
    /// Sequential reads and writes.
    Rw,
    /// Random reads and writes.
    Randrw,
}

/// `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// URI of the disk.
    #[arg(value_parser = uri())]
    pub uri: String,
    /// Access pattern. Write modes destroy the contents of the disk.
    #[arg(long, value_enum, default_value_t)]
    pub rw: Rw,
    /// Percentage of reads in rw and randrw.
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub rwmixread: u8,
    /// Block size.
    #[arg(long, value_name = "SIZE", default_value = "4k")]
    pub bs: String,
    /// Requests in flight per queue.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=10240))]
    pub depth: u32,
    /// Queue threads, or connections to an NBD server.
    #[arg(
        long = "threads",
        alias = "queues",
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=256)
    )]
    pub queues: u32,
    /// Duration, e.g. 10s [default: 3s, unless --count is given].
    #[arg(long, value_name = "TIME", conflicts_with = "count")]
    pub time: Option<String>,
    /// Stop after N requests.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Length of the tested range [default: to the end of the disk].
    #[arg(long, value_name = "SIZE")]
    pub size: Option<String>,
    /// Start offset.
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub offset: String,
    /// Seed of random offsets; the same seed makes the same requests.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// TLS.
    #[command(flatten)]
    pub tls: ClientTlsArgs,
}

/// `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// First disk.
    #[arg(value_name = "URI", value_parser = uri())]
    pub one: String,
    /// Second disk.
    #[arg(value_name = "URI", value_parser = uri())]
    pub two: String,
    /// Queue threads [default: one per CPU].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// TLS.
    #[command(flatten)]
    pub tls: ClientTlsArgs,
}

/// `map`.
#[derive(Debug, Args)]
pub struct MapArgs {
    /// URI of the disk.
    #[arg(value_parser = uri())]
    pub uri: String,
    /// Print only totals.
    #[arg(long)]
    pub totals: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// TLS.
    #[command(flatten)]
    pub tls: ClientTlsArgs,
}

/// `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// URI of the disk.
    #[arg(value_parser = uri())]
    pub uri: String,
    /// Queue threads [default: one per CPU].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// TLS.
    #[command(flatten)]
    pub tls: ClientTlsArgs,
}

/// `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// URI of the disk.
    #[arg(value_parser = uri())]
    pub uri: String,
    /// Serve the disk to the command read-only.
    #[arg(long)]
    pub read_only: bool,
    /// Command and arguments, after --.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}
