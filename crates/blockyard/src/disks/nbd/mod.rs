//! Disks at NBD servers. The parameters of the NBD URI itself are its own (`doc/uri.md`: `socket`, and all that begin
//! with `tls-`); what we add are options in plain words, as those of every disk, and none of them begins that way.

mod ask;
mod identity;
mod server;

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::Disk;
use blockyard_driver_nbd::{Ledger, MAX_CONNECTIONS, Nbd, NbdConfig, TlsFiles};
use blockyard_nbd::uri::{TlsParams, Transport, Uri};
use tokio::runtime::Handle;

use super::builder::PlanBuilder;
use super::describe::{Described, Offers};
use super::identity::DiskIdentity;
use super::kind::{Body, DiskKind, DiskSource, Fresh, Place, Said, TlsTaken};
use super::maker::{DiskMaker, Parts, failed_flush_of, shown_blocks};
use super::options::{NO_LIMIT, OptionSpec, ValueKind, canonical_key};
use super::plan::{DiskPlan, absolute};
use super::remote::{Goodbye, RemoteDriver};
use crate::disks::uri::{UriError, decode};
use crate::error::{Error, Result};
use crate::text::suggest;

/// The parameters of the NBD URI itself.
const PARAMETERS: [&str; 6] =
    ["socket", "tls-type", "tls-hostname", "tls-verify-peer", "tls-certificates", "tls-psk-file"];

const SOME_TIME: ValueKind = ValueKind::Time { zero: false, most: NO_LIMIT };

pub(super) static KIND: DiskKind = DiskKind {
    name: "nbd",
    schemes: &["nbd", "nbds", "nbd+unix", "nbds+unix", "nbd+vsock", "nbds+vsock"],
    body: Body::Own(parse),
    usage: "nbd://HOST/EXPORT",
    summary: "an export of an NBD server; nbds: with TLS; nbd+unix:///EXPORT?socket=/s, nbd+vsock://CID",
    options: &[
        OptionSpec::new(
            "connections",
            ValueKind::Number { least: 1, most: MAX_CONNECTIONS as u64 },
            "one per queue thread",
            "number of connections; each is a hardware queue",
        ),
        OptionSpec::new(
            "timeout",
            SOME_TIME,
            "30s",
            "time without a reply after which a connection is replaced",
        ),
        OptionSpec::new(
            "dead_conn_timeout",
            ValueKind::Time { zero: true, most: NO_LIMIT },
            "120s",
            "time that requests wait for a new connection before they fail",
        ),
        OptionSpec::new(
            "fence_timeout",
            SOME_TIME,
            "60s",
            "maximum time that a server still executes requests of a lost connection",
        ),
        OptionSpec::new(
            "trust_server",
            ValueKind::Flag,
            "0",
            "assume that the server keeps acknowledged writes across restarts",
        ),
        OptionSpec::new(
            "flush_after",
            ValueKind::Time { zero: true, most: NO_LIMIT },
            "1s",
            "idle time after which unflushed writes are flushed; 0: never",
        ),
    ],
    // Its hardware queues are its connections.
    without: &["queues"],
    has_below: false,
    stays_read_only: true,
    is_volatile: false,
    source,
};

/// An export of an NBD server, and how the connections to it are treated.
#[derive(Clone, Debug)]
pub struct NbdSource {
    /// All that the driver has to be told, but whether it may write.
    pub config: NbdConfig,
}

fn source(said: &Said<'_>) -> Result<Box<dyn DiskSource>, String> {
    let missing = "the server is missing; write nbd://host/export";
    let Some(Place::Text(uri)) = said.place else { return Err(missing.into()) };
    let uri = uri.parse().map_err(|err| problem(&err, uri))?;
    let usual = NbdConfig::new(absolute_paths(uri, said.folder)?);
    let set = said.settings;
    let connections = set.number("connections").and_then(|count| usize::try_from(count).ok());
    let config = NbdConfig {
        connections: connections.or(usual.connections),
        timeout: set.time("timeout").unwrap_or(usual.timeout),
        dead_conn_timeout: set.time("dead_conn_timeout").unwrap_or(usual.dead_conn_timeout),
        fence_timeout: set.time("fence_timeout").unwrap_or(usual.fence_timeout),
        trust_server: set.flag("trust_server").unwrap_or(usual.trust_server),
        flush_after: match set.time("flush_after") {
            Some(time) => Some(time).filter(|time| !time.is_zero()),
            None => usual.flush_after,
        },
        ..usual
    };
    Ok(Box::new(NbdSource { config }))
}

