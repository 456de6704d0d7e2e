//! NBD URIs (`doc/uri.md`), with the schemes for vsock and the query parameters for TLS files that are in common use.
//!
//! | URI | reaches |
//! | --- | --- |
//! | `nbd://host[:port]/export` | TCP; port 10809 unless given |
//! | `nbd+unix:///export?socket=/path` | a Unix socket; `%00` first for an abstract one |
//! | `nbd+vsock://[cid[:port]]/export` | a vsock; context id 2, the host, unless given |
//! | `nbds://`, `nbds+unix://`, `nbds+vsock://` | the same, with TLS or not at all |

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::{
    AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_decode_str, percent_encode, utf8_percent_encode,
};

use crate::error::{Error, ErrorKind};
use crate::wire::text;

/// The port of NBD, given by IANA.
pub const DEFAULT_PORT: u16 = 10809;
/// The context id of the host, as seen from its virtual machines (`VMADDR_CID_HOST`).
pub const VSOCK_CID_HOST: u32 = 2;

/// Where a server is, which export is meant, and how to secure the connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Uri {
    /// Where the server is.
    pub transport: Transport,
    /// Whether TLS is required; without, it is up to the client.
    pub tls: bool,
    /// The name of the export, empty for the default one.
    pub export: String,
    /// The user for TLS with pre-shared keys.
    pub user: Option<String>,
    /// Parameters of TLS.
    pub tls_params: TlsParams,
}

/// The kinds of connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A TCP connection.
    Tcp {
        /// A name or an address, IPv6 without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix domain socket.
    Unix {
        /// The path, of any bytes; of an abstract socket the name behind a NUL.
        socket: PathBuf,
    },
    /// A socket between a virtual machine and its host.
    Vsock {
        /// The context id of the machine.
        cid: u32,
        /// The port.
        port: u32,
    },
}

/// The query parameters `tls-*`, `None` where they are not given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsParams {
    /// `tls-type`: how to authenticate.
    pub kind: Option<TlsKind>,
    /// `tls-hostname`: the name that the server's certificate must have.
    pub hostname: Option<String>,
    /// `tls-verify-peer`: whether to check the server's certificate.
    pub verify_peer: Option<bool>,
    /// `tls-certificates`: a directory of certificates and keys.
    pub certificates: Option<String>,
    /// `tls-psk-file`: a file of pre-shared keys.
    pub psk_file: Option<String>,
}

/// Values of `tls-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlsKind {
    /// Encrypted, but not authenticated.
    Anonymous,
    /// By certificates.
    X509,
    /// By pre-shared keys.
    Psk,
}

/// What need not be escaped in a path (RFC 3986, section 3.3: `pchar` and `/`).
const PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');
/// The same for a value in a query, where `&`, `=` and `+` have a meaning for some readers.
const VALUE: &AsciiSet = &PATH.add(b'&').add(b'=').add(b'+').add(b';');

/// The same for a host, which ends at a `/`, and begins behind an `@`.
const HOST: &AsciiSet = &VALUE.add(b'/').add(b'@');

fn bad(problem: &'static str, text: &str) -> Error {
    let text = text.chars().take(200).collect();
    Error::new("reading an NBD URI", ErrorKind::BadParameter { problem, text })
}

fn decoded(text: &str) -> Result<String, Error> {
    let decoded = String::from_utf8(decoded_bytes(text)?);
    decoded.map_err(|_| bad("the escaped bytes are not UTF-8", text))
}

fn decoded_bytes(text: &str) -> Result<Vec<u8>, Error> {
    let escapes = text.split('%').skip(1);
    for escape in escapes {
        let digits = escape.as_bytes().first_chunk::<2>();
        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return Err(bad("a % must be followed by two hexadecimal digits", text));
        }
    }
    Ok(percent_decode_str(text).collect())
}

