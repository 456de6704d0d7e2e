//! `blockyard rados` on the command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `rados`.
#[derive(Debug, Args)]
pub struct RadosArgs {
    /// Which cluster, pool and namespace.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: RadosCommand,
}

/// Where objects are, with the names that Ceph's own programs use.
#[derive(Clone, Debug, Args)]
pub struct PlaceArgs {
    /// The pool.
    #[arg(short, long, global = true, value_name = "POOL")]
    pub pool: Option<String>,
    /// The namespace in the pool.
    #[arg(short = 'N', long, global = true, value_name = "NAME", default_value = "")]
    pub namespace: OsString,
    /// The cluster's ceph.conf; CEPH_CONF, or the usual places without.
    #[arg(short, long, global = true, value_name = "FILE")]
    pub conf: Option<String>,
    /// Who to be: client.ID.
    #[arg(long, global = true, value_name = "ID")]
    pub id: Option<String>,
    /// The file with the key.
    #[arg(short, long, global = true, value_name = "FILE")]
    pub keyring: Option<String>,
    /// Where the monitors are.
    #[arg(short, long, global = true, value_name = "ADDR")]
    pub mon_host: Option<String>,
    /// Give up what takes longer, as 30s; without it, what ceph.conf says (client_mount_timeout, rados_mon_op_timeout,
    /// rados_osd_op_timeout), or 60s.
    #[arg(long, global = true, value_name = "TIME")]
    pub timeout: Option<String>,
    /// JSON.
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
        /// The file; - for standard output.
        #[arg(default_value = "-")]
        file: PathBuf,
    },
    /// Write a file, or standard input, to an object.
    Put {
        /// The object.
        object: OsString,
        /// The file; - for standard input.
        #[arg(default_value = "-")]
        file: PathBuf,
    },
    /// List the objects of the namespace.
    Ls {
        /// Of all namespaces.
        #[arg(long)]
        all: bool,
    },
    /// Show the size and the time of objects.
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
    /// Show where objects are.
    Map {
        /// The objects.
        #[arg(required = true)]
        objects: Vec<OsString>,
    },
    /// Put load on a pool and measure it. The objects are written first, and removed in the end.
    Bench(RadosBenchArgs),
}

/// What `bench` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RadosRw {
    /// Read whole blocks of objects that are written first.
    Read,
    /// Write blocks of objects.
    Write,
}

/// `rados bench`.
#[derive(Debug, Args)]
pub struct RadosBenchArgs {
    /// Read or write.
    #[arg(value_enum)]
    pub rw: RadosRw,
    /// Bytes of a request.
    #[arg(long, value_name = "SIZE", default_value = "4M")]
    pub bs: String,
    /// Requests at a time.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub depth: u32,
    /// For how long.
    #[arg(long, value_name = "TIME", default_value = "3s")]
    pub time: String,
    /// How many objects to use, each of one request's size.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub objects: u32,
    /// Name the objects NAME.0, NAME.1 and so on; without, no other run has their names.
    #[arg(long, value_name = "NAME")]
    pub run_name: Option<String>,
    /// Leave the objects to a later run of this name.
    #[arg(long, requires = "run_name")]
    pub no_cleanup: bool,
    /// Take the objects that an earlier run of this name left, and do not write them first.
    #[arg(long, requires = "run_name")]
    pub no_prepare: bool,
}
