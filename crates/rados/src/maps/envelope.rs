//! What is around a map: two versioned parts, then a checksum over all else.

use crate::encoding::{Reader, Versioned};
use crate::error::{Error, ErrorKind, Result};
use crate::msgr::ceph_crc32c;

/// The version of the wrapper that has a checksum, and the one that readers must know.
const WITH_CRC: u8 = 8;
/// Bytes of version, compatible version and length.
const HEADER: usize = 6;
const SEED: u32 = u32::MAX;
/// Newest versions of the two parts that are known. Newer ones are read as far as these go.
const KNOWN: u8 = 12;

/// The parts of a map.
pub(super) struct Envelope<'a> {
    /// What clients need.
    pub client: Versioned<'a>,
    /// What OSDs need, and some of it clients too.
    pub osd: Versioned<'a>,
    /// What stands behind the checksum.
    pub tail: Reader<'a>,
}

impl<'a> Envelope<'a> {
    /// Opens a whole map or an incremental one, and checks it.
    pub(super) fn open(doing: &'static str, bytes: &'a [u8]) -> Result<Self> {
        let mut reader = Reader::new(doing, bytes);
        let wrapper = reader.versioned(WITH_CRC)?;
        if wrapper.version < WITH_CRC {
            let rule = "a map is of Ceph 0.94 or newer, with a checksum";
            return Err(reader.violation(rule, wrapper.version.into()));
        }
        let mut fields = wrapper.fields;
        let len = HEADER + fields.rest().len();
        let (client, osd) = (fields.versioned(KNOWN)?, fields.versioned(KNOWN)?);
        let crc_at = len - fields.rest().len();
        let crc = fields.u32()?;
        let front = ceph_crc32c(SEED, &bytes[..crc_at]);
        if ceph_crc32c(front, fields.rest()) != crc {
            return Err(Error::new(doing, ErrorKind::Corrupted { what: "map" }));
        }
        Ok(Self { client, osd, tail: fields })
    }
}
