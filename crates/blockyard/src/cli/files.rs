//! Disks as files of a directory, and directories that are shared.

use std::path::PathBuf;

use blockyard_export_virtiofs::MAX_REQUEST_QUEUES;
use clap::{Args, ValueEnum};

/// What clients of a share may cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ShareCache {
    /// Nothing: changes in the directory are visible at once.
    Never,
    /// Names and attributes for a second; data until the file is reopened or has changed.
    #[default]
    Auto,
    /// Everything: nothing else changes the directory.
    Always,
}

/// `share`.
#[derive(Debug, Args)]
pub struct ShareArgs {
    /// Directory to share.
    #[arg(value_name = "DIR", required_unless_present = "shared_dir")]
    pub directory: Option<PathBuf>,
    /// Directory to share, like an option of virtiofsd.
    #[arg(long, value_name = "DIR", conflicts_with = "directory", hide_short_help = true)]
    pub shared_dir: Option<PathBuf>,
    /// Where.
    #[command(flatten)]
    pub place: SharePlace,
    /// Share the directory read-only.
    #[arg(long, visible_alias = "readonly")]
    pub read_only: bool,
    /// Caching policy.
    #[arg(long, value_enum, default_value_t)]
    pub cache: ShareCache,
    /// Let other users access the files, subject to their permissions. In a virtual machine, they may in any case.
    #[arg(long, conflicts_with_all = ["socket", "fd"])]
    pub allow_other: bool,
    /// Requests carried out at a time [default: two per CPU, from 4 to 32; with --socket: 4 per queue].
    #[arg(
        long,
        visible_alias = "thread-pool-size",
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=256)
    )]
    pub threads: Option<u16>,
    /// Maximum number of request queues [default: 1].
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_REQUEST_QUEUES)),
        conflicts_with = "mount"
    )]
    pub queues: Option<u16>,
    /// Tag that guests mount it by, for front-ends that ask the back-end; QEMU has an option of its own.
    #[arg(long, value_name = "TAG", conflicts_with = "mount")]
    pub tag: Option<String>,
}

/// Where a directory is shared.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct SharePlace {
    /// Mount point: a directory outside of DIR.
    #[arg(long, value_name = "PATH")]
    pub mount: Option<PathBuf>,
    /// Unix socket that a virtual machine's vhost-user-fs device connects to.
    #[arg(long, visible_alias = "socket-path", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Inherited socket, listening or connected.
    #[arg(long, value_name = "FDNUM")]
    pub fd: Option<u32>,
}

/// `mount`.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// Configuration file, or process ID of a running daemon.
    #[arg(value_name = "YARD.TOML|PID")]
    pub yard: PathBuf,
    /// Mount point: a directory.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Make the files read-only.
    #[arg(long)]
    pub read_only: bool,
    /// Cache reads in the kernel's page cache until the file is reopened.
    #[arg(long)]
    pub page_cache: bool,
    /// Let other users open the files, subject to --mode.
    #[arg(long)]
    pub allow_other: bool,
    /// Permissions of the files, in octal [default: 600].
    #[arg(long, value_name = "MODE")]
    pub mode: Option<String>,
}
