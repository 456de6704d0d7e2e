//! What tells an export from another: its server's address, and its name.

use std::fs;
use std::net::IpAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use blockyard_nbd::uri::{Transport, Uri};

use crate::disks::identity::DiskIdentity;

pub(super) fn of_export(uri: &Uri) -> DiskIdentity {
    let mut words: Vec<Vec<u8>> = match &uri.transport {
        Transport::Tcp { host, port } => {
            vec!["tcp".into(), canonical_host(host).into(), port.to_string().into()]
        }
        Transport::Unix { socket } => {
            vec!["unix".into(), canonical_socket(socket).into_os_string().into_vec()]
        }
        Transport::Vsock { cid, port } => {
            vec!["vsock".into(), cid.to_string().into(), port.to_string().into()]
        }
    };
    words.push(uri.export.clone().into());
    DiskIdentity::of_words("nbd", words)
}

/// Names of hosts are the same in any case, and with a dot at their end; an address is written in one way.
fn canonical_host(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().to_string(),
        Err(_) => host.trim_end_matches('.').to_ascii_lowercase(),
    }
}

/// Without links and dots, as far as it is there; that of an abstract socket begins with a zero byte.
fn canonical_socket(path: &Path) -> PathBuf {
    if path.as_os_str().as_bytes().first() == Some(&0) {
        return path.to_owned();
    }
    let of_folder = || Some(fs::canonicalize(path.parent()?).ok()?.join(path.file_name()?));
    fs::canonicalize(path).ok().or_else(of_folder).unwrap_or_else(|| path.to_owned())
}