/// The parts of a URI (RFC 3986, section 3), still escaped.
struct Parts<'a> {
    scheme: &'a str,
    user: Option<&'a str>,
    host: &'a str,
    port: Option<&'a str>,
    path: &'a str,
    query: &'a str,
}

impl<'a> Parts<'a> {
    fn split(uri: &'a str) -> Result<Self, Error> {
        if uri.contains(|c: char| c.is_ascii_control() || c == ' ') {
            return Err(bad("blanks and control characters must be escaped, e.g. as %20", uri));
        }
        let Some((scheme, rest)) = uri.split_once(':') else {
            return Err(bad("scheme missing; write nbd://HOST/EXPORT", uri));
        };
        let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        if !fragment.is_empty() {
            return Err(bad("an NBD URI has no fragment; escape # as %23", uri));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            None => ("", rest),
        };
        let (user, address) = match authority.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, authority),
        };
        let (host, port) = Self::host_and_port(address)?;
        Ok(Self { scheme, user, host, port, path, query })
    }

    fn host_and_port(address: &'a str) -> Result<(&'a str, Option<&'a str>), Error> {
        let (host, after) = if let Some(rest) = address.strip_prefix('[') {
            let Some((host, after)) = rest.split_once(']') else {
                return Err(bad("the bracket of the IPv6 address is not closed", address));
            };
            (host, after)
        } else if address.matches(':').count() > 1 {
            return Err(bad("an IPv6 address must be in brackets, e.g. nbd://[::1]/", address));
        } else {
            address.split_at(address.find(':').unwrap_or(address.len()))
        };
        match after.strip_prefix(':') {
            // RFC 3986 allows an empty port, which is the default one.
            Some("") => Ok((host, None)),
            Some(port) => Ok((host, Some(port))),
            None if after.is_empty() => Ok((host, None)),
            None => Err(bad("invalid text after the host; only :PORT may follow", address)),
        }
    }
}

impl FromStr for Uri {
    type Err = Error;

    fn from_str(uri: &str) -> Result<Self, Error> {
        let parts = Parts::split(uri)?;
        // RFC 3986, section 3.1: schemes are case-insensitive.
        let scheme = parts.scheme.to_ascii_lowercase();
        let (kind, tls) = match scheme.as_str() {
            "nbd" => ("tcp", false),
            "nbds" => ("tcp", true),
            "nbd+unix" => ("unix", false),
            "nbds+unix" => ("unix", true),
            "nbd+vsock" => ("vsock", false),
            "nbds+vsock" => ("vsock", true),
            _ => {
                let problem =
                    "the scheme must be nbd, nbds, nbd+unix, nbds+unix, nbd+vsock or nbds+vsock";
                return Err(bad(problem, parts.scheme));
            }
        };
        let (socket, tls_params) = query(parts.query)?;
        let transport = match (kind, socket) {
            ("unix", Some(socket)) => unix(&parts, socket)?,
            ("unix", None) => {
                return Err(bad("a URI for a Unix socket needs ?socket=PATH", uri));
            }
            (_, Some(_)) => return Err(bad("only nbd+unix and nbds+unix take socket=", uri)),
            ("vsock", None) => vsock(&parts)?,
            (_, None) => tcp(&parts, uri)?,
        };
        let export = decoded(parts.path.strip_prefix('/').unwrap_or(parts.path))?;
        text(export.as_bytes()).map_err(|rule| bad(rule.rule(), &export))?;
        let user = parts.user.map(decoded).transpose()?;
        Ok(Self { transport, tls, export, user, tls_params })
    }
}

fn tcp(parts: &Parts<'_>, uri: &str) -> Result<Transport, Error> {
    if parts.host.is_empty() {
        return Err(bad("host missing; write nbd://HOST[:PORT]/EXPORT", uri));
    }
    let port = match parts.port {
        Some(port) => port.parse().map_err(|_| bad("a TCP port is a number up to 65535", port))?,
        None => DEFAULT_PORT,
    };
    Ok(Transport::Tcp { host: decoded(parts.host)?, port })
}

