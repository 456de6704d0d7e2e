//! The store's database: tables of bytes, read and written in transactions.

use crate::error::{Error, Result};
use crate::store::ValuePage;
use bytes::Bytes;
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use std::collections::BTreeMap;

/// A table.
pub(super) type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// By namespace and name: a record.
pub(super) const OBJECTS: Table = TableDefinition::new("objects");
/// By an object's number and key.
pub(super) const OMAP: Table = TableDefinition::new("omap");
/// By an object's number and name.
pub(super) const XATTRS: Table = TableDefinition::new("xattrs");
/// Counters, by name.
pub(super) const COUNTERS: Table = TableDefinition::new("counters");
/// By number: the files that objects have.
pub(super) const FILES: Table = TableDefinition::new("files");
/// By number: the files that no object has any more, and that may still be there.
pub(super) const GARBAGE: Table = TableDefinition::new("garbage");
/// By number: the processes that have, or had, the store open.
pub(super) const SESSIONS: Table = TableDefinition::new("sessions");
/// By number: snapshots that were removed.
pub(super) const REMOVED: Table = TableDefinition::new("removed_snapshots");
/// By snapshot and object: who has a clone for it.
pub(super) const CLONES: Table = TableDefinition::new("clones");

const ALL: [Table; 9] =
    [OBJECTS, OMAP, XATTRS, COUNTERS, FILES, GARBAGE, SESSIONS, REMOVED, CLONES];

/// A number as a key: in the order of numbers.
pub(super) const fn number(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

/// The number in front of a key.
pub(super) fn leading_number(key: &[u8]) -> u64 {
    key.first_chunk().map_or(0, |number| u64::from_be_bytes(*number))
}

/// A transaction.
pub(super) enum Transaction {
    /// It sees what was committed when it began.
    Read(ReadTransaction),
    /// It is alone, and what it does is there when it is committed, and survives a power cut.
    Write(Box<WriteTransaction>),
}

impl Transaction {
    pub(super) fn read(database: &Database) -> Result<Self> {
        database.begin_read().map(Self::Read).map_err(Error::database)
    }

    pub(super) fn write(database: &Database) -> Result<Self> {
        let transaction = database.begin_write().map_err(Error::database)?;
        Ok(Self::Write(Box::new(transaction)))
    }

    /// Makes the tables that are not there.
    pub(super) fn make_tables(&self) -> Result<()> {
        ALL.iter().try_for_each(|table| self.change(*table, |_| Ok(())))
    }

    pub(super) fn commit(self) -> Result<()> {
        match self {
            Self::Read(_) => Ok(()),
            Self::Write(transaction) => transaction.commit().map_err(Error::database),
        }
    }

    pub(super) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>> {
        let value = match self {
            Self::Read(transaction) => {
                transaction.open_table(table).map_err(Error::database)?.get(key)
            }
            Self::Write(transaction) => {
                let table = transaction.open_table(table).map_err(Error::database)?;
                let value = table.get(key).map_err(Error::database)?;
                return Ok(value.map(|value| Bytes::copy_from_slice(value.value())));
            }
        };
        let value = value.map_err(Error::database)?;
        Ok(value.map(|value| Bytes::copy_from_slice(value.value())))
    }

    /// At most `max` pairs behind `after` whose keys start with `prefix`. `after` is not before the prefix.
    pub(super) fn page(
        &self,
        table: Table,
        after: &[u8],
        prefix: &[u8],
        max: u64,
    ) -> Result<ValuePage> {
        match self {
            Self::Read(transaction) => {
                let table = transaction.open_table(table).map_err(Error::database)?;
                page(&table, after, prefix, max)
            }
            Self::Write(transaction) => {
                let table = transaction.open_table(table).map_err(Error::database)?;
                page(&table, after, prefix, max)
            }
        }
    }

    fn change(
        &self,
        table: Table,
        change: impl FnOnce(
            &mut redb::Table<'_, &'static [u8], &'static [u8]>,
        ) -> std::result::Result<(), redb::StorageError>,
    ) -> Result<()> {
        match self {
            Self::Read(_) => Err(rustix::io::Errno::ROFS.into()),
            Self::Write(transaction) => {
                let mut table = transaction.open_table(table).map_err(Error::database)?;
                change(&mut table).map_err(Error::database)
            }
        }
    }

    pub(super) fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<()> {
        self.change(table, |table| table.insert(key, value).map(|_| ()))
    }

    pub(super) fn remove(&self, table: Table, key: &[u8]) -> Result<()> {
        self.change(table, |table| table.remove(key).map(|_| ()))
    }

    /// Removes all keys that start with a number.
    pub(super) fn remove_all(&self, table: Table, start: u64) -> Result<()> {
        let (from, to) = (number(start), number(start.saturating_add(1)));
        self.change(table, |table| table.retain_in::<&[u8], _>(&from[..]..&to[..], |_, _| false))
    }

    /// Counts up: the number before that, from 1 on.
    pub(super) fn next_number(&self, counter: &str) -> Result<u64> {
        let last = self.get(COUNTERS, counter.as_bytes())?;
        let next = last.map_or(0, |last| leading_number(&last)).saturating_add(1);
        self.put(COUNTERS, counter.as_bytes(), &number(next))?;
        Ok(next)
    }
}

fn page(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    after: &[u8],
    prefix: &[u8],
    max: u64,
) -> Result<ValuePage> {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    let start = if after < prefix { Included(prefix) } else { Excluded(after) };
    let mut values = BTreeMap::new();
    for pair in table.range::<&[u8]>((start, Unbounded)).map_err(Error::database)? {
        let (key, value) = pair.map_err(Error::database)?;
        if !key.value().starts_with(prefix) {
            break;
        }
        if values.len() as u64 >= max {
            return Ok(ValuePage { values, more: true });
        }
        let copy = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
        values.insert(copy(key.value()), copy(value.value()));
    }
    Ok(ValuePage { values, more: false })
}
