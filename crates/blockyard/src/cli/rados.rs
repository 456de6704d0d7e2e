//! `blockyard rados` on the command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `rados`.
#[derive(Debug, Args)]
pub struct RadosArgs {
    /// Cluster, pool and namespace.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// The command.
    #[command(subcommand)]
    pub command: RadosCommand,
}

/// Where objects are, with the names that Ceph's own programs use.
#[derive(Clone, Debug, Args)]
pub struct PlaceArgs {
    /// Pool.
    #[arg(short, long, global = true, value_name = "POOL")]
    pub pool: Option<String>,
    /// Namespace in the pool.
    #[arg(short = 'N', long, global = true, value_name = "NAME", default_value = "")]
    pub namespace: OsString,
    /// Ceph configuration file [default: $CEPH_CONF, /etc/ceph/ceph.conf, ~/.ceph/config, ./ceph.conf].
    #[arg(short, long, global = true, value_name = "FILE")]
    pub conf: Option<String>,
    /// Authenticate as client.ID [default: admin].
    #[arg(long, global = true, value_name = "ID")]
    pub id: Option<String>,
    /// Keyring file.
    #[arg(short, long, global = true, value_name = "FILE")]
    pub keyring: Option<String>,
    /// Monitor addresses.
    #[arg(short, long, global = true, value_name = "ADDR")]
    pub mon_host: Option<String>,
    /// Fail operations that take longer, e.g. 30s [default: client_mount_timeout, rados_mon_op_timeout and rados_osd_op_timeout
    /// of ceph.conf, else 60s].
    #[arg(long, global = true, value_name = "TIME")]
    pub timeout: Option<String>,
    /// Print JSON.
    #[arg(long, global = true)]
    pub json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum RadosCommand {
    /// Write an object to a file, or to standard output.
    Get {
        /// The object.
        object: OsString,
        /// Target file; - is standard output.
        #[arg(default_value = "-")]
        file: PathBuf,
    },
    /// Write a file, or standard input, to an object.
    Put {
        /// The object.
        object: OsString,
        /// Source file; - is standard input.
        #[arg(default_value = "-")]
        file: PathBuf,
    },
    /// List the objects of the namespace.
    Ls {
        /// List the objects of all namespaces.
        #[arg(long)]
        all: bool,
    },
    /// Show size and modification time of objects.
    Stat {
        /// The objects.
        #[arg(required = true)]
        objects: Vec<OsString>,
    },
    /// Remove objects.
    Rm {
        /// The objects.
        #[arg(required = true)]
        objects: Vec<OsString>,
    },
    /// Show the placement group and the OSDs of objects.
    Map {
        /// The objects.
        #[arg(required = true)]
        objects: Vec<OsString>,
    },
    /// Benchmark a pool. Its objects are written first and removed at the end.
    Bench(RadosBenchArgs),
}

/// What `bench` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RadosRw {
    /// Reads of whole objects, which are written first.
    Read,
    /// Writes of whole objects.
    Write,
}

/// `rados bench`.
#[derive(Debug, Args)]
pub struct RadosBenchArgs {
    /// Access pattern.
    #[arg(value_enum)]
    pub rw: RadosRw,
    /// Block size.
    #[arg(long, value_name = "SIZE", default_value = "4M")]
    pub bs: String,
    /// Requests in flight.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub depth: u32,
    /// Duration, e.g. 10s.
    #[arg(long, value_name = "TIME", default_value = "3s")]
    pub time: String,
    /// Number of objects, each of one block.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub objects: u32,
    /// Prefix of object names: NAME.0, NAME.1 and so on [default: a unique one].
    #[arg(long, value_name = "NAME")]
    pub run_name: Option<String>,
    /// Keep the objects for a later run of this name.
    #[arg(long, requires = "run_name")]
    pub no_cleanup: bool,
    /// Reuse the objects of an earlier --no-cleanup run of this name.
    #[arg(long, requires = "run_name")]
    pub no_prepare: bool,
}
