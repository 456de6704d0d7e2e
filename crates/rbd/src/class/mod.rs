//! The methods of the classes `rbd` and `lock`, which run beside an object (ceph: `src/cls/rbd/cls_rbd.cc`,
//! `src/cls/lock/cls_lock.cc`).
//!
//! OSDs have these. Another store runs them from here, on an object that it gives them as an [`Object`]; input, output,
//! keys and error numbers are Ceph's, so that nobody can tell. Bytes in, bytes out: there is no I/O here.
//!
//! What is not here: groups, mirroring, migration, and images of format 1.

mod children;
mod data;
mod directory;
mod header;
mod lock;
mod metadata;
mod namespace;
mod object_map;
mod parent;
mod snapshot;
mod trash;

use crate::error::{Error, Result};
use crate::store::{Mutation, ValuePage};
use blockyard_rados::encoding::{Decode, Encode, EntityAddr, EntityName, Reader, Utime, encoded};
use bytes::Bytes;
use rustix::io::Errno;
use std::collections::BTreeMap;

/// Keys that are read at a time.
const PAGE: u64 = 64;
/// Most bytes that a method reads of an object: the largest object map, and room to spare.
const MAX_READ: u64 = 96 << 20;

/// Who runs a method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The client.
    pub client: EntityName,
    /// Where it is.
    pub addr: EntityAddr,
}

/// An object, as methods see it.
pub trait Object {
    /// Bytes of the object; `None` if it is not there.
    ///
    /// # Errors
    /// It cannot be read. So it is with the others.
    fn size(&mut self) -> Result<Option<u64>>;

    /// Bytes of a range, as far as the object goes.
    ///
    /// # Errors
    /// ENOENT if the object is not there.
    fn read(&mut self, offset: u64, length: u64) -> Result<Bytes>;

    /// The value of a key.
    ///
    /// # Errors
    /// As [`size`](Self::size).
    fn omap_get(&mut self, key: &[u8]) -> Result<Option<Bytes>>;

    /// At most `max` keys behind `after` that start with `prefix`.
    ///
    /// # Errors
    /// ENOENT if the object is not there.
    fn omap_list(&mut self, after: &[u8], prefix: &[u8], max: u64) -> Result<ValuePage>;

    /// An attribute.
    ///
    /// # Errors
    /// ENOENT if the object is not there.
    fn xattr(&mut self, name: &str) -> Result<Option<Bytes>>;

    /// The names of all attributes.
    ///
    /// # Errors
    /// ENOENT if the object is not there.
    fn xattr_names(&mut self) -> Result<Vec<String>>;

    /// The newest snapshot that a writer of the object knew; `None` if it is not there.
    ///
    /// # Errors
    /// As [`size`](Self::size).
    fn snap_seq(&mut self) -> Result<Option<u64>>;

    /// Writes. Methods that only read do not.
    ///
    /// # Errors
    /// As operations of a store.
    fn apply(&mut self, mutation: Mutation) -> Result<()>;

    /// Who runs the method.
    fn caller(&self) -> Caller;

    /// What time it is.
    fn now(&self) -> Utime;

    /// Bytes that nobody can foresee.
    fn random(&mut self) -> [u8; 16];
}

/// A method.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// Whether it may write.
    pub writes: bool,
    run: Run,
}

