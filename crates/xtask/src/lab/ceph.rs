//! `cargo xtask lab ceph`.

use crate::setup;
use anyhow::{Context as _, Result};
use blockyard_lab::ceph::{self, Auth, Cluster, Mode};
use clap::{Args, ValueEnum};
use std::iter;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// How clients prove who they are.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum AuthChoice {
    /// By keys and tickets
    Cephx,
    /// Not at all
    None,
}

/// How connections are protected.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ModeChoice {
    /// As Ceph does by default
    Default,
    /// Checksums only
    Crc,
    /// Encryption only
    Secure,
}

/// Options of `cargo xtask lab ceph`.
#[derive(Args, Debug)]
pub struct Options {
    /// How many OSDs
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub osds: u32,
    /// How clients prove who they are
    #[arg(long, value_enum, default_value = "cephx")]
    pub auth: AuthChoice,
    /// How connections are protected
    #[arg(long, value_enum, default_value = "default")]
    pub mode: ModeChoice,
    /// A pool to make
    #[arg(long, value_name = "NAME", default_value = "rbd")]
    pub pool: String,
    /// Placement groups of the pool
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub groups: u32,
    /// Ceph's programs from another Debian suite (trixie: 18, sid: 20), fetched once; as root
    #[arg(long, value_name = "SUITE")]
    pub from: Option<String>,
    /// The command to run, with `CEPH_CONF` set; a shell if there is none
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

impl Options {
    fn cluster(&self, programs: Option<PathBuf>) -> ceph::Options {
        let auth = match self.auth {
            AuthChoice::Cephx => Auth::Cephx,
            AuthChoice::None => Auth::None,
        };
        let mode = match self.mode {
            ModeChoice::Default => Mode::Default,
            ModeChoice::Crc => Mode::Crc,
            ModeChoice::Secure => Mode::Secure,
        };
        ceph::Options { osds: self.osds, auth, mode, programs, ..ceph::Options::default() }
    }
}

/// Starts a cluster, runs the command with it, and ends it.
///
/// # Errors
/// Ceph is not installed, the cluster does not come up, or the command cannot be started.
pub fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure()?;
    let programs = options.from.as_deref().map(setup::ceph::ensure_from).transpose()?;
    let cluster = Cluster::start(&options.cluster(programs.clone()))?;
    cluster.create_pool(&options.pool, options.groups)?;
    let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned());
    let mut command = match options.command.split_first() {
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
        None => {
            eprintln!(
                "CEPH_CONF={} in this shell; the cluster ends with it",
                cluster.conf().display()
            );
            Command::new(shell)
        }
    };
    command.env("CEPH_CONF", cluster.conf()).env_remove("CEPH_ARGS");
    if let Some(programs) = programs {
        // For tests that start clusters of their own, and for whoever types `ceph`.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path =
            std::env::join_paths(iter::once(programs.clone()).chain(std::env::split_paths(&path)))?;
        command.env(ceph::PROGRAMS_VARIABLE, programs).env("PATH", path);
    }
    let status = command.status();
    let status = status.with_context(|| format!("cannot start {command:?}"))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
