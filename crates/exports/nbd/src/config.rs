//! What a server is made from, and its bounds.

use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::Bdev;
use blockyard_buf::Segment;
use blockyard_nbd::wire::HeaderStyle;

use crate::connection::LINGER;
use crate::error::{Error, ErrorKind};
use crate::flushes::CROSSING;
use crate::listener::PeerHost;
use crate::tls::TlsConfig;

/// Clients at a time. As many again may be in their handshake.
pub const DEFAULT_MAX_CLIENTS: usize = 1024;
/// Requests of a client that are being worked on or whose replies are not sent yet.
pub const DEFAULT_IN_FLIGHT_PER_CLIENT: usize = 128;
/// Bytes that the requests and replies of a client may occupy.
pub const DEFAULT_MEMORY_PER_CLIENT: usize = 64 << 20;
/// Bytes that the requests and replies of all clients together may occupy.
pub const DEFAULT_MAX_MEMORY: usize = 256 << 20;
/// Bytes of data in one request or reply: what a client that does not ask may assume (`doc/proto.md`, "Size
/// constraints").
pub const DEFAULT_MAX_PAYLOAD: u32 = 32 << 20;
/// From connecting to the choice of an export, TLS included.
pub const DEFAULT_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a message may be half-way, in either direction, without a byte of that direction moving. Long, as a client that
/// stands still may be suspended or starved, and disturbs nobody: who keeps memory that others wait for has
/// [less time](blockyard_nbd::server::PRESSED_TIMEOUT), and peers that are gone are TCP's to find out.
pub const DEFAULT_STALL_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// How long a client that has written what nobody has flushed is given to flush it when the server ends: more than
/// such clients of ours wait that are idle, and all that a daemon has for it by default.
pub const DEFAULT_FLUSH_GRACE: Duration = Duration::from_millis(2500);

/// How much of the time for clients at an end may be for their flushes: who has not flushed by then has to hear of the end, may
/// flush yet, and hangs up. Where there is not as much, it is half.
#[must_use]
pub fn longest_flush_grace(grace: Duration) -> Duration {
    grace.saturating_sub(CROSSING + LINGER).max(grace / 2)
}

/// The part of the clients that is kept for other hosts than one: one in so many.
const KEPT_FOR_OTHERS: usize = 4;

/// A disk on offer.
#[derive(Clone)]
pub struct Export {
    /// What clients ask for. The empty name is that of the default export.
    pub name: String,
    /// A text for people, empty for none.
    pub description: String,
    /// The disk or partition. An export of one that is opened read-only is read-only.
    pub bdev: Arc<Bdev>,
    /// Refuse to change it.
    pub read_only: bool,
    /// Only for clients that have started TLS.
    pub tls_only: bool,
    /// The preferred block size in bytes, a power of two of at least 512; `None` for what the disk prefers.
    pub preferred_block_size: Option<u32>,
    /// The block size in bytes that clients have to keep to; `None` lets them ask for any bytes.
    pub minimum_block_size: Option<u32>,
}

impl Export {
    /// The disk under that name, with nothing special about it.
    #[must_use]
    pub fn new(name: impl Into<String>, bdev: Arc<Bdev>) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            bdev,
            read_only: false,
            tls_only: false,
            preferred_block_size: None,
            minimum_block_size: None,
        }
    }
}

/// When TLS is spoken (`doc/proto.md`, "TLS support").
#[derive(Clone, Debug, Default)]
pub enum TlsMode {
    /// Never.
    #[default]
    Off,
    /// If the client asks for it.
    Allow(TlsConfig),
    /// By all, before anything else.
    Require(TlsConfig),
}

impl TlsMode {
    pub(crate) const fn sessions(&self) -> Option<&TlsConfig> {
        match self {
            Self::Off => None,
            Self::Allow(config) | Self::Require(config) => Some(config),
        }
    }
}

/// What a client may cost.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// [`DEFAULT_MAX_CLIENTS`].
    pub max_clients: usize,
    /// Of these, from one host: an IPv4 address, an IPv6 network of 64 bits, a guest, or a user at a unix socket. By default
    /// three quarters, and users at unix sockets all, as permissions say who these are.
    pub max_clients_per_host: Option<usize>,
    /// [`DEFAULT_IN_FLIGHT_PER_CLIENT`]. A client with more is not read from until some are done.
    pub in_flight_per_client: usize,
    /// [`DEFAULT_MEMORY_PER_CLIENT`]. A client that needs more is not read from until some is free.
    pub memory_per_client: usize,
    /// [`DEFAULT_MAX_MEMORY`]. Who needs more than there is left waits for its turn; small requests always pass.
    pub max_memory: usize,
    /// [`DEFAULT_MAX_PAYLOAD`].
    pub max_payload: u32,
    /// [`DEFAULT_HANDSHAKE_TIMEOUT`].
    pub handshake_timeout: Duration,
    /// [`DEFAULT_STALL_TIMEOUT`].
    pub stall_timeout: Duration,
    /// How long a client may ask for nothing; by default for ever, as clients that have a disk attached do.
    pub idle_timeout: Option<Duration>,
    /// [`DEFAULT_FLUSH_GRACE`], or the [longest](longest_flush_grace) that an end has time for.
    pub flush_grace: Duration,
    /// The best message headers that clients are offered.
    pub best_style: HeaderStyle,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            max_clients: DEFAULT_MAX_CLIENTS,
            max_clients_per_host: None,
            in_flight_per_client: DEFAULT_IN_FLIGHT_PER_CLIENT,
            memory_per_client: DEFAULT_MEMORY_PER_CLIENT,
            max_memory: DEFAULT_MAX_MEMORY,
            max_payload: DEFAULT_MAX_PAYLOAD,
            handshake_timeout: DEFAULT_HANDSHAKE_TIMEOUT,
            stall_timeout: DEFAULT_STALL_TIMEOUT,
            idle_timeout: None,
            flush_grace: DEFAULT_FLUSH_GRACE,
            best_style: HeaderStyle::Extended,
        }
    }
}

