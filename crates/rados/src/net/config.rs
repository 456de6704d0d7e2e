//! What a client needs to know, and where it finds that.

use crate::auth::{Credentials, CryptoKey, Keyring};
use crate::conf::{Arguments, ConfFile, Host, MonHost, Settings, Surroundings, mon_hosts};
use crate::error::{Error, ErrorKind, Result};
use crate::msgr::{AuthMethod, ConnectionMode};
use crate::objecter;
use core::net::SocketAddr;
use std::net::ToSocketAddrs as _;
use std::time::Duration;
use std::{env, fs};

const DOING: &str = "reading the configuration of the cluster";
/// How long the first session may take to come (ceph: option `client_mount_timeout`).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(300);

/// What a client is to be. [`from_env`](Self::from_env) makes one as all of Ceph's programs would.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who the client is, and its key.
    pub credentials: Credentials,
    /// Where monitors may be.
    pub monitors: Vec<SocketAddr>,
    /// How connections to monitors may be protected, the preferred way first (option `ms_mon_client_mode`).
    pub monitor_modes: Vec<ConnectionMode>,
    /// How connections to OSDs may be protected, the preferred way first (option `ms_client_mode`).
    pub osd_modes: Vec<ConnectionMode>,
    /// How long [`Cluster::connect`](super::Cluster::connect) may take.
    pub connect_timeout: Duration,
    /// How long an operation may take; without, it waits for as long as the cluster is not able to do it (option
    /// `rados_osd_op_timeout`).
    pub op_timeout: Option<Duration>,
    /// How long monitors may take to answer (option `rados_mon_op_timeout`).
    pub monitor_timeout: Option<Duration>,
    /// Most operations in flight (option `objecter_inflight_ops`).
    pub max_ops: usize,
    /// Most bytes that they send and ask for (option `objecter_inflight_op_bytes`).
    pub max_bytes: u64,
    /// Where the client is, for reads from a near OSD (option `crush_location`): types and names of buckets.
    pub location: Vec<(String, String)>,
}

fn bad(problem: &'static str, text: String) -> Error {
    Error::new(DOING, ErrorKind::BadParameter { problem, text })
}

impl Config {
    /// A client of these monitors, with the limits that Ceph's clients have.
    #[must_use]
    pub fn new(credentials: Credentials, monitors: Vec<SocketAddr>) -> Self {
        let objecter = objecter::Config::default();
        Self {
            credentials,
            monitors,
            monitor_modes: vec![ConnectionMode::SECURE, ConnectionMode::CRC],
            osd_modes: vec![ConnectionMode::CRC, ConnectionMode::SECURE],
            connect_timeout: CONNECT_TIMEOUT,
            op_timeout: None,
            monitor_timeout: None,
            max_ops: objecter.max_ops,
            max_bytes: objecter.max_bytes,
            location: Vec::new(),
        }
    }

    /// From the environment: `CEPH_CONF`, `CEPH_ARGS`, the usual files.
    ///
    /// # Errors
    /// A file that cannot be read or understood, no monitors, an option with a value that is none.
    pub fn from_env() -> Result<Self> {
        Self::from_arguments::<&str>(&[])
    }