/// An abstract socket has no path, and a path to files of TLS is UTF-8 in a URI.
fn absolute_paths(mut uri: Uri, folder: &Path) -> Result<Uri, String> {
    let place = |path: &mut String| {
        let absolute = absolute(folder, Path::new(path.as_str()))?.into_os_string();
        *path =
            absolute.into_string().map_err(|path| format!("{} is not UTF-8", path.display()))?;
        Ok::<_, String>(())
    };
    if let Transport::Unix { socket } = &mut uri.transport
        && !socket.as_os_str().as_bytes().starts_with(b"\0")
    {
        *socket = absolute(folder, socket)?;
    }
    let tls = &mut uri.tls_params;
    tls.certificates.iter_mut().chain(&mut tls.psk_file).try_for_each(place)?;
    Ok(uri)
}

impl DiskSource for NbdSource {
    /// A hardware queue for each connection.
    fn open(&self, plan: &DiskPlan, _: Option<&Arc<Disk>>, maker: &mut DiskMaker) -> Result<Fresh> {
        let threads = maker.threads().len();
        let wanted = self.config.connections.unwrap_or(threads);
        let connections = wanted.min(threads);
        if wanted > connections {
            tracing::warn!(
                server = %self.config.uri,
                wanted,
                connections,
                "fewer connections than wanted: each needs a queue thread; raise --threads (threads.count in yard.toml)"
            );
        }
        let config = NbdConfig {
            connections: Some(connections),
            read_only: plan.options.read_only,
            ..self.config.clone()
        };
        let (driver, export) = server::connect(config, maker.threads())?;
        let size = shown_blocks(plan, export.bytes(), export.limits.logical_block_size)?;
        let mut parts = Parts::new(plan, maker, Arc::clone(&driver), size, export.limits);
        parts.read_only = export.read_only;
        parts.tags = driver.tag_set_config(threads);
        let disk = maker.alloc(plan, parts)?;
        driver.on_failed_flush(failed_flush_of(&disk));
        Ok(Fresh { disk, remote: Some(driver) })
    }

    fn identity(&self) -> io::Result<Option<DiskIdentity>> {
        Ok(Some(identity::of_export(&self.config.uri)))
    }

    fn stem(&self) -> Option<&str> {
        self.config.uri.export.rsplit('/').next()
    }

    fn fence(&self) -> Option<Duration> {
        Some(self.config.fence_timeout)
    }

    fn take_tls(&mut self, uri: &str, files: &TlsFiles) -> Result<TlsTaken> {
        if !self.config.uri.tls {
            let secure = Uri { tls: true, ..self.config.uri.clone() };
            return Ok(TlsTaken::OnlyBy(secure.to_string()));
        }
        if self.config.uri.tls_params.psk_file.is_some() {
            let what =
                format!("{uri} has pre-shared keys, which cannot be combined with certificates");
            return Err(Error::usage(what).help("omit tls-psk-file, or the --tls options"));
        }
        self.config.tls_files = files.clone();
        Ok(TlsTaken::Yes)
    }

    fn describe(&self) -> Option<Result<Described>> {
        Some(ask::describe(&self.config.uri, &self.config.tls_files))
    }

    fn offers(&self) -> Option<Result<Offers>> {
        Some(ask::offers(&self.config.uri, &self.config.tls_files))
    }
}

impl RemoteDriver for Nbd {
    fn clear_queue(&self) {
        self.clear_queue();
    }

    fn hold_writes(&self) {
        self.hold_writes();
    }

    fn may_change_late(&self) -> bool {
        self.may_change_late()
    }

    fn tracks_unflushed(&self) -> bool {
        self.tracks_unflushed()
    }

    fn keep_ledger(&self, ledger: Arc<dyn Ledger>) {
        self.keep_ledger(ledger);
    }

    fn inherit_unflushed(&self) -> bool {
        self.inherit_unflushed()
    }

