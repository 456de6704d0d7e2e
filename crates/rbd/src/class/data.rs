//! Data of a clone that comes from its parent.

use super::{Call, Method, NOTHING};
use crate::error::Result;
use crate::store::Mutation;
use bytes::Bytes;
use rustix::io::Errno;

pub(super) const METHODS: &[(&str, Method)] =
    &[("copyup", Method::writing(copyup)), ("sparse_copyup", Method::writing(sparse_copyup))];

/// Writes the parent's bytes, if the object is not there yet.
fn copyup(call: &mut Call<'_>) -> Result<Vec<u8>> {
    if call.object.size()?.is_none() {
        let data = Bytes::copy_from_slice(call.reader.rest());
        call.object.apply(Mutation::Write { offset: 0, data })?;
    }
    Ok(NOTHING)
}

/// The same with ranges of the object.
fn sparse_copyup(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let ranges = call.reader.map(16, |r| Ok((r.u64()?, r.u64()?))).map_err(super::invalid)?;
    let data = Bytes::from(call.input_bytes()?);
    if call.object.size()?.is_some() {
        return Ok(NOTHING);
    }
    call.object.apply(Mutation::Create { exclusive: true })?;
    let mut at = 0_usize;
    for (offset, length) in ranges {
        let end = usize::try_from(length).ok().and_then(|length| at.checked_add(length));
        let end = end.filter(|end| *end <= data.len()).ok_or(Errno::INVAL)?;
        call.object.apply(Mutation::Write { offset, data: data.slice(at..end) })?;
        at = end;
    }
    Ok(NOTHING)
}
