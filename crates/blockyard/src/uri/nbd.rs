//! Disks at NBD servers. The parameters of the NBD URI itself are its own (`doc/uri.md`: `socket`, and all that begin
//! with `tls-`); what we add are options in plain words, as those of every disk, and none of them begins that way.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use blockyard_driver_nbd::{MAX_CONNECTIONS, NbdConfig, TlsFiles};
use blockyard_nbd::uri::{TlsParams, Transport, Uri};

use super::options::{PlanBuilder, Scheme, canonical_key, flag, number, parse_duration};
use super::{UriError, absolute, decode};
use crate::suggest;

/// The parameters of the NBD URI itself.
const PARAMETERS: [&str; 6] =
    ["socket", "tls-type", "tls-hostname", "tls-verify-peer", "tls-certificates", "tls-psk-file"];

/// An export of an NBD server, and how the connections to it are treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdPlan {
    /// Where it is.
    pub uri: Uri,
    /// Connections, one hardware queue each; as many as queue threads without.
    pub connections: Option<usize>,
    /// A connection on which nothing comes for so long, though something is waited for, is dead.
    pub timeout: Duration,
    /// Requests wait so long for a connection before they fail.
    pub dead_conn_timeout: Duration,
    /// A server that neither answers nor closes is taken to be through with a connection after so long.
    pub fence_timeout: Duration,
    /// A restart of the server loses nothing that it has acknowledged.
    pub trust_server: bool,
    /// Files of TLS in place of those that the URI names.
    pub tls_files: TlsFiles,
}

impl NbdPlan {
    pub(super) fn new(uri: Uri) -> Self {
        let usual = NbdConfig::new(uri);
        Self {
            uri: usual.uri,
            connections: usual.connections,
            timeout: usual.timeout,
            dead_conn_timeout: usual.dead_conn_timeout,
            fence_timeout: usual.fence_timeout,
            trust_server: usual.trust_server,
            tls_files: usual.tls_files,
        }
    }

    /// What the driver needs to know.
    #[must_use]
    pub fn config(&self, read_only: bool) -> NbdConfig {
        NbdConfig {
            tls_files: self.tls_files.clone(),
            connections: self.connections,
            timeout: self.timeout,
            dead_conn_timeout: self.dead_conn_timeout,
            fence_timeout: self.fence_timeout,
            trust_server: self.trust_server,
            read_only,
            ..NbdConfig::new(self.uri.clone())
        }
    }

    /// An abstract socket has no path, and a path to files of TLS is UTF-8 in a URI.
    pub(super) fn make_paths_absolute(&mut self, folder: &Path) -> Result<(), String> {
        let place = |path: &mut String| {
            let absolute = absolute(folder, Path::new(path.as_str()))?.into_os_string();
            *path = absolute
                .into_string()
                .map_err(|path| format!("{} is not UTF-8", path.display()))?;
            Ok::<_, String>(())
        };
        if let Transport::Unix { socket } = &mut self.uri.transport
            && !socket.as_os_str().as_bytes().starts_with(b"\0")
        {
            *socket = absolute(folder, socket)?;
        }
        let tls = &mut self.uri.tls_params;
        tls.certificates.iter_mut().chain(&mut tls.psk_file).try_for_each(place)
    }

    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let time = match key {
            "connections" => {
                let count = number(value, 1, MAX_CONNECTIONS as u64)?;
                self.connections = usize::try_from(count).ok();
                return Ok(());
            }
            "trust_server" => {
                self.trust_server = flag(value)?;
                return Ok(());
            }
            "timeout" => &mut self.timeout,
            "dead_conn_timeout" => &mut self.dead_conn_timeout,
            _ => &mut self.fence_timeout,
        };
        *time = parse_duration(value)?;
        if time.is_zero() && key != "dead_conn_timeout" {
            return Err("no time at all is too little; 30s is usual".into());
        }
        Ok(())
    }
}

/// A URI with one of the schemes of NBD: its own parameters go one way, our options the other.
pub(super) fn parse(text: &str) -> Result<PlanBuilder, UriError> {
    let (base, query) = text.split_once('?').unwrap_or((text, ""));
    let mut plan = PlanBuilder::new(Scheme::Nbd);
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
    let uri: Uri = format!("{base}{mark}{}", theirs.join("&"))
        .parse()
        .map_err(|err| UriError::new(text, 0..text.len(), problem(&err)))?;
    if !uri.tls && uri.tls_params != TlsParams::default() {
        let (scheme, _) = base.split_once("//").unwrap_or((base, ""));
        let scheme = scheme.trim_end_matches(':');
        let secure = scheme.to_ascii_lowercase().replacen("nbd", "nbds", 1);
        let what =
            format!("there is no TLS with {scheme}://, and tls- says how; write {secure}://");
        return Err(UriError::new(text, 0..scheme.len(), what));
    }
    plan.export(uri);
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
    Ok(plan)
}

fn problem(error: &blockyard_nbd::Error) -> String {
    match error.kind() {
        blockyard_nbd::ErrorKind::BadParameter { problem, text } => format!("{problem}: {text:?}"),
        other => other.to_string(),
    }
}