fn unix(parts: &Parts<'_>, socket: PathBuf) -> Result<Transport, Error> {
    if !parts.host.is_empty() || parts.port.is_some() {
        let problem =
            "a URI for a Unix socket has no host; write three slashes: nbd+unix:///EXPORT";
        return Err(bad(problem, parts.host));
    }
    if socket.as_os_str().is_empty() {
        return Err(bad("socket= needs a path", parts.query));
    }
    Ok(Transport::Unix { socket })
}

fn vsock(parts: &Parts<'_>) -> Result<Transport, Error> {
    let number = |text: &str| {
        text.parse().map_err(|_| bad("context id and port of a vsock are numbers of 32 bits", text))
    };
    let cid = if parts.host.is_empty() { VSOCK_CID_HOST } else { number(parts.host)? };
    let port = parts.port.map_or(Ok(DEFAULT_PORT.into()), number)?;
    Ok(Transport::Vsock { cid, port })
}

/// The `socket` parameter and those of TLS.
fn query(query: &str) -> Result<(Option<PathBuf>, TlsParams), Error> {
    let mut socket = None;
    let mut tls = TlsParams::default();
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let key = decoded(key)?;
        if key == "socket" {
            let path = OsString::from_vec(decoded_bytes(value)?);
            if socket.replace(PathBuf::from(path)).is_some() {
                return Err(bad("a parameter is given twice", parameter));
            }
            continue;
        }
        let value = decoded(value)?;
        let twice = match key.as_str() {
            "tls-type" => tls.kind.replace(value.parse()?).is_some(),
            "tls-hostname" => tls.hostname.replace(value).is_some(),
            "tls-verify-peer" => {
                let verify = match value.as_str() {
                    "0" | "false" => false,
                    "1" | "true" => true,
                    _ => return Err(bad("tls-verify-peer is 0 or 1", parameter)),
                };
                tls.verify_peer.replace(verify).is_some()
            }
            "tls-certificates" => tls.certificates.replace(value).is_some(),
            "tls-psk-file" => tls.psk_file.replace(value).is_some(),
            // "Clients SHOULD prefix experimental query parameters using x-."
            _ if key.starts_with("x-") => false,
            _ => {
                let problem = "unknown parameter; supported: socket, tls-type, tls-hostname, tls-verify-peer, \
                               tls-certificates and tls-psk-file";
                return Err(bad(problem, parameter));
            }
        };
        if twice {
            return Err(bad("a parameter is given twice", parameter));
        }
    }
    Ok((socket, tls))
}

impl FromStr for TlsKind {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "anon" => Ok(Self::Anonymous),
            "x509" => Ok(Self::X509),
            "psk" => Ok(Self::Psk),
            _ => Err(bad("tls-type is anon, x509 or psk", text)),
        }
    }
}

impl fmt::Display for TlsKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "anon",
            Self::X509 => "x509",
            Self::Psk => "psk",
        })
    }
}

/// The shortest form that parses to the same value.
impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = if self.tls { "s" } else { "" };
        let kind = match self.transport {
            Transport::Tcp { .. } => "",
            Transport::Unix { .. } => "+unix",
            Transport::Vsock { .. } => "+vsock",
        };
        write!(f, "nbd{tls}{kind}://")?;
        if let Some(user) = &self.user {
            write!(f, "{}@", utf8_percent_encode(user, NON_ALPHANUMERIC))?;
        }
        match &self.transport {
            Transport::Tcp { host, port } => {
                if host.contains(':') {
                    write!(f, "[{}]", utf8_percent_encode(host, HOST))?;
                } else {
                    write!(f, "{}", utf8_percent_encode(host, HOST))?;
                }
                if *port != DEFAULT_PORT {
                    write!(f, ":{port}")?;
                }
            }
            Transport::Unix { .. } => {}
            Transport::Vsock { cid, port } => {
                if (*cid, *port) != (VSOCK_CID_HOST, DEFAULT_PORT.into()) {
                    write!(f, "{cid}")?;
                }
                if *port != u32::from(DEFAULT_PORT) {
                    write!(f, ":{port}")?;
                }
            }
        }
        let unix = matches!(self.transport, Transport::Unix { .. });
        if unix || !self.export.is_empty() {
            write!(f, "/{}", utf8_percent_encode(&self.export, PATH))?;
        }
        self.fmt_query(f)
    }
}

