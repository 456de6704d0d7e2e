//! Keyrings: files with the keys of entities (ceph: `src/auth/KeyRing.cc`).

use super::identity::Identity;
use super::key::CryptoKey;
use crate::encoding::EntityType;
use crate::error::{Error, ErrorKind, Result};
use std::collections::BTreeMap;

const DOING: &str = "reading a keyring";
/// Most bytes of a keyring that are read.
pub const MAX_KEYRING: usize = 16 << 20;

/// The keys in a keyring file. Capabilities in it are for monitors, and passed over.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    keys: BTreeMap<Identity, CryptoKey>,
}

impl Keyring {
    /// Reads the text of a keyring: sections named as entities, with lines `key = ` and others.
    ///
    /// # Errors
    /// A line that is neither a section nor an assignment, a section that is no entity's name, a key that is none. The
    /// error has the line's number, and never a key.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > MAX_KEYRING {
            let (got, limit) = (text.len() as u64, MAX_KEYRING as u64);
            return Err(Error::too_big(DOING, "bytes of a keyring", got, limit));
        }
        let mut keys = BTreeMap::new();
        let mut section: Option<Identity> = None;
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            let bad = |problem| bad_line(problem, number);
            if let Some(name) = line.strip_prefix('[') {
                let name = name.split(']').next().unwrap_or_default();
                let problem = "a section is an entity, as [client.admin]";
                section = Some(entity(name.trim()).ok_or_else(|| bad(problem))?);
                continue;
            }
            let Some((field, value)) = line.split_once('=') else {
                return Err(bad("a line is a section, or an assignment"));
            };
            if field.trim() != "key" {
                continue;
            }
            let Some(section) = &section else { return Err(bad("a key belongs into a section")) };
            let value = value.split(['#', ';']).next().unwrap_or_default();
            let key = CryptoKey::from_base64(value.trim().trim_matches('"'));
            keys.insert(
                section.clone(),
                key.map_err(|_| bad("a key is 40 or more letters of base64"))?,
            );
        }
        Ok(Self { keys })
    }

    /// Whose keys are in it.
    pub fn entities(&self) -> impl Iterator<Item = &Identity> {
        self.keys.keys()
    }

    /// The key of an entity.
    #[must_use]
    pub fn get(&self, identity: &Identity) -> Option<&CryptoKey> {
        self.keys.get(identity)
    }
}

/// The entity of a section. That of the monitors has an empty id.
fn entity(name: &str) -> Option<Identity> {
    let (kind, id) = name.split_once('.')?;
    Some(Identity { kind: EntityType::from_name(kind)?, id: id.to_owned() })
}

fn bad_line(problem: &'static str, number: u32) -> Error {
    Error::new(DOING, ErrorKind::BadParameter { problem, text: format!("line {number}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AQCz4gJrSu1bCxAAvZrvs1ZNw6jjMqeNBdBPUA==";

    #[test]
    fn keys_are_found_by_entity() {
        let text = format!(
            "# made by ceph-authtool\n[mon.]\n\tkey = {KEY}\n[client.admin]\n\tkey = {KEY}\n\
             \tcaps osd = \"allow *\"\n\n[client.rbd] ; another\nkey=\"{KEY}\"   # quoted\n"
        );
        let keyring = Keyring::parse(&text).unwrap();
        assert!(keyring.get(&Identity::client("admin")).is_some());
        assert!(keyring.get(&Identity::client("rbd")).is_some());
        assert!(keyring.get(&Identity::client("other")).is_none());
        assert!(!format!("{keyring:?}").contains("AQCz"));
    }

    #[test]
    fn a_bad_line_is_named_without_its_key() {
        for (text, line) in [
            (format!("key = {KEY}"), 1),
            (format!("[client.a]\nkey = {KEY}x"), 2),
            ("[client.a]\n\nnonsense".to_owned(), 3),
            ("[nobody.a]".to_owned(), 1),
        ] {
            let error = Keyring::parse(&text).unwrap_err().to_string();
            assert!(error.contains(&format!("line {line}")), "{error}");
            assert!(!error.contains("AQCz"), "{error}");
        }
    }
}
