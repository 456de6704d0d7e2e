//! Single operations, with what they give as values.

use super::pool::{Pool, first};
use crate::error::Result;
use crate::osd::{
    Extents, KeyPage, Op, Snapshots, Stat, ValuePage, Watcher, values, watchers, xattrs,
};
use bytes::Bytes;
use std::collections::BTreeMap;

impl Pool {
    async fn get(&self, object: &(impl AsRef<[u8]> + Sync + ?Sized), op: Op) -> Result<Bytes> {
        Ok(first(self.query(object, vec![op]).await?)?.data)
    }

    async fn put(&self, object: &(impl AsRef<[u8]> + Sync + ?Sized), op: Op) -> Result<()> {
        self.operate(object, vec![op]).await.map(|_| ())
    }

    /// Reads a range; a length of 0 is up to the end. What lies behind the end is not there, so that less may come.
    ///
    /// # Errors
    /// As all operations: ENOENT if there is no such object.
    pub async fn read(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        offset: u64,
        length: u64,
    ) -> Result<Bytes> {
        self.get(object, Op::read(offset, length)).await
    }

    /// Reads a range, and says where in it there is something.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn sparse_read(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        offset: u64,
        length: u64,
    ) -> Result<Extents> {
        Extents::parse(&self.get(object, Op::sparse_read(offset, length)).await?)
    }

    /// Asks for size and time.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn stat(&self, object: &(impl AsRef<[u8]> + Sync + ?Sized)) -> Result<Stat> {
        Stat::parse(&self.get(object, Op::stat()).await?)
    }

    /// Writes a range, and makes the object if it is not there.
    ///
    /// # Errors
    /// As all operations.
    pub async fn write(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        offset: u64,
        data: impl Into<Bytes>,
    ) -> Result<()> {
        self.put(object, Op::write(offset, data.into())).await
    }

    /// Replaces a whole object, or makes it.
    ///
    /// # Errors
    /// As all operations.
    pub async fn write_full(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        data: impl Into<Bytes>,
    ) -> Result<()> {
        self.put(object, Op::write_full(data.into())).await
    }

    /// Writes behind the end of an object, or makes it.
    ///
    /// # Errors
    /// As all operations.
    pub async fn append(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        data: impl Into<Bytes>,
    ) -> Result<()> {
        self.put(object, Op::append(data.into())).await
    }

    /// Makes a range zero, without making the object longer.
    ///
    /// # Errors
    /// As all operations.
    pub async fn zero(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        offset: u64,
        length: u64,
    ) -> Result<()> {
        self.put(object, Op::zero(offset, length)).await
    }

    /// Cuts an object to a size, or grows it with zeroes.
    ///
    /// # Errors
    /// As all operations.
    pub async fn truncate(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        size: u64,
    ) -> Result<()> {
        self.put(object, Op::truncate(size)).await
    }

    /// Makes an object; EEXIST if it is there and `exclusive`.
    ///
    /// # Errors
    /// As all operations.
    pub async fn create(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        exclusive: bool,
    ) -> Result<()> {
        self.put(object, Op::create(exclusive)).await
    }

    /// Removes an object.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn remove(&self, object: &(impl AsRef<[u8]> + Sync + ?Sized)) -> Result<()> {
        self.put(object, Op::delete()).await
    }

    /// Makes an object what it was in a snapshot.
    ///
    /// # Errors
    /// As all operations.
    pub async fn rollback(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        snapshot: u64,
    ) -> Result<()> {
        self.put(object, Op::rollback(snapshot)).await
    }

    /// The clones that are kept of an object for snapshots.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn snapshots(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
    ) -> Result<Snapshots> {
        Snapshots::parse(&self.get(object, Op::list_snapshots()).await?)
    }

    /// Reads an attribute; ENODATA if it is not there.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn xattr(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        name: &str,
    ) -> Result<Bytes> {
        self.get(object, Op::get_xattr(name)).await
    }

    /// Reads all attributes.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn xattrs(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
    ) -> Result<BTreeMap<Bytes, Bytes>> {
        xattrs(&self.get(object, Op::get_xattrs()).await?)
    }

    /// Sets an attribute, and makes the object if it is not there.
    ///
    /// # Errors
    /// As all operations.
    pub async fn set_xattr(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        name: &str,
        value: &[u8],
    ) -> Result<()> {
        self.put(object, Op::set_xattr(name, value)).await
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// As all operations.
    pub async fn remove_xattr(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        name: &str,
    ) -> Result<()> {
        self.put(object, Op::remove_xattr(name)).await
    }

    /// At most `max` keys behind `after`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn omap_keys(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        after: &[u8],
        max: u64,
    ) -> Result<KeyPage> {
        KeyPage::parse(&self.get(object, Op::omap_get_keys(after, max)).await?)
    }

    /// At most `max` keys behind `after` that start with `prefix`, with their values.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn omap_values(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        after: &[u8],
        max: u64,
        prefix: &[u8],
    ) -> Result<ValuePage> {
        ValuePage::parse(&self.get(object, Op::omap_get_vals(after, max, prefix)).await?)
    }

    /// The values of those of the keys that are there.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn omap_get<K: AsRef<[u8]>>(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        keys: &[K],
    ) -> Result<BTreeMap<Bytes, Bytes>> {
        values(&self.get(object, Op::omap_get_vals_by_keys(keys)).await?)
    }

    /// The header of the keys.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn omap_header(&self, object: &(impl AsRef<[u8]> + Sync + ?Sized)) -> Result<Bytes> {
        self.get(object, Op::omap_get_header()).await
    }

    /// Sets keys, and makes the object if it is not there.
    ///
    /// # Errors
    /// As all operations.
    pub async fn omap_set<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        pairs: &BTreeMap<K, V>,
    ) -> Result<()> {
        self.put(object, Op::omap_set(pairs)).await
    }

    /// Removes keys.
    ///
    /// # Errors
    /// As all operations.
    pub async fn omap_remove<K: AsRef<[u8]>>(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        keys: &[K],
    ) -> Result<()> {
        self.put(object, Op::omap_remove(keys)).await
    }

    /// Runs a method of a class that only reads: what it gives.
    ///
    /// # Errors
    /// As all operations: EOPNOTSUPP if the OSD has no such class or method.
    pub async fn call(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        class: &str,
        method: &str,
        input: &[u8],
    ) -> Result<Bytes> {
        self.get(object, Op::call(class, method, input)?).await
    }

    /// Runs a method of a class that writes: what it gives, which OSDs leave out for most of these.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn call_writing(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
        class: &str,
        method: &str,
        input: &[u8],
    ) -> Result<Bytes> {
        let op = Op::call(class, method, input)?;
        Ok(first(self.operate(object, vec![op]).await?)?.data)
    }

    /// Who watches an object.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn watchers(
        &self,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
    ) -> Result<Vec<Watcher>> {
        watchers(&self.get(object, Op::list_watchers()).await?)
    }
}
