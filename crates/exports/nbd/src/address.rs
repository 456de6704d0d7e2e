//! Where a server listens, as text.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, ErrorKind};

/// The port that NBD is registered with (IANA; `doc/proto.md`).
pub const DEFAULT_PORT: u16 = 10809;

/// Where a server listens: `unix:/path`, `tcp:host:port`, `vsock:cid:port`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A socket in the file system.
    Unix(PathBuf),
    /// TCP.
    Tcp {
        /// A name or an address; empty for all addresses of this machine.
        host: String,
        /// The port; 0 lets the system choose.
        port: u16,
    },
    /// A socket between a virtual machine and its host (`vsock(7)`).
    Vsock {
        /// Who may connect: [`Address::VSOCK_ANY`], or one's own number.
        cid: u32,
        /// The port.
        port: u32,
    },
}

impl Address {
    /// Any number of one's own (`VMADDR_CID_ANY`).
    pub const VSOCK_ANY: u32 = u32::MAX;
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).map_err(|problem| {
            let error = Error::new(ErrorKind::Address, format!("invalid address {text:?}: {problem}"));
            error.help(match meant(text) {
                Some(meant) => format!("did you mean {meant}?"),
                None => "use unix:/path, tcp:host:port (e.g. tcp::10809, tcp:[::1]:10809) or vsock:cid:port".into(),
            })
        })
    }
}

/// What was meant by an address that does not say of what type it is: a path, a port, or a host and a port.
fn meant(text: &str) -> Option<String> {
    let is_port = |text: &str| text.parse::<u16>().is_ok();
    if is_port(text) {
        return Some(format!("tcp::{text}"));
    }
    match text.rsplit_once(':') {
        Some(("tcp", port)) if is_port(port) => Some(format!("tcp::{port}")),
        Some((host, port)) if is_port(port) && !host.contains([':', '/']) => {
            Some(format!("tcp:{text}"))
        }
        _ if text.starts_with(['/', '.']) => Some(format!("unix:{text}")),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Address, &'static str> {
    let (kind, rest) = text.split_once(':').ok_or("no address type")?;
    match kind {
        "unix" if rest.is_empty() => Err("the path is missing"),
        "unix" if rest.contains('\0') => Err("the path contains a NUL byte"),
        "unix" => Ok(Address::Unix(rest.into())),
        "tcp" => tcp(rest),
        "vsock" => vsock(rest),
        _ => Err("unknown address type"),
    }
}

fn tcp(rest: &str) -> Result<Address, &'static str> {
    let (host, port) = match rest.strip_prefix('[') {
        Some(bracketed) => {
            let (host, port) = bracketed.split_once(']').ok_or("the bracket is not closed")?;
            (host, port.strip_prefix(':'))
        }
        None => match rest.rsplit_once(':') {
            Some((host, _)) if host.contains(':') => {
                return Err("an IPv6 address must be in brackets");
            }
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        },
    };
    let port = port.ok_or("the port is missing")?;
    let port = port.parse().map_err(|_| "the port is not a number from 0 to 65535")?;
    if host.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/') {
        return Err("invalid host name");
    }
    Ok(Address::Tcp { host: host.into(), port })
}

fn vsock(rest: &str) -> Result<Address, &'static str> {
    let (cid, port) = rest.split_once(':').ok_or("the port is missing")?;
    let cid = match cid {
        "" | "any" => Address::VSOCK_ANY,
        number => number.parse().map_err(|_| "the cid is neither a 32-bit number nor any")?,
    };
    let port = port.parse().map_err(|_| "the port is not a 32-bit number")?;
    Ok(Address::Vsock { cid, port })
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Vsock { cid: Self::VSOCK_ANY, port } => write!(f, "vsock:any:{port}"),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_parses_prints_alike() {
        let tcp = |host: &str, port| Address::Tcp { host: host.into(), port };
        for (text, address) in [
            ("unix:/run/disk.sock", Address::Unix("/run/disk.sock".into())),
            ("unix:a:b", Address::Unix("a:b".into())),
            ("tcp::10809", tcp("", DEFAULT_PORT)),
            ("tcp:localhost:0", tcp("localhost", 0)),
            ("tcp:127.0.0.1:1", tcp("127.0.0.1", 1)),
            ("tcp:[::1]:65535", tcp("::1", 65535)),
            ("vsock:2:10809", Address::Vsock { cid: 2, port: 10809 }),
            ("vsock:any:7", Address::Vsock { cid: Address::VSOCK_ANY, port: 7 }),
        ] {
            assert_eq!(text.parse::<Address>().unwrap(), address);
            assert_eq!(address.to_string(), text);
        }
        assert_eq!("vsock::7".parse::<Address>().unwrap().to_string(), "vsock:any:7");
    }

    #[test]
    fn an_address_without_a_type_is_understood_but_not_used() {
        for (text, meant) in [
            ("10809", "tcp::10809"),
            ("tcp:10809", "tcp::10809"),
            ("localhost:10809", "tcp:localhost:10809"),
            ("/tmp/s", "unix:/tmp/s"),
            ("./s", "unix:./s"),
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert_eq!(error.remedy(), Some(format!("did you mean {meant}?").as_str()));
            meant.parse::<Address>().unwrap();
        }
        for text in ["", "s", "udp:x:1", "tcp:::1:10809"] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.remedy().unwrap().contains("tcp:host:port"), "{text}: {error}");
        }
    }

    #[test]
    fn mistakes_are_named_with_the_forms_that_would_do() {
        for (text, problem) in [
            ("", "no address type"),
            ("/run/sock", "no address type"),
            ("udp:x:1", "unknown address type"),
            ("unix:", "path is missing"),
            ("unix:a\0b", "NUL byte"),
            ("tcp:", "port is missing"),
            ("tcp:host", "port is missing"),
            ("tcp:host:", "not a number from 0 to 65535"),
            ("tcp:host:65536", "not a number from 0 to 65535"),
            ("tcp:::1:10809", "in brackets"),
            ("tcp:[::1", "not closed"),
            ("tcp:[::1]", "port is missing"),
            ("tcp:a b:1", "invalid host name"),
            ("vsock:2", "port is missing"),
            ("vsock:x:1", "cid is neither"),
            ("vsock:2:-1", "port is not a 32-bit number"),
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Address);
            let message = error.to_string();
            assert!(message.contains(problem), "{message}");
            assert!(error.remedy().is_some(), "{message}");
        }
    }
}
