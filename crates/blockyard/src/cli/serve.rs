//! Disks and exports of a new daemon.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::export_flags::ExportFlags;
use super::uri_arg::uri;

/// TLS policy for NBD clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Tls {
    /// No TLS.
    #[default]
    Off,
    /// TLS for clients that ask for it.
    Allow,
    /// Refuse clients that do not use TLS.
    Require,
}

/// `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Disks; each becomes an export, the first is the default export.
    #[arg(required = true, value_name = "URI", value_parser = uri())]
    pub uris: Vec<String>,
    /// Listen address: unix:PATH, tcp:HOST:PORT, vsock:CID:PORT, or systemd for socket activation. Repeatable.
    #[arg(long, value_name = "ADDR")]
    pub nbd: Vec<String>,
    /// Front-ends of other kinds.
    #[command(flatten)]
    pub exports: ExportFlags<true>,
    /// Export name [default: name of the disk]. Repeatable: one per disk, in order.
    #[arg(long, value_name = "NAME")]
    pub name: Vec<String>,
    /// Export description, sent to clients that list exports. Repeatable, like --name.
    #[arg(long, value_name = "TEXT")]
    pub description: Vec<String>,
    /// Serve all disks read-only.
    #[arg(long)]
    pub read_only: bool,
    /// TLS policy for NBD clients.
    #[arg(long, value_enum, default_value_t)]
    pub tls: Tls,
    /// Server certificate chain (PEM): the server's certificate first, then intermediates.
    #[arg(long, value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,
    /// Private key of the server certificate (PEM).
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Require client certificates signed by this CA (PEM).
    #[arg(long, value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// Pre-shared keys instead of certificates: lines of USER:KEY, as psktool(1) writes them. Needs a build with `psk`.
    #[arg(
        long,
        value_name = "FILE",
        hide = cfg!(not(feature = "psk")),
        conflicts_with_all = ["tls_certificate", "tls_key", "tls_client_ca"]
    )]
    pub tls_psk: Option<PathBuf>,
    /// Maximum number of clients; as many again may be in their handshake [default: 1024].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_clients: Option<u32>,
    /// Maximum number of clients from one host: an address, a guest, a user of a Unix socket [default: three quarters of
    /// --max-clients; no limit for users of this machine].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_clients_per_host: Option<u32>,
    /// Maximum number of requests in flight per client [default: 128].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_in_flight: Option<u32>,
    /// Memory for requests and replies of all NBD clients together [default: 256M].
    #[arg(long, value_name = "SIZE")]
    pub max_memory: Option<String>,
    /// Serve Prometheus metrics over HTTP on this address, e.g. 127.0.0.1:9660. Repeatable.
    #[arg(long, value_name = "ADDR")]
    pub metrics: Vec<SocketAddr>,
    /// Queue threads [default: one per CPU].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    /// Mode of Unix sockets, in octal, e.g. 660.
    #[arg(long, value_name = "MODE")]
    pub socket_mode: Option<String>,
    /// Run this shell command with $uri set, and exit with its status.
    #[arg(long, value_name = "CMD")]
    pub run: Option<OsString>,
}