    /// From the environment and, before it, arguments as Ceph's programs take them: `--conf`, `--id`, `--name`,
    /// `--keyring`, `--mon-host`, any option.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn from_arguments<S: AsRef<str>>(words: &[S]) -> Result<Self> {
        let ceph_args = env::var("CEPH_ARGS").unwrap_or_default();
        let all: Vec<&str> =
            ceph_args.split_whitespace().chain(words.iter().map(AsRef::as_ref)).collect();
        let arguments = Arguments::parse(all.iter().copied())?;
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let home = env::var("HOME").unwrap_or_default();
        let surroundings =
            Surroundings { host: host.trim().to_owned(), home, pid: std::process::id() };
        let settings = Settings::new(&arguments, surroundings);
        let named = env::var("CEPH_CONF").ok();
        let settings = with_file(settings, &arguments, named.as_deref())?;
        Self::from_settings(&settings)
    }

    /// From settings that were read.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn from_settings(settings: &Settings) -> Result<Self> {
        let hosts = settings.get("mon_host").filter(|hosts| !hosts.trim().is_empty());
        let hosts = hosts.ok_or_else(|| {
            bad("no monitors are named: set mon host in ceph.conf, or CEPH_CONF", String::new())
        })?;
        let monitors = resolve(&mon_hosts(&hosts)?)?;
        let mut config = Self::new(credentials(settings)?, monitors);
        if let Some(modes) = settings.get("ms_mon_client_mode") {
            config.monitor_modes = connection_modes(&modes)?;
        }
        if let Some(modes) = settings.get("ms_client_mode") {
            config.osd_modes = connection_modes(&modes)?;
        }
        config.op_timeout = seconds(settings, "rados_osd_op_timeout")?;
        config.monitor_timeout = seconds(settings, "rados_mon_op_timeout")?;
        if let Some(timeout) = seconds(settings, "client_mount_timeout")? {
            config.connect_timeout = timeout;
        }
        if let Some(location) = settings.get("crush_location") {
            config.location = crush_location(&location)?;
        }
        Ok(config)
    }
}

/// The first of the files that is there; a file that was named has to be.
fn with_file(settings: Settings, arguments: &Arguments, named: Option<&str>) -> Result<Settings> {
    let is_named = arguments.conf.is_some() || named.is_some_and(|named| !named.is_empty());
    let mut missing = Vec::new();
    for path in settings.files(arguments, named) {
        match fs::read_to_string(&path) {
            Ok(text) => return Ok(settings.with_file(ConfFile::parse(&text)?)),
            Err(error) => missing.push(format!("{path}: {error}")),
        }
    }
    if is_named {
        return Err(bad("the configuration file cannot be read", missing.join("; ")));
    }
    Ok(settings)
}

/// The key from the option `key`, from the file of `keyfile`, or from the first keyring that has it.
fn credentials(settings: &Settings) -> Result<Credentials> {
    let identity = settings.identity().clone();
    let methods = auth_methods(&settings.get("auth_client_required").unwrap_or_default())?;
    let mut key = None;
    if let Some(text) = settings.get("key") {
        key = Some(CryptoKey::from_base64(text.trim())?);
    } else if let Some(path) = settings.get("keyfile") {
        let text = fs::read_to_string(&path)
            .map_err(|error| bad("the key's file cannot be read", format!("{path}: {error}")))?;
        key = Some(CryptoKey::from_base64(text.trim())?);
    } else {
        let mut tried = Vec::new();
        for path in settings.keyrings() {
            match fs::read_to_string(&path) {
                Ok(text) => key = Keyring::parse(&text)?.get(&identity).cloned(),
                Err(error) => tried.push(format!("{path}: {error}")),
            }
            if key.is_some() {
                break;
            }
            tried.push(format!("{path}: no key of {identity}"));
        }
        if key.is_none() && !methods.contains(&AuthMethod::NONE) {
            return Err(bad(
                "no keyring has the client's key: set keyring in ceph.conf, or --keyring, or --id",
                tried.join("; "),
            ));
        }
    }
    Ok(Credentials { identity, key, methods })
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', ';', ' ', '\t']).filter(|word| !word.is_empty())
}

fn auth_methods(text: &str) -> Result<Vec<AuthMethod>> {
    let method = |word| match word {
        "cephx" => Ok(AuthMethod::CEPHX),
        "none" => Ok(AuthMethod::NONE),
        other => Err(bad("auth client required is cephx or none", other.to_owned())),
    };
    let methods = words(text).map(method).collect::<Result<Vec<_>>>()?;
    // What Ceph's clients do if nothing is said (option `auth_client_required`).
    Ok(if methods.is_empty() { vec![AuthMethod::CEPHX, AuthMethod::NONE] } else { methods })
}

