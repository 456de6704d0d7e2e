//! The option `mon host` (ceph: `src/mon/MonMap.cc`, `init_with_ips`, `init_with_hosts`).

use crate::encoding::AddrType;
use crate::error::{Error, ErrorKind, Result};
use core::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The ports of monitors: of messenger 2 (IANA), and of messenger 1.
const PORT_MSGR2: u16 = 3300;
const PORT_LEGACY: u16 = 6789;
/// Most monitors that are taken.
const MAX_MONITORS: usize = 256;

/// Where something is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// At an address.
    Ip(IpAddr),
    /// At whatever a name stands for, to be asked of the resolver.
    Name(String),
}

/// A monitor to try by messenger 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonHost {
    /// Where it is.
    pub host: Host,
    /// Its port.
    pub port: u16,
}

impl MonHost {
    /// The socket's address, unless a name has to be resolved first.
    #[must_use]
    pub fn socket(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }
}

/// Reads a list of monitors: addresses or names, each with or without `v2:` and a port, those of one monitor in
/// brackets. Addresses of messenger 1 are left out; where only the old port is named, the new one is tried.
///
/// # Errors
/// A part that is no address, or a list in which no monitor can be reached by messenger 2.
pub fn mon_hosts(text: &str) -> Result<Vec<MonHost>> {
    if text.matches('[').count() != text.matches(']').count() {
        return Err(bad("a bracket is not closed, or not opened", text));
    }
    let mut hosts: Vec<MonHost> = Vec::new();
    for entry in split(text) {
        let host = one(entry).ok_or_else(|| bad("an address is [v2:]host[:port]", entry))?;
        if let Some(host) = host
            && !hosts.contains(&host)
        {
            hosts.push(host);
        }
    }
    if hosts.is_empty() {
        return Err(bad("no monitor has an address of messenger 2", text));
    }
    if hosts.len() > MAX_MONITORS {
        let (got, limit) = (hosts.len() as u64, MAX_MONITORS as u64);
        return Err(Error::too_big("reading mon host", "monitors", got, limit));
    }
    Ok(hosts)
}

fn bad(problem: &'static str, text: &str) -> Error {
    Error::new("reading mon host", ErrorKind::BadParameter { problem, text: text.to_owned() })
}

/// The addresses of a list. Brackets are around the addresses of a monitor, or around one of version 6: only those of
/// the first kind are taken off, and they have a version inside.
fn split(text: &str) -> Vec<&str> {
    let separators = |c: char| matches!(c, ',' | ';') || c.is_whitespace();
    let mut entries: Vec<&str> = text.split(separators).filter(|entry| !entry.is_empty()).collect();
    for entry in &mut entries {
        if let Some(inner) = entry.strip_prefix('[')
            && (inner.starts_with("v1:") || inner.starts_with("v2:") || inner.starts_with("any:"))
        {
            *entry = inner;
        }
        // The last address of a monitor has the closing bracket behind it, and one of version 6 has its own.
        let (opened, closed) = (entry.matches('[').count(), entry.matches(']').count());
        if closed > opened {
            *entry = entry.strip_suffix(']').unwrap_or(entry);
        }
    }
    entries
}

/// One address; nothing inside if it is of messenger 1, nothing at all if it is none.
fn one(entry: &str) -> Option<Option<MonHost>> {
    let (kind, rest) = match entry.split_once(':') {
        Some(("v1", rest)) => (AddrType::LEGACY, rest),
        Some(("v2", rest)) => (AddrType::MSGR2, rest),
        Some(("any", rest)) => (AddrType::ANY, rest),
        _ => (AddrType::ANY, entry),
    };
    // An instance's number, which a monitor's address has as 0.
    let rest = rest.strip_suffix("/0").unwrap_or(rest);
    let (host, port) = host_and_port(rest)?;
    let port = match (kind, port) {
        (AddrType::LEGACY, _) => return Some(None),
        (AddrType::ANY, Some(PORT_LEGACY)) | (_, None | Some(0)) => PORT_MSGR2,
        (_, Some(port)) => port,
    };
    Some(Some(MonHost { host, port }))
}

fn host_and_port(text: &str) -> Option<(Host, Option<u16>)> {
    if let Some((ip, port)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let ip = ip.parse::<Ipv6Addr>().ok()?;
        let port = match port.strip_prefix(':') {
            Some(port) => Some(port.parse().ok()?),
            None if port.is_empty() => None,
            None => return None,
        };
        return Some((Host::Ip(ip.into()), port));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some((Host::Ip(ip), None));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (text, None),
    };
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Some((Host::Ip(ip), port));
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    (!host.is_empty() && host.chars().all(is_name)).then(|| (Host::Name(host.to_owned()), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(text: &str) -> Vec<String> {
        let host = |host: &MonHost| match &host.host {
            Host::Ip(_) => host.socket().unwrap().to_string(),
            Host::Name(name) => format!("{name} {}", host.port),
        };
        mon_hosts(text).unwrap().iter().map(host).collect()
    }

    #[test]
    fn every_form_of_an_address_is_read() {
        assert_eq!(sockets("[v2:127.0.0.1:3300,v1:127.0.0.1:6789]"), ["127.0.0.1:3300"]);
        assert_eq!(
            sockets(
                "[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0] [v2:10.0.0.2:3301/0,v1:10.0.0.2:6789/0]"
            ),
            ["10.0.0.1:3300", "10.0.0.2:3301"]
        );
        assert_eq!(
            sockets("10.0.0.1,10.0.0.2:6789;10.0.0.3:3300 10.0.0.4:7000"),
            ["10.0.0.1:3300", "10.0.0.2:3300", "10.0.0.3:3300", "10.0.0.4:7000"]
        );
        assert_eq!(
            sockets(
                "[v1:[fd00::1]:6789,v2:[fd00::1]:3300],[fd00::2]:3300,[fd00::3],fd00::4,v2:[fd00::5]:1"
            ),
            ["[fd00::1]:3300", "[fd00::2]:3300", "[fd00::3]:3300", "[fd00::4]:3300", "[fd00::5]:1"]
        );
        assert_eq!(
            sockets("mon-a.example, mon_b:3300 mon-a.example"),
            ["mon-a.example 3300", "mon_b 3300"]
        );
    }

    #[test]
    fn what_cannot_be_reached_is_refused() {
        for bad in
            ["", "v1:10.0.0.1:6789", "10.0.0.1:port", "v2:", "[fd00::1]x", "a/b", "10.0.0.1:70000"]
                .into_iter()
                .chain(["[v2:10.0.0.1:3300", "[v2:10.0.0.1:3300,v1:10.0.0.1:6789", "10.0.0.1]"])
        {
            assert!(mon_hosts(bad).is_err(), "{bad}");
        }
    }
}
