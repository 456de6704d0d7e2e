//! Who a client says it is.

use crate::encoding::{Encode, EntityType, Writer};
use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::str::FromStr;

/// An entity of the cluster's key ring: a kind and a name, such as `client.admin` (ceph: `src/common/entity_name.h`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Its kind.
    pub kind: EntityType,
    /// Its name among those of its kind.
    pub id: String,
}

impl Identity {
    /// A client.
    #[must_use]
    pub fn client(id: &str) -> Self {
        Self { kind: EntityType::CLIENT, id: id.to_owned() }
    }
}

impl Default for Identity {
    fn default() -> Self {
        Self::client("admin")
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.kind.name(), self.id)
    }
}

impl FromStr for Identity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('.').and_then(|(kind, id)| {
            Some(Self { kind: EntityType::from_name(kind)?, id: id.to_owned() })
        });
        parts.filter(|identity| !identity.id.is_empty()).ok_or_else(|| {
            let problem = "an entity's name is a kind and an id, such as client.admin";
            Error::new("reading a name", ErrorKind::BadParameter { problem, text: text.to_owned() })
        })
    }
}

impl Encode for Identity {
    fn encode(&self, writer: &mut Writer) {
        writer.u32(self.kind.0.into());
        writer.string(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_printed() {
        let identity: Identity = "client.rbd.mirror".parse().unwrap();
        assert_eq!((identity.kind, &*identity.id), (EntityType::CLIENT, "rbd.mirror"));
        assert_eq!(identity.to_string(), "client.rbd.mirror");
        assert_eq!(Identity::default().to_string(), "client.admin");
        for bad in ["admin", "client.", "human.me", ""] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }
}
