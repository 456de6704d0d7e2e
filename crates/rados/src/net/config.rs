//! What a client needs to know, and where it finds that.

use crate::auth::{Credentials, CryptoKey, Identity, Keyring};
use crate::conf::{Arguments, ConfFile, Host, MonHost, Settings, Surroundings, mon_hosts};
use crate::error::{Error, ErrorKind, Result};
use crate::msgr::{AuthMethod, ConnectionMode};
use crate::objecter;
use core::net::SocketAddr;
use std::net::ToSocketAddrs as _;
use std::time::Duration;
use std::{env, fmt, fs, io};

const DOING: &str = "reading the configuration of the cluster";
/// How long the first session may take to come (ceph: option `client_mount_timeout`).
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(300);

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
    /// How long [`Cluster::connect`](super::Cluster::connect) may take; 300 s if nobody says (option
    /// `client_mount_timeout`).
    pub connect_timeout: Option<Duration>,
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
            connect_timeout: None,
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
        let hosts = hosts.or_else(|| settings.mon_addrs());
        let hosts = hosts.ok_or_else(|| {
            bad(
                "no monitors configured; use --mon-host, or set mon host in ceph.conf",
                String::new(),
            )
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
        config.connect_timeout = seconds(settings, "client_mount_timeout")?;
        if let Some(ops) = number(settings, "objecter_inflight_ops")? {
            config.max_ops = usize::try_from(ops).unwrap_or(usize::MAX);
        }
        if let Some(bytes) = number(settings, "objecter_inflight_op_bytes")? {
            config.max_bytes = bytes;
        }
        if let Some(location) = settings.get("crush_location") {
            config.location = crush_location(&location)?;
        }
        Ok(config)
    }
}

/// The first of the files that is there; a file that was named has to be.
fn with_file(settings: Settings, arguments: &Arguments, named: Option<&str>) -> Result<Settings> {
    if arguments.no_conf {
        return Ok(settings);
    }
    let is_named = arguments.conf.is_some() || named.is_some_and(|named| !named.is_empty());
    let mut missing = Vec::new();
    for path in settings.files(arguments, named) {
        match read(&path) {
            Ok(text) => return Ok(settings.with_file(ConfFile::parse(&text)?)),
            Err(Unread::Denied) => {
                return Err(denied("the configuration file is not readable by this user", path));
            }
            Err(Unread::Absent) => missing.push(format!("{path}: {}", Unread::Absent)),
            // It may say what this client is to do, also where nobody named it.
            Err(unread) => {
                let text = format!("{path}: {unread}");
                return Err(bad("cannot read the configuration file", text));
            }
        }
    }
    if is_named {
        return Err(bad("cannot read the configuration file", missing.join("; ")));
    }
    Ok(settings)
}

/// Why a file was not read.
enum Unread {
    Absent,
    Directory,
    Denied,
    Other(io::Error),
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("no such file"),
            Self::Directory => f.write_str("is a directory"),
            Self::Denied => f.write_str("not permitted"),
            Self::Other(err) => write!(f, "{err}"),
        }
    }
}

fn read(path: &str) -> std::result::Result<String, Unread> {
    fs::read_to_string(path).map_err(|err| match err.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Unread::Absent,
        io::ErrorKind::IsADirectory => Unread::Directory,
        io::ErrorKind::PermissionDenied => Unread::Denied,
        _ => Unread::Other(err),
    })
}

fn denied(problem: &'static str, text: String) -> Error {
    Error::new(DOING, ErrorKind::NotPermitted { problem, text })
}

/// The key from the option `key`, from the file of `keyfile`, or from the first keyring that has it.
fn credentials(settings: &Settings) -> Result<Credentials> {
    let identity = settings.identity().clone();
    let methods = auth_methods(&settings.get("auth_client_required").unwrap_or_default())?;
    let key = if let Some(text) = settings.get("key") {
        Ok(CryptoKey::from_base64(text.trim())?)
    } else if let Some(path) = settings.get("keyfile") {
        let text = read(&path).map_err(|unread| match unread {
            Unread::Denied => denied("the key file is not readable by this user", path.clone()),
            unread => bad("cannot read the key file", format!("{path}: {unread}")),
        })?;
        Ok(CryptoKey::from_base64(text.trim())?)
    } else {
        key_of_keyrings(&identity, &settings.keyrings())?
    };
    match key {
        Err(why) if !methods.contains(&AuthMethod::NONE) => Err(why),
        key => Ok(Credentials { identity, key: key.map_err(Some), methods }),
    }
}

