//! The arguments of `copy`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::ClientTlsArgs;
use super::uri_arg::uri;

/// Whether blocks are shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Reflink {
    /// Share blocks where the target has none of its own: in a new file, or a hole.
    #[default]
    Auto,
    /// Give the copy blocks of its own.
    Never,
}

/// `copy`.
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// Source disk.
    #[arg(value_name = "SOURCE-URI", value_parser = uri())]
    pub source: String,
    /// Target disk, which is overwritten. A missing file is created.
    #[arg(value_name = "TARGET-URI", value_parser = uri())]
    pub target: String,
    /// Look for zeroes in data, too, and write them as holes.
    #[arg(long)]
    pub detect_zeroes: bool,
    /// Sharing of blocks between two files (XFS, btrfs); overwriting either then needs new space.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub reflink: Reflink,
    /// Record progress in FILE; resume from it if it exists.
    #[arg(long, value_name = "FILE")]
    pub resume: Option<PathBuf>,
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