fn connection_modes(text: &str) -> Result<Vec<ConnectionMode>> {
    let mode = |word| match word {
        "crc" => Ok(ConnectionMode::CRC),
        "secure" => Ok(ConnectionMode::SECURE),
        other => Err(bad("a mode of connections is crc or secure", other.to_owned())),
    };
    let modes = words(text).map(mode).collect::<Result<Vec<_>>>()?;
    if modes.is_empty() {
        return Err(bad("a mode of connections is crc or secure", text.to_owned()));
    }
    Ok(modes)
}

/// A time in seconds, of which 0 stands for none.
fn seconds(settings: &Settings, option: &'static str) -> Result<Option<Duration>> {
    let Some(text) = settings.get(option) else { return Ok(None) };
    let number = text.trim().trim_end_matches('s').parse::<f64>().ok();
    let time = number.and_then(|number| Duration::try_from_secs_f64(number).ok());
    let time =
        time.ok_or_else(|| bad("a time is a number of seconds", format!("{option} = {text}")))?;
    Ok(Some(time).filter(|time| !time.is_zero()))
}

/// `root=default rack=r1 host=h1`.
fn crush_location(text: &str) -> Result<Vec<(String, String)>> {
    let pair = |word: &str| {
        let (kind, name) = word.split_once('=').ok_or_else(|| {
            bad("a location is a list of type=name, such as host=a", word.to_owned())
        })?;
        Ok((kind.to_owned(), name.to_owned()))
    };
    words(text).map(pair).collect()
}

/// Addresses of hosts; names are asked of the resolver.
fn resolve(hosts: &[MonHost]) -> Result<Vec<SocketAddr>> {
    let mut all = Vec::new();
    for host in hosts {
        match &host.host {
            Host::Ip(_) => all.extend(host.socket()),
            Host::Name(name) => {
                let found = (name.as_str(), host.port).to_socket_addrs();
                let found = found.map_err(|error| {
                    bad("the name of a monitor cannot be resolved", format!("{name}: {error}"))
                })?;
                all.extend(found);
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_ceph_reads_them() {
        assert_eq!(auth_methods("").unwrap(), [AuthMethod::CEPHX, AuthMethod::NONE]);
        assert_eq!(auth_methods("none, cephx").unwrap(), [AuthMethod::NONE, AuthMethod::CEPHX]);
        assert!(auth_methods("gss").is_err());
        let both = connection_modes("secure crc").unwrap();
        assert_eq!(both, [ConnectionMode::SECURE, ConnectionMode::CRC]);
        assert!(connection_modes("").is_err());
        let place = crush_location("root=default,host=a").unwrap();
        assert_eq!(place, [("root".into(), "default".into()), ("host".into(), "a".into())]);
        assert!(crush_location("a").is_err());
    }

    #[test]
    fn what_is_missing_is_named() {
        let words = ["--conf", "/nowhere/ceph.conf"];
        let error = Config::from_arguments(&words).unwrap_err().to_string();
        assert!(error.contains("/nowhere/ceph.conf"), "{error}");
        let arguments =
            Arguments::parse(["--mon-host", "127.0.0.1", "--keyring", "/nowhere/k"]).unwrap();
        let settings = Settings::new(&arguments, Surroundings::default());
        let cephx = Arguments::parse([
            "--mon-host",
            "127.0.0.1",
            "--keyring",
            "/nowhere/k",
            "--auth-client-required",
            "cephx",
        ])
        .unwrap();
        assert!(Config::from_settings(&settings).is_ok(), "it may be a cluster without keys");
        let error =
            Config::from_settings(&Settings::new(&cephx, Surroundings::default())).unwrap_err();
        assert!(error.to_string().contains("/nowhere/k"), "{error}");
        let settings = Settings::new(&Arguments::default(), Surroundings::default());
        let error = Config::from_settings(&settings).unwrap_err().to_string();
        assert!(error.contains("mon host"), "{error}");
    }
}
