//! Disks as files of a directory, and directories that are shared.

use std::path::PathBuf;

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
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Mount point: a directory outside of DIR.
    #[arg(long, value_name = "PATH", required = true)]
    pub mount: PathBuf,
    /// Mount it read-only.
    #[arg(long)]
    pub read_only: bool,
    /// Caching policy.
    #[arg(long, value_enum, default_value_t)]
    pub cache: ShareCache,
    /// Let other users access the files, subject to their permissions.
    #[arg(long)]
    pub allow_other: bool,
    /// Requests carried out at a time [default: two per CPU, from 4 to 32].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
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