/// The key in the first keyring that has it, or why there is none: of several reasons the one that most likely is meant.
fn key_of_keyrings(
    identity: &Identity,
    paths: &[String],
) -> Result<std::result::Result<CryptoKey, Error>> {
    let (mut absent, mut unusable, mut others) = (Vec::new(), Vec::new(), Vec::new());
    let mut not_permitted = None;
    for path in paths {
        match read(path) {
            Ok(text) => {
                let keyring = Keyring::parse(&text)?;
                if let Some(key) = keyring.get(identity) {
                    return Ok(Ok(key.clone()));
                }
                let names: Vec<_> = keyring.entities().map(ToString::to_string).collect();
                others.push(match names.as_slice() {
                    [] => format!("{path} has none"),
                    names => format!("{path} has {}", names.join(", ")),
                });
            }
            Err(Unread::Absent) => absent.push(path.as_str()),
            Err(Unread::Denied) => {
                not_permitted.get_or_insert_with(|| path.clone());
            }
            Err(unread) => unusable.push(format!("{path}: {unread}")),
        }
    }
    Ok(Err(if let Some(path) = not_permitted {
        denied("the keyring is not readable by this user", path)
    } else if !unusable.is_empty() {
        bad("cannot read the keyring", unusable.join("; "))
    } else if !others.is_empty() {
        let problem = "the keyring has only keys of other clients; use --id or --keyring";
        bad(problem, format!("no key of {identity}: {}", others.join("; ")))
    } else {
        let problem = "no keyring; use --keyring, or set keyring in ceph.conf";
        bad(problem, absent.join("; "))
    }))
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

/// A number, which may end in K, M, G or T, as in "100M"; 0 stands for no limit (ceph: `src/common/strtol.cc`,
/// `strict_iec_cast`).
fn number(settings: &Settings, option: &'static str) -> Result<Option<u64>> {
    let Some(text) = settings.get(option) else { return Ok(None) };
    let bare = text.trim().trim_end_matches(['B', 'i']);
    let (digits, shift) = match bare.char_indices().next_back() {
        Some((at, 'K')) => (&bare[..at], 10),
        Some((at, 'M')) => (&bare[..at], 20),
        Some((at, 'G')) => (&bare[..at], 30),
        Some((at, 'T')) => (&bare[..at], 40),
        _ => (bare, 0),
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    let number = number.ok_or_else(|| {
        bad("a limit is a number, such as 1024 or 100M", format!("{option} = {text}"))
    })?;
    Ok(Some(if number == 0 { u64::MAX } else { number }))
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
    fn limits_are_those_of_the_configuration() {
        let limits = |ops: &str, bytes: &str| {
            let words = ["--mon-host", "127.0.0.1", "--auth-client-required", "none"];
            let more = ["--objecter-inflight-ops", ops, "--objecter_inflight_op_bytes", bytes];
            let arguments = Arguments::parse(words.into_iter().chain(more)).unwrap();
            let config = Config::from_settings(&Settings::new(&arguments, Surroundings::default()));
            config.map(|config| (config.max_ops, config.max_bytes))
        };
        assert_eq!(limits("24", "8388608").unwrap(), (24, 8 << 20));
        assert_eq!(limits("1K", "100M").unwrap(), (1024, 100 << 20));
        assert_eq!(limits("1", "2GiB").unwrap(), (1, 2 << 30));
        assert_eq!(limits("0", "0").unwrap(), (usize::MAX, u64::MAX), "no limit");
        for bad in ["", "x", "-1", "99999999999999999999", "99999999T"] {
            assert!(limits("1", bad).is_err(), "{bad:?}");
        }
    }

    /// Nobody waits for ever who has said for how long.
    #[test]
    fn time_outs_are_those_of_the_configuration() {
        let times = |text: &str| {
            let words = ["--mon-host", "127.0.0.1", "--auth-client-required", "none"];
            let settings =
                Settings::new(&Arguments::parse(words).unwrap(), Surroundings::default());
            let file = ConfFile::parse(&format!("[global]\n{text}")).unwrap();
            let config = Config::from_settings(&settings.with_file(file));
            config.map(|config| [config.op_timeout, config.monitor_timeout, config.connect_timeout])
        };
        let seconds = |seconds| Some(Duration::from_secs_f64(seconds));
        let all =
            "rados osd op timeout = 7\nrados_mon_op_timeout = 2.5\nclient mount timeout = 30s";
        assert_eq!(times(all).unwrap(), [seconds(7.0), seconds(2.5), seconds(30.0)]);
        let zeroes = "rados osd op timeout = 0\nrados mon op timeout = 0\nclient mount timeout = 0";
        assert_eq!(times(zeroes).unwrap(), [None; 3], "no limit");
        assert_eq!(times("rados osd op timeout = 1").unwrap(), [seconds(1.0), None, None]);
        for bad in ["soon", "-1", "inf"] {
            assert!(times(&format!("rados mon op timeout = {bad}")).is_err(), "{bad}");
        }
    }

    /// A file that is there says what is to be done, also where it is only the usual one.
    #[test]
    fn only_a_file_that_is_not_there_is_passed_over() {
        let place = std::env::temp_dir().join(format!("blockyard-conf-{}", std::process::id()));
        fs::create_dir_all(place.join(".ceph/ceph.conf")).unwrap();
        let home = place.display().to_string();
        let arguments = Arguments::parse(["--mon-host", "127.0.0.1"]).unwrap();
        let surroundings = Surroundings { home, ..Surroundings::default() };
        let settings = Settings::new(&arguments, surroundings);
        let read = with_file(settings.clone(), &arguments, None);
        // Where the machine has a file of its own, that one is read.
        if !std::path::Path::new("/etc/ceph/ceph.conf").exists() {
            let error = read.unwrap_err().to_string();
            assert!(error.contains("is a directory"), "{error}");
        }
        let arguments = Arguments::parse(["--no-config-file"]).unwrap();
        assert!(with_file(settings, &arguments, None).is_ok());
        fs::remove_dir_all(&place).unwrap();
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

    /// The reason is that of the cluster's refusal, too, where no keys may be needed.
    #[test]
    fn a_keyring_that_has_no_key_says_why() {
        let place = std::env::temp_dir().join(format!("blockyard-keyrings-{}", std::process::id()));
        fs::create_dir_all(place.join("directory")).unwrap();
        let other = place.join("other");
        let key = "AQCz4gJrSu1bCxAAvZrvs1ZNw6jjMqeNBdBPUA==";
        fs::write(&other, format!("[client.other]\nkey = {key}\n[client.more]\nkey = {key}\n"))
            .unwrap();
        let why = |names: &[&str], required: &str| {
            let paths: Vec<_> =
                names.iter().map(|name| place.join(name).display().to_string()).collect();
            let paths = paths.join(",");
            let words = ["--mon-host", "127.0.0.1", "--keyring", &paths];
            let arguments =
                Arguments::parse(words.into_iter().chain(["--auth-client-required", required]))
                    .unwrap();
            let config = Config::from_settings(&Settings::new(&arguments, Surroundings::default()));
            config.map_or_else(Some, |config| config.credentials.key.err().flatten())
        };
        for required in ["cephx", "cephx,none"] {
            let said = |names: &[&str]| why(names, required).unwrap().to_string();
            let absent = said(&["absent", "gone"]);
            assert!(absent.contains("no keyring") && absent.contains("absent"), "{absent}");
            let directory = said(&["absent", "directory"]);
            assert!(directory.contains("is a directory"), "{directory}");
            let another = said(&["absent", "other"]);
            for part in ["client.admin", "client.more, client.other", "--id"] {
                assert!(another.contains(part), "{another}");
            }
        }
        fs::remove_dir_all(&place).unwrap();
    }

    #[test]
    fn monitors_may_have_sections_of_their_own() {
        let text = "[global]\nx = 1\n[mon.b]\nmon addr = 10.0.0.2:6789\n[mon.a]\nmon_addr = [v2:10.0.0.1:3301,v1:10.0.0.1:6789]\n\
                    [mon]\nmon addr = 9.9.9.9\n[osd.1]\nmon addr = 8.8.8.8\n[client.admin]\n\
                    key = AQCz4gJrSu1bCxAAvZrvs1ZNw6jjMqeNBdBPUA==\n";
        let settings = Settings::new(&Arguments::default(), Surroundings::default());
        let settings = settings.with_file(ConfFile::parse(text).unwrap());
        let config = Config::from_settings(&settings).unwrap();
        let found: Vec<_> = config.monitors.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.1:3301", "10.0.0.2:3300"]);
        let text = format!("{text}[global]\nmon host = 10.0.0.9\n");
        let settings = settings.with_file(ConfFile::parse(&text).unwrap());
        assert_eq!(Config::from_settings(&settings).unwrap().monitors.len(), 1, "mon host counts");
    }
}
