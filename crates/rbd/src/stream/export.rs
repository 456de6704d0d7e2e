//! A whole image with its snapshots: what it is, then a diff for each snapshot, then one for what it is now.

use super::diff::expect;
use super::{array, number, put_text, skip, text};
use crate::error::{Error, Result};
use std::io::Read;

/// Bytes of all that was noted down about an image.
pub const MAX_METADATA: u64 = 4 << 20;

const BANNER: &[u8] = b"rbd image v2\n";
const DIFFS_BANNER: &[u8] = b"rbd image diffs v2\n";
const ORDER: u8 = b'O';
const FEATURES: u8 = b'T';
const STRIPE_UNIT: u8 = b'U';
const STRIPE_COUNT: u8 = b'C';
const METADATA: u8 = b'M';
const END: u8 = b'E';

/// What an exported image is. What the stream does not say is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportHeader {
    /// Its order.
    pub order: Option<u64>,
    /// Its features.
    pub features: Option<u64>,
    /// Bytes of a stripe's unit.
    pub stripe_unit: Option<u64>,
    /// Objects of a stripe.
    pub stripe_count: Option<u64>,
    /// What was noted down about it.
    pub metadata: Vec<(String, String)>,
}

impl ExportHeader {
    /// Appends it.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(BANNER);
        for (tag, value) in [
            (ORDER, self.order),
            (FEATURES, self.features),
            (STRIPE_UNIT, self.stripe_unit),
            (STRIPE_COUNT, self.stripe_count),
        ] {
            if let Some(value) = value {
                out.push(tag);
                out.extend_from_slice(&8_u64.to_le_bytes());
                out.extend_from_slice(&value.to_le_bytes());
            }
        }
        for (key, value) in &self.metadata {
            out.push(METADATA);
            let length = (key.len() + value.len() + 8) as u64;
            out.extend_from_slice(&length.to_le_bytes());
            put_text(out, key);
            put_text(out, value);
        }
        out.push(END);
    }

    /// Reads one that begins here.
    ///
    /// # Errors
    /// It is none, it is cut or damaged, or cannot be read.
    pub fn read(input: &mut impl Read) -> Result<Self> {
        expect(input, BANNER, "exported image of format 2")?;
        let (mut header, mut left) = (Self::default(), MAX_METADATA);
        loop {
            let [tag] = array(input)?;
            if tag == END {
                return Ok(header);
            }
            let length = number(input)?;
            let field = match tag {
                ORDER => &mut header.order,
                FEATURES => &mut header.features,
                STRIPE_UNIT => &mut header.stripe_unit,
                STRIPE_COUNT => &mut header.stripe_count,
                METADATA => {
                    let what = "invalid length of a field of the header";
                    left = left.checked_sub(length).ok_or_else(|| Error::damaged(what))?;
                    let key = text(input, length.saturating_sub(8))?;
                    let value = text(input, length.saturating_sub(8 + key.len() as u64))?;
                    if (key.len() + value.len() + 8) as u64 != length {
                        return Err(Error::damaged(what));
                    }
                    header.metadata.push((key, value));
                    continue;
                }
                // What is newer than we are says how long it is.
                _ => {
                    skip(input, length)?;
                    continue;
                }
            };
            if length != 8 {
                return Err(Error::damaged(format!(
                    "a record {:?} of the stream has {length} bytes, not 8",
                    char::from(tag)
                )));
            }
            *field = Some(number(input)?);
        }
    }
}

/// Begins the diffs of an image: one for each snapshot, and one more.
pub fn put_diff_count(out: &mut Vec<u8>, count: u64) {
    out.extend_from_slice(DIFFS_BANNER);
    out.extend_from_slice(&count.to_le_bytes());
}

/// How many diffs come.
///
/// # Errors
/// None come, or it cannot be read.
pub fn diff_count(input: &mut impl Read) -> Result<u64> {
    expect(input, DIFFS_BANNER, "exported image with diffs")?;
    number(input)
}
