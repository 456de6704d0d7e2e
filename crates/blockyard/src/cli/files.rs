//! Disks as files of a directory, and directories that are shared.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// What who uses a share may keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ShareCache {
    /// Nothing: what others change in the directory is seen at once.
    Never,
    /// Names and attributes for a second, data until a file is opened anew or has changed.
    #[default]
    Auto,
    /// All of it: nobody else changes the directory.
    Always,
}

/// `share`.
#[derive(Debug, Args)]
pub struct ShareArgs {
    /// The directory.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Where it is mounted: a directory that is not inside of it.
    #[arg(long, value_name = "PATH", required = true)]
    pub mount: PathBuf,
    /// Let nobody change anything.
    #[arg(long)]
    pub read_only: bool,
    /// What those who use it may keep.
    #[arg(long, value_enum, default_value_t)]
    pub cache: ShareCache,
    /// Let other users use it, too, as far as the modes of files let them.
    #[arg(long)]
    pub allow_other: bool,
    /// Requests that are carried out at a time; twice as many as CPUs without, from 4 to 32.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
}

/// `mount`.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// A yard.toml, or the process of a daemon that runs.
    #[arg(value_name = "YARD.TOML|PID")]
    pub yard: PathBuf,
    /// The directory that the disks cover.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Let nobody change the disks by their files.
    #[arg(long)]
    pub read_only: bool,
    /// Keep what was read in the kernel's page cache until the file is opened anew.
    #[arg(long)]
    pub page_cache: bool,
    /// Let other users open the files, too, as far as --mode lets them.
    #[arg(long)]
    pub allow_other: bool,
    /// Permissions of the files, in octal; 600 without.
    #[arg(long, value_name = "MODE")]
    pub mode: Option<String>,
}
