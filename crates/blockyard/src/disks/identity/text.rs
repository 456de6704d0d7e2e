//! Identities as text: words with slashes between them, in which all but letters, digits and `-._` is escaped as in a URI.
//!
//! | text | the disk |
//! | --- | --- |
//! | `volatile` | memory |
//! | `file/8:1/131/1700000000123456789` | device of the file system, inode, nanoseconds of its birth or `-` |
//! | `file/0:45/131/-/nfs4%3Afar%3A%2Fvolume` | the same, and which file system it is where its device does not tell |
//! | `absent/8:1/2/disk.img` | device and inode of the folder, name |
//! | `device/8:16/23/naa.5000c500a1b2c3d4` | number, `diskseq` or `-`, what its maker says or `-` |
//! | `KIND/WORD/...` | what the kind of disk says |
//! | `nbd/tcp/far/10809/disk`, `nbd/unix/%2Fs/disk`, `nbd/vsock/2/10809/disk` | a server and an export |
//! | `image/8:1/2/ns/10ab/4` | device and inode of a store's directory, namespace, id of the image, snapshot or `-` |
//! | `rbd/FSID/2/ns/10ab/-` | identity of a cluster, number of the pool, namespace, id of the image, snapshot or `-` |

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use super::{DiskIdentity, Kind, Number};

/// What is escaped.
const WORD: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_');
/// The same in what kinds of disks say: device numbers have a colon.
const OTHER_WORD: &AsciiSet = &WORD.remove(b':');
/// What is not known.
const UNKNOWN: &str = "-";

/// A text that is no identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadIdentity;

impl fmt::Display for BadIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid disk identity")
    }
}

impl std::error::Error for BadIdentity {}

fn word(bytes: &[u8]) -> impl fmt::Display {
    percent_encode(bytes, WORD).to_string()
}

impl fmt::Display for DiskIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Volatile => f.write_str("volatile"),
            Kind::File { device: (major, minor), inode, born, filesystem } => {
                write!(f, "file/{major}:{minor}/{inode}/{}", known(born.as_ref()))?;
                match filesystem {
                    Some(filesystem) => write!(f, "/{}", word(filesystem.as_bytes())),
                    None => Ok(()),
                }
            }
            Kind::Absent { device: (major, minor), inode, name } => {
                write!(f, "absent/{major}:{minor}/{inode}/{}", word(name.as_bytes()))
            }
            Kind::Device { number: (major, minor), sequence, serial } => {
                let sequence = known(sequence.as_ref());
                write!(f, "device/{major}:{minor}/{sequence}/")?;
                match serial {
                    // One that is a dash is not taken for none.
                    Some(serial) if serial == UNKNOWN => f.write_str("%2D"),
                    Some(serial) => write!(f, "{}", word(serial.as_bytes())),
                    None => f.write_str(UNKNOWN),
                }
            }
            Kind::Named { kind, words } => {
                f.write_str(kind)?;
                words.iter().try_for_each(|it| write!(f, "/{}", percent_encode(it, OTHER_WORD)))
            }
        }
    }
}

fn known(value: Option<&impl fmt::Display>) -> String {
    value.map_or_else(|| UNKNOWN.into(), ToString::to_string)
}

impl From<DiskIdentity> for String {
    fn from(identity: DiskIdentity) -> Self {
        identity.to_string()
    }
}

impl TryFrom<String> for DiskIdentity {
    type Error = BadIdentity;

    fn try_from(text: String) -> Result<Self, BadIdentity> {
        text.parse()
    }
}

impl FromStr for DiskIdentity {
    type Err = BadIdentity;

    fn from_str(text: &str) -> Result<Self, BadIdentity> {
        let words: Vec<&str> = text.split('/').collect();
        parse(&words).map(Self).ok_or(BadIdentity)
    }
}

fn parse(words: &[&str]) -> Option<Kind> {
    Some(match *words {
        ["volatile"] => Kind::Volatile,
        ["file", device, inode, born] => Kind::File {
            device: number(device)?,
            inode: inode.parse().ok()?,
            born: maybe(born)?,
            filesystem: None,
        },
        ["file", device, inode, born, filesystem] => Kind::File {
            device: number(device)?,
            inode: inode.parse().ok()?,
            born: maybe(born)?,
            filesystem: Some(String::from_utf8(bytes(filesystem)).ok()?),
        },
        ["absent", device, inode, name] => Kind::Absent {
            device: number(device)?,
            inode: inode.parse().ok()?,
            name: OsString::from_vec(bytes(name)),
        },
        ["device", device, sequence, serial] => Kind::Device {
            number: number(device)?,
            sequence: maybe(sequence)?,
            serial: match serial {
                UNKNOWN => None,
                serial => Some(String::from_utf8(bytes(serial)).ok()?),
            },
        },
        ["volatile" | "file" | "absent" | "device", ..] => return None,
        [kind, ref words @ ..] if is_kind(kind) && !words.is_empty() => {
            Kind::Named { kind: kind.into(), words: words.iter().map(|word| bytes(word)).collect() }
        }
        _ => return None,
    })
}

fn is_kind(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|it| it.is_ascii_lowercase())
}

fn bytes(word: &str) -> Vec<u8> {
    percent_decode_str(word).collect()
}

fn number(word: &str) -> Option<Number> {
    let (major, minor) = word.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A number that may be unknown.
fn maybe<T: FromStr>(word: &str) -> Option<Option<T>> {
    if word == UNKNOWN { Some(None) } else { word.parse().ok().map(Some) }
}
