//! Methods on an object in memory.

mod methods;

use super::{Caller, Object, method};
use crate::error::Result;
use crate::store::{Mutation, ValuePage};
use blockyard_rados::encoding::{EntityAddr, EntityName, EntityType, Utime, Writer};
use bytes::Bytes;
use rustix::io::Errno;
use std::collections::BTreeMap;

/// An object in memory.
#[derive(Clone, Debug, Default, PartialEq)]
struct Memory {
    bytes: Option<Vec<u8>>,
    omap: BTreeMap<Bytes, Bytes>,
    xattrs: BTreeMap<String, Bytes>,
    client: i64,
    seconds: u32,
}

impl Memory {
    fn there(&mut self) -> &mut Vec<u8> {
        self.bytes.get_or_insert_default()
    }

    fn check(&self) -> Result<()> {
        if self.bytes.is_some() { Ok(()) } else { Err(Errno::NOENT.into()) }
    }

    /// Runs a method: as stores do, with all of its effects or none.
    fn call(&mut self, class: &str, name: &str, input: &[u8]) -> Result<Vec<u8>> {
        let method = method(class, name).unwrap();
        let before = self.clone();
        let result = method.run(self, &Bytes::copy_from_slice(input));
        if result.is_err() {
            *self = before.clone();
        }
        assert!(method.writes || *self == before, "{name} is said to read only");
        result.map(|output| output.to_vec())
    }

    fn rbd(&mut self, name: &str, input: impl FnOnce(&mut Writer)) -> Result<Vec<u8>> {
        let mut writer = Writer::new();
        input(&mut writer);
        self.call("rbd", name, writer.as_slice())
    }

    fn lock(&mut self, name: &str, input: &[u8]) -> Result<Vec<u8>> {
        self.call("lock", name, input)
    }
}

impl Object for Memory {
    fn size(&mut self) -> Result<Option<u64>> {
        Ok(self.bytes.as_ref().map(|bytes| bytes.len() as u64))
    }

    fn read(&mut self, offset: u64, length: u64) -> Result<Bytes> {
        self.check()?;
        let (offset, length) = (usize::try_from(offset).unwrap(), usize::try_from(length).unwrap());
        let bytes = self.there();
        let end = (offset + length).min(bytes.len());
        Ok(Bytes::copy_from_slice(bytes.get(offset..end).unwrap_or_default()))
    }

    fn omap_get(&mut self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.omap.get(key).cloned())
    }

    fn omap_list(&mut self, after: &[u8], prefix: &[u8], max: u64) -> Result<ValuePage> {
        self.check()?;
        let behind = self.omap.iter().filter(|(key, _)| &key[..] > after);
        let mut found = behind.filter(|(key, _)| key.starts_with(prefix));
        let values = found.by_ref().take(usize::try_from(max).unwrap());
        let values = values.map(|(key, value)| (key.clone(), value.clone())).collect();
        Ok(ValuePage { values, more: found.next().is_some() })
    }

    fn xattr(&mut self, name: &str) -> Result<Option<Bytes>> {
        self.check()?;
        Ok(self.xattrs.get(name).cloned())
    }

    fn xattr_names(&mut self) -> Result<Vec<String>> {
        self.check()?;
        Ok(self.xattrs.keys().cloned().collect())
    }

    fn snap_seq(&mut self) -> Result<Option<u64>> {
        Ok(self.bytes.as_ref().map(|_| 7))
    }

    fn apply(&mut self, mutation: Mutation) -> Result<()> {
        match mutation {
            Mutation::Create { .. } => {
                self.there();
            }
            Mutation::Write { offset, data } => {
                let offset = usize::try_from(offset).unwrap();
                let bytes = self.there();
                bytes.resize(bytes.len().max(offset + data.len()), 0);
                bytes[offset..offset + data.len()].copy_from_slice(&data);
            }
            Mutation::WriteFull(data) => *self.there() = data.to_vec(),
            Mutation::SetXattr(name, value) => {
                self.there();
                self.xattrs.insert(name, value);
            }
            Mutation::OmapSet(pairs) => {
                self.there();
                self.omap.extend(pairs);
            }
            Mutation::OmapRemove(keys) => keys.iter().for_each(|key| {
                self.omap.remove(key);
            }),
            Mutation::Remove => *self = Self { client: self.client, ..Self::default() },
            other => panic!("no method does {other:?}"),
        }
        Ok(())
    }

    fn caller(&self) -> Caller {
        let client = EntityName { kind: EntityType::CLIENT, number: self.client };
        Caller { client, addr: EntityAddr::default() }
    }

    fn now(&self) -> Utime {
        Utime { seconds: self.seconds, nanoseconds: 0 }
    }

    fn random(&mut self) -> [u8; 16] {
        [0xab; 16]
    }
}
