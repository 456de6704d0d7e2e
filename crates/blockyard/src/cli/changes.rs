//! What changes in a daemon that runs.

use clap::Args;

use super::export_flags::ExportFlags;
use super::uri_arg::uri;

/// `set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// Name of the disk, as `list` shows it; PID:NAME if several daemons have a disk of that name.
    #[arg(value_name = "DISK")]
    pub disk: String,
    /// Settings, e.g. size=2G or read_only=1.
    #[arg(required = true, value_name = "SETTING")]
    pub settings: Vec<String>,
    /// Allow shrinking. Data past the new end becomes unreachable.
    #[arg(long)]
    pub shrink: bool,
    /// Save the change to the yard.toml of the daemon.
    #[arg(long)]
    pub save: bool,
}

/// `fault`.
#[derive(Debug, Args)]
pub struct FaultArgs {
    /// Name of the disk, as `list` shows it; PID:NAME if several daemons have a disk of that name.
    #[arg(value_name = "DISK")]
    pub disk: String,
    /// Fault with its options, e.g. error=EIO op=write p=0.1; or list, clear, clear ID, release, release ID [default: list].
    #[arg(value_name = "FAULT")]
    pub words: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// URI of the disk.
    #[arg(value_parser = uri())]
    pub uri: String,
    /// Name of the disk and its exports [default: made from the URI].
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Process ID of the daemon, if several run.
    #[arg(long, value_name = "PID")]
    pub daemon: Option<u32>,
    /// Serve the disk read-only.
    #[arg(long)]
    pub read_only: bool,
    /// Front-ends of other kinds.
    #[command(flatten)]
    pub exports: ExportFlags<false>,
    /// Do not serve the disk over NBD.
    #[arg(long)]
    pub no_nbd: bool,
    /// Save the change to the yard.toml of the daemon.
    #[arg(long)]
    pub save: bool,
}

/// `remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Name of the disk, as `list` shows it; PID:NAME if several daemons have a disk of that name.
    #[arg(value_name = "DISK")]
    pub disk: String,
    /// Save the change to the yard.toml of the daemon.
    #[arg(long)]
    pub save: bool,
}