type Run = fn(&mut Call<'_>) -> Result<Vec<u8>>;

impl Method {
    const fn reading(run: Run) -> Self {
        Self { writes: false, run }
    }

    const fn writing(run: Run) -> Self {
        Self { writes: true, run }
    }

    /// Runs it: its output.
    ///
    /// # Errors
    /// The method's error numbers, and those of the object.
    pub fn run(&self, object: &mut dyn Object, input: &Bytes) -> Result<Bytes> {
        let reader = Reader::new("reading a method's input", input);
        (self.run)(&mut Call { object, reader }).map(Bytes::from)
    }
}

/// The method of a class; `None` if there is none of that name.
#[must_use]
pub fn method(class: &str, name: &str) -> Option<Method> {
    let tables: &[&[(&str, Method)]] = match class {
        "rbd" => &[
            header::METHODS,
            snapshot::METHODS,
            parent::METHODS,
            children::METHODS,
            directory::METHODS,
            object_map::METHODS,
            metadata::METHODS,
            namespace::METHODS,
            trash::METHODS,
            data::METHODS,
        ],
        "lock" => &[lock::METHODS],
        _ => return None,
    };
    let all = tables.iter().flat_map(|table| table.iter());
    all.clone().find(|(known, _)| *known == name).map(|(_, method)| *method)
}

/// A call of a method.
struct Call<'a> {
    object: &'a mut dyn Object,
    reader: Reader<'a>,
}

const NOTHING: Vec<u8> = Vec::new();

impl Call<'_> {
    /// Takes a structure off the input; EINVAL if it is not there.
    fn input<T: Decode>(&mut self) -> Result<T> {
        self.reader.get().map_err(invalid)
    }

    /// Takes a structure off the input that callers of old do not give.
    fn newer_input<T: Decode>(&mut self, missing: T) -> Result<T> {
        if self.reader.is_empty() { Ok(missing) } else { self.input() }
    }

    /// Takes text, which is any bytes.
    fn input_bytes(&mut self) -> Result<Vec<u8>> {
        self.reader.bytes().map(<[u8]>::to_vec).map_err(invalid)
    }

    /// ENOENT if the object is not there.
    fn check_exists(&mut self) -> Result<u64> {
        self.object.size()?.ok_or(Errno::NOENT.into())
    }

    /// A value of the object; EIO if it is not what it should be.
    fn key<T: Decode>(&mut self, key: &[u8]) -> Result<Option<T>> {
        let Some(value) = self.object.omap_get(key)? else { return Ok(None) };
        let read = Reader::new("reading a key of an object", &value).get();
        read.map(Some).map_err(|_| Errno::IO.into())
    }

    /// A value that has to be there, else ENOENT.
    fn required<T: Decode>(&mut self, key: &[u8]) -> Result<T> {
        self.key(key)?.ok_or(Errno::NOENT.into())
    }

    fn set_keys(&mut self, pairs: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Result<()> {
        let pairs: BTreeMap<Bytes, Bytes> =
            pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        self.object.apply(Mutation::OmapSet(pairs))
    }

    fn set_key(&mut self, key: &[u8], value: &impl Encode) -> Result<()> {
        self.set_keys([(key.to_vec(), encoded(value))])
    }

    /// Removes a key, if it is there.
    fn remove_key(&mut self, key: &[u8]) -> Result<()> {
        self.object.apply(Mutation::OmapRemove(vec![Bytes::copy_from_slice(key)]))
    }

    /// All keys with a prefix, and their values, page by page, as long as `each` says so.
    fn for_each_key(
        &mut self,
        prefix: &str,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut after = Bytes::copy_from_slice(prefix.as_bytes());
        loop {
            let page = self.object.omap_list(&after, prefix.as_bytes(), PAGE)?;
            for (key, value) in &page.values {
                each(key, value)?;
            }
            match page.values.last_key_value() {
                Some((last, _)) if page.more => after = last.clone(),
                _ => return Ok(()),
            }
        }
    }

    /// The whole object.
    fn read_all(&mut self) -> Result<Bytes> {
        match self.check_exists()? {
            0 => Err(Errno::NOENT.into()),
            size if size > MAX_READ => Err(Errno::FBIG.into()),
            size => self.object.read(0, size),
        }
    }
}

fn invalid(_: blockyard_rados::Error) -> Error {
    Errno::INVAL.into()
}

/// A string and a number as output.
fn text(text: &[u8]) -> Vec<u8> {
    let mut writer = blockyard_rados::encoding::Writer::new();
    writer.bytes(text);
    writer.into_bytes()
}

#[cfg(test)]
mod tests;