impl Uri {
    fn fmt_query(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = match &self.transport {
            Transport::Unix { socket } => Some(socket.as_os_str().as_bytes()),
            _ => None,
        };
        let TlsParams { kind, hostname, verify_peer, certificates, psk_file } = &self.tls_params;
        let kind = kind.map(|kind| kind.to_string());
        let verify = verify_peer.map(|verify| if verify { "1" } else { "0" });
        fn bytes(text: &Option<String>) -> Option<&[u8]> {
            text.as_deref().map(str::as_bytes)
        }
        let parameters = [
            ("socket", socket),
            ("tls-type", bytes(&kind)),
            ("tls-hostname", bytes(hostname)),
            ("tls-verify-peer", verify.map(str::as_bytes)),
            ("tls-certificates", bytes(certificates)),
            ("tls-psk-file", bytes(psk_file)),
        ];
        let mut mark = '?';
        for (key, value) in parameters {
            if let Some(value) = value {
                write!(f, "{mark}{key}={}", percent_encode(value, VALUE))?;
                mark = '&';
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(uri: &str) -> Uri {
        uri.parse().unwrap_or_else(|error| panic!("{uri}: {error}"))
    }

    fn tcp(host: &str, port: u16) -> Transport {
        Transport::Tcp { host: host.into(), port }
    }

    // `doc/uri.md`, "NBD URI export name".
    #[test]
    fn export_names_are_the_path_without_its_first_slash() {
        for (uri, export) in [
            ("nbd://example.com/disk", "disk"),
            ("nbd+unix:///disk?socket=sock", "disk"),
            ("nbd://example.com/", ""),
            ("nbd://example.com", ""),
            ("nbd://example.com//disk", "/disk"),
            ("nbd://example.com/hello%20world", "hello world"),
            ("nbd://example.com/a%2fb%C3%A9", "a/bé"),
        ] {
            assert_eq!(parse(uri).export, export, "{uri}");
        }
    }

    #[test]
    fn transports() {
        for (uri, tls, transport) in [
            ("nbd://example.com", false, tcp("example.com", 10809)),
            ("NBDS://example.com:99", true, tcp("example.com", 99)),
            ("nbd://example.com:", false, tcp("example.com", 10809)),
            ("nbd://[::1]:2000/x", false, tcp("::1", 2000)),
            (
                "nbd+unix:///?socket=%00/abstract",
                false,
                Transport::Unix { socket: "\0/abstract".into() },
            ),
            ("nbds+unix:///?socket=/a%20b", true, Transport::Unix { socket: "/a b".into() }),
            ("nbd+unix:?socket=/s", false, Transport::Unix { socket: "/s".into() }),
            (
                "nbd+unix:///?socket=/%FF%c3",
                false,
                Transport::Unix { socket: OsString::from_vec(b"/\xff\xc3".to_vec()).into() },
            ),
            ("nbd+vsock:///x", false, Transport::Vsock { cid: 2, port: 10809 }),
            ("nbds+vsock://7:8/x", true, Transport::Vsock { cid: 7, port: 8 }),
        ] {
            let parsed = parse(uri);
            assert_eq!((parsed.tls, parsed.transport), (tls, transport), "{uri}");
        }
    }

    #[test]
    fn parameters_of_tls() {
        let uri = "nbds://alice@h/d?tls-type=psk&tls-hostname=n&tls-verify-peer=0&tls-certificates=/c&tls-psk-file=/p&x-y=z";
        let parsed = parse(uri);
        assert_eq!(parsed.user.as_deref(), Some("alice"));
        let expected = TlsParams {
            kind: Some(TlsKind::Psk),
            hostname: Some("n".into()),
            verify_peer: Some(false),
            certificates: Some("/c".into()),
            psk_file: Some("/p".into()),
        };
        assert_eq!(parsed.tls_params, expected);
        assert_eq!(parsed.to_string(), uri.trim_end_matches("&x-y=z"));
    }

    #[test]
    fn mistakes_say_what_to_write() {
        for (uri, part) in [
            ("", "scheme missing"),
            ("http://x", "the scheme must be"),
            ("nbd:///x", "host missing"),
            ("nbd://h:70000/", "up to 65535"),
            ("nbd://h:-1/", "up to 65535"),
            ("nbd://[::1/", "not closed"),
            ("nbd://::1", "in brackets"),
            ("nbd://fe80::1:10809/x", "in brackets"),
            ("nbd://[::1]x/", "only :PORT"),
            ("nbd://h/?socket=/s", "only nbd+unix"),
            ("nbd+unix:///x", "needs ?socket=PATH"),
            ("nbd+unix:///x?socket=", "needs a path"),
            ("nbd+unix://host/x?socket=/s", "three slashes"),
            ("nbd+vsock://x/", "32 bits"),
            ("nbd://h/?tls-type=x", "anon, x509 or psk"),
            ("nbd://h/?tls-verify-peer=2", "0 or 1"),
            ("nbd://h/?nonsense=1", "unknown parameter"),
            ("nbd://h/?tls-hostname=a&tls-hostname=b", "twice"),
            ("nbd://h/%4", "two hexadecimal digits"),
            ("nbd://h/%+1", "two hexadecimal digits"),
            ("nbd://h/%ff", "not UTF-8"),
            ("nbd+unix:///?socket=/s&socket=/s", "twice"),
            ("nbd://h/%00", "NUL"),
            ("nbd://h/a b", "must be escaped"),
            ("nbd://h/a#b", "no fragment"),
        ] {
            let error = uri.parse::<Uri>().unwrap_err().to_string();
            assert!(error.contains(part), "{uri}: {error}");
        }
        let long = format!("nbd://h/{}", "x".repeat(4097));
        assert!(long.parse::<Uri>().unwrap_err().to_string().contains("4096"));
    }

    fn transport() -> impl Strategy<Value = Transport> {
        prop_oneof![
            ("[a-z0-9:@ /?#%é.-]{1,20}", any::<u16>())
                .prop_map(|(host, port)| Transport::Tcp { host, port }),
            prop::collection::vec(any::<u8>(), 1..20)
                .prop_map(|socket| Transport::Unix { socket: OsString::from_vec(socket).into() }),
            any::<(u32, u32)>().prop_map(|(cid, port)| Transport::Vsock { cid, port }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_displayed_parses_to_the_same(
            transport in transport(),
            tls: bool,
            export in "[^\0]{0,20}",
            user in prop::option::of(".{0,8}"),
            hostname in prop::option::of(".{0,8}"),
            verify_peer: Option<bool>,
        ) {
            let tls_params = TlsParams { hostname, verify_peer, ..TlsParams::default() };
            let uri = Uri { transport, tls, export, user, tls_params };
            let text = uri.to_string();
            prop_assert_eq!(text.parse::<Uri>(), Ok(uri), "{}", text);
        }

        #[test]
        fn any_text_parses_or_fails(text in "(nbds?(\\+unix|\\+vsock)?:)?(//)?\\PC{0,60}") {
            if let Ok(uri) = text.parse::<Uri>() {
                prop_assert_eq!(uri.to_string().parse::<Uri>(), Ok(uri));
            }
        }
    }
}
