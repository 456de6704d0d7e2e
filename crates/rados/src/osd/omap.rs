//! Operations on an object's sorted keys ("omap"). Keys are bytes, and so are values.

use super::code::OpCode;
use super::op::Op;
use crate::encoding::{Reader, Writer};
use crate::error::Result;
use bytes::Bytes;
use std::collections::BTreeMap;

const DOING: &str = "reading the keys of an object";

fn data_only(code: OpCode, data: Writer) -> Op {
    Op::with_args(code, &[], data.into_bytes().into())
}

fn keys<K: AsRef<[u8]>>(keys: &[K]) -> Writer {
    let mut w = Writer::new();
    w.vec(keys, |w, key| w.bytes(key.as_ref()));
    w
}

impl Op {
    /// Reads at most `max` keys that come after one: see [`KeyPage`].
    #[must_use]
    pub fn omap_get_keys(after: &[u8], max: u64) -> Self {
        let mut w = Writer::new();
        w.bytes(after);
        w.u64(max);
        data_only(OpCode::OMAP_GET_KEYS, w)
    }

    /// Reads at most `max` keys that come after one and start with `prefix`, and their values: see [`ValuePage`].
    #[must_use]
    pub fn omap_get_vals(after: &[u8], max: u64, prefix: &[u8]) -> Self {
        let mut w = Writer::new();
        w.bytes(after);
        w.u64(max);
        w.bytes(prefix);
        data_only(OpCode::OMAP_GET_VALS, w)
    }

    /// Reads the values of those of the keys that are there: see [`values`].
    #[must_use]
    pub fn omap_get_vals_by_keys<K: AsRef<[u8]>>(wanted: &[K]) -> Self {
        data_only(OpCode::OMAP_GET_VALS_BY_KEYS, keys(wanted))
    }

    /// Reads the header, which is the data of the result.
    #[must_use]
    pub fn omap_get_header() -> Self {
        data_only(OpCode::OMAP_GET_HEADER, Writer::new())
    }

    /// Sets keys, and makes the object if it is not there.
    #[must_use]
    pub fn omap_set<K: AsRef<[u8]>, V: AsRef<[u8]>>(pairs: &BTreeMap<K, V>) -> Self {
        let mut w = Writer::new();
        let pairs: Vec<_> = pairs.iter().collect();
        w.vec(&pairs, |w, (key, value)| {
            w.bytes(key.as_ref());
            w.bytes(value.as_ref());
        });
        data_only(OpCode::OMAP_SET_VALS, w)
    }

    /// Sets the header.
    #[must_use]
    pub fn omap_set_header(header: Bytes) -> Self {
        Self::with_args(OpCode::OMAP_SET_HEADER, &[], header)
    }

    /// Removes keys.
    #[must_use]
    pub fn omap_remove<K: AsRef<[u8]>>(gone: &[K]) -> Self {
        data_only(OpCode::OMAP_RM_KEYS, keys(gone))
    }

    /// Removes all keys and the header.
    #[must_use]
    pub fn omap_clear() -> Self {
        data_only(OpCode::OMAP_CLEAR, Writer::new())
    }
}

/// What [`Op::omap_get_keys`] gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPage {
    /// Keys, in rising order.
    pub keys: Vec<Bytes>,
    /// Whether there are more behind them.
    pub more: bool,
}

impl KeyPage {
    /// Reads the data of the operation's result.
    ///
    /// # Errors
    /// It is cut.
    pub fn parse(data: &Bytes) -> Result<Self> {
        let mut r = Reader::new(DOING, data);
        let keys = r.vec(4, |r| Ok(data.slice_ref(r.bytes()?)))?;
        Ok(Self { keys, more: r.bool()? })
    }
}

/// What [`Op::omap_get_vals`] gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ValuePage {
    /// Keys and values.
    pub values: BTreeMap<Bytes, Bytes>,
    /// Whether there are more behind them.
    pub more: bool,
}

impl ValuePage {
    /// Reads the data of the operation's result.
    ///
    /// # Errors
    /// It is cut.
    pub fn parse(data: &Bytes) -> Result<Self> {
        let mut r = Reader::new(DOING, data);
        Ok(Self { values: pairs(&mut r, data)?, more: r.bool()? })
    }
}

/// What [`Op::omap_get_vals_by_keys`] gives.
///
/// # Errors
/// It is cut.
pub fn values(data: &Bytes) -> Result<BTreeMap<Bytes, Bytes>> {
    pairs(&mut Reader::new(DOING, data), data)
}

/// Keys and values, which are not copied.
pub(super) fn pairs(r: &mut Reader<'_>, data: &Bytes) -> Result<BTreeMap<Bytes, Bytes>> {
    r.map(4 + 4, |r| Ok((data.slice_ref(r.bytes()?), data.slice_ref(r.bytes()?))))
}