/// What a server is made from.
#[derive(Clone, Default)]
pub struct Config {
    /// What is on offer, each under a name of its own.
    pub exports: Vec<Export>,
    /// The name of the export that clients get who name none. Without it, they get the only one if there is but
    /// one.
    pub default_export: Option<String>,
    /// When TLS is spoken.
    pub tls: TlsMode,
    /// What a client may cost.
    pub limits: ServerLimits,
}

impl Config {
    /// Checks what can be wrong before anything is started.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let invalid = |what: String| Err(Error::new(ErrorKind::Config, what));
        for (at, export) in self.exports.iter().enumerate() {
            if self.exports[..at].iter().any(|other| other.name == export.name) {
                return invalid(format!("two exports are named {:?}; rename one", export.name));
            }
            self.check_export(export)?;
        }
        if let Some(name) = &self.default_export
            && self.exports.iter().all(|export| export.name != *name)
        {
            return invalid(format!("the default export {name:?} is not among the exports"));
        }
        self.limits.check()
    }

    /// Checks an export by itself.
    pub(crate) fn check_export(&self, export: &Export) -> Result<(), Error> {
        let invalid = |what: String| Err(Error::new(ErrorKind::Config, what));
        if export.name.len() > MAX_NAME || export.description.len() > MAX_NAME {
            let start: String = export.name.chars().take(20).collect();
            return invalid(format!(
                "the name or description of export {start:?} is longer than {MAX_NAME} bytes"
            ));
        }
        if let Some(size) = export.preferred_block_size
            && (!size.is_power_of_two() || size < 512 || size > self.limits.max_payload)
        {
            return invalid(format!(
                "export {:?}: the preferred block size {size} is not a power of two from 512 to the maximum payload",
                export.name
            ));
        }
        if let Some(size) = export.minimum_block_size
            && (!size.is_power_of_two() || size > MIN_MAX_PAYLOAD)
        {
            return invalid(format!(
                "export {:?}: the minimum block size {size} is not a power of two up to 64 KiB",
                export.name
            ));
        }
        if export.tls_only && matches!(self.tls, TlsMode::Off) {
            return invalid(format!(
                "export {:?} is for TLS only, but TLS is off; allow it",
                export.name
            ));
        }
        Ok(())
    }
}

/// The longest string of the protocol ("String values").
const MAX_NAME: usize = 4096;
/// The smallest maximum payload that makes sense: a page, and the largest block size that a disk can have.
const MIN_MAX_PAYLOAD: u32 = 64 << 10;

impl ServerLimits {
    /// The least [`ServerLimits::max_memory`]: the largest request has room in what is not set apart for small
    /// ones.
    #[must_use]
    pub fn least_memory(&self) -> usize {
        self.max_payload as usize * 2
    }

    /// How many clients a host may have.
    pub(crate) fn clients_of(&self, host: PeerHost) -> usize {
        self.max_clients_per_host.unwrap_or(match host {
            PeerHost::User(_) => self.max_clients,
            PeerHost::Ip(_) | PeerHost::Guest(_) => {
                self.max_clients - self.max_clients / KEPT_FOR_OTHERS
            }
        })
    }

    /// What the clients of one export may lease whatever those of others have, if there is as much: two of the largest
    /// requests.
    pub(crate) fn memory_per_export(&self) -> usize {
        self.least_memory().max(self.memory_per_client)
    }

    fn check(&self) -> Result<(), Error> {
        let invalid = |what: &str| Err(Error::new(ErrorKind::Config, what));
        if self.max_clients == 0
            || self.max_clients_per_host == Some(0)
            || self.in_flight_per_client == 0
        {
            return invalid("the limits of clients and requests must be at least 1");
        }
        if self.max_payload < MIN_MAX_PAYLOAD || self.max_payload as usize > Segment::MAX_LEN / 2 {
            return invalid("the maximum payload must be from 64 KiB to 1 GiB");
        }
        if self.memory_per_client < self.max_payload as usize {
            return invalid("the memory per client is less than the maximum payload of a request");
        }
        if self.max_memory < self.least_memory() {
            return invalid(
                "the memory for all clients must be at least twice the maximum payload",
            );
        }
        if self.handshake_timeout.is_zero() || self.stall_timeout.is_zero() {
            return invalid("timeouts must be greater than 0");
        }
        Ok(())
    }
}
