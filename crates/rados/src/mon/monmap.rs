//! The map of the monitors (ceph: `src/mon/MonMap.cc`).

use crate::encoding::{Decode, EntityAddrs, Fsid, Reader};
use crate::error::Result;

/// The oldest encoding that is taken, and the newest that is known: 6 came with Ceph 14.
const OLDEST: u8 = 6;
const KNOWN: u8 = 9;

/// A monitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitor {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub addrs: EntityAddrs,
}

/// The monitors of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonMap {
    /// The cluster.
    pub fsid: Fsid,
    /// Counts the changes.
    pub epoch: u32,
    /// The monitors.
    pub monitors: Vec<Monitor>,
}

fn monitor(reader: &mut Reader<'_>) -> Result<Monitor> {
    reader.bytes()?;
    let mut fields = reader.versioned(5)?.fields;
    Ok(Monitor { name: fields.text()?, addrs: fields.get()? })
}

impl Decode for MonMap {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let versioned = reader.versioned(KNOWN)?;
        let (version, mut fields) = (versioned.version, versioned.fields);
        if version < OLDEST {
            return Err(fields.violation("a monitor map is of Ceph 14 or newer", version.into()));
        }
        let (fsid, epoch) = (fields.get()?, fields.u32()?);
        // When it was changed and made; features that monitors agreed on.
        fields.raw(8 + 8)?;
        fields.versioned(1)?;
        fields.versioned(1)?;
        Ok(Self { fsid, epoch, monitors: fields.vec(4 + 6, monitor)? })
    }
}