    fn disconnect(&self) -> Goodbye<'_> {
        Box::pin(self.disconnect())
    }

    fn give_up(&self) -> Goodbye<'_> {
        Box::pin(self.give_up())
    }

    fn follow_size(&self, thread: &Handle, mut tell: Box<dyn FnMut(u64) -> bool + Send>) {
        let mut export = self.watch();
        thread.spawn(async move {
            while export.changed().await.is_ok() {
                let bytes = export.borrow_and_update().bytes();
                if !tell(bytes) {
                    break;
                }
            }
        });
    }
}

/// A URI with one of the schemes of NBD: its own parameters go one way, our options the other.
fn parse(plan: &mut PlanBuilder, text: &str) -> Result<(), UriError> {
    let (base, query) = text.split_once('?').unwrap_or((text, ""));
    let names = plan.names();
    let own = |parameter: &str| {
        let key = parameter.split('=').next().unwrap_or(parameter);
        // "Clients SHOULD prefix experimental query parameters using x-": our options may be written so, in a URI
        // that others are to read as well.
        let ours =
            key.strip_prefix("x-").is_some_and(|key| names.contains(&canonical_key(key).as_ref()));
        key == "socket" || key.starts_with("tls-") || key.starts_with("x-") && !ours
    };
    let theirs: Vec<_> = query.split('&').filter(|parameter| own(parameter)).collect();
    let mark = if theirs.is_empty() { "" } else { "?" };
    let canonical = format!("{base}{mark}{}", theirs.join("&"));
    let uri: Uri = canonical.parse().map_err(|err| {
        let problem = match of_qemu(text) {
            Some(meant) => format!("host missing; did you mean {meant}?"),
            None => problem(&err, &canonical),
        };
        UriError::of_all(text, problem)
    })?;
    if !uri.tls && uri.tls_params != TlsParams::default() {
        let (scheme, _) = base.split_once("//").unwrap_or((base, ""));
        let scheme = scheme.trim_end_matches(':');
        let secure = scheme.to_ascii_lowercase().replacen("nbd", "nbds", 1);
        let what =
            format!("{scheme}:// has no TLS, but there are tls- parameters; write {secure}://");
        return Err(UriError::new(text, 0..scheme.len(), what));
    }
    plan.text(canonical);
    let mut at = base.len() + 1;
    for parameter in query.split('&') {
        let range = at..at + parameter.len();
        at = range.end + 1;
        if parameter.is_empty() || own(parameter) {
            continue;
        }
        let wrong = |problem| UriError::new(text, range.clone(), problem);
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, "1"));
        let key = key.strip_prefix("x-").unwrap_or(key);
        let mut names = names.clone();
        if !names.contains(&canonical_key(key).as_ref()) {
            names.extend(PARAMETERS);
            let hint = suggest::hint(key, &names);
            return Err(wrong(format!("an NBD disk has no option {key:?}; {hint}")));
        }
        let value = decode(value).map_err(wrong)?;
        plan.set(key, &value).map_err(wrong)?;
    }
    Ok(())
}

/// The URI for one in the form of older versions of QEMU: `nbd:HOST:PORT[:exportname=NAME]` or `nbd:unix:PATH[:exportname=NAME]`.
fn of_qemu(text: &str) -> Option<String> {
    let rest = text.strip_prefix("nbd:").filter(|rest| !rest.starts_with('/'))?;
    let (address, export) = rest.split_once(":exportname=").unwrap_or((rest, ""));
    if let Some(socket) = address.strip_prefix("unix:") {
        return Some(format!("nbd+unix:///{export}?socket={socket}"));
    }
    let slash = if export.is_empty() { "" } else { "/" };
    (!address.is_empty()).then(|| format!("nbd://{address}{slash}{export}"))
}

/// What is wrong with a URI, which stands in the message once.
fn problem(error: &blockyard_nbd::Error, uri: &str) -> String {
    match error.kind() {
        blockyard_nbd::ErrorKind::BadParameter { problem, text } if text == uri => {
            (*problem).to_owned()
        }
        blockyard_nbd::ErrorKind::BadParameter { problem, text } => format!("{problem}: {text:?}"),
        other => other.to_string(),
    }
}
