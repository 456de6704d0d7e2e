//! Two diffs that follow each other become one.

use super::diff::{DiffReader, DiffRecord, Version};
use crate::error::{Error, Result};
use std::io::{Read, Write};

/// A diff whose data records come in the order of the image, one after the other.
struct Side<R> {
    reader: DiffReader<R>,
    from: Option<String>,
    to: Option<String>,
    size: u64,
    /// What comes next; `None` at its end.
    next: Option<Part>,
    /// The end of the last one.
    at: u64,
    /// What comes behind the last record.
    tail: Option<Part>,
}

/// A range, and its bytes; without some it is zeroes.
struct Part {
    offset: u64,
    length: u64,
    data: Option<bytes::Bytes>,
}

impl Part {
    const fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// What of it is in front of a place, which is behind its start, and what is not.
    fn cut(self, end: u64) -> (Self, Option<Self>) {
        let length = end.saturating_sub(self.offset).min(self.length);
        let at = usize::try_from(length).unwrap_or(usize::MAX);
        let (now, later) = match self.data {
            Some(mut data) => {
                let now = data.split_to(at.min(data.len()));
                (Some(now), Some(data))
            }
            None => (None, None),
        };
        let rest = self.length - length;
        let offset = self.offset + length;
        let rest = (rest > 0).then_some(Self { offset, length: rest, data: later });
        (Self { offset: self.offset, length, data: now }, rest)
    }

    fn put(self, out: &mut Vec<u8>) {
        let record = match self.data {
            Some(data) => DiffRecord::Write { offset: self.offset, data },
            None => DiffRecord::Zero { offset: self.offset, length: self.length },
        };
        Version::V1.put(out, &record);
    }
}

impl<R: Read> Side<R> {
    fn new(input: R) -> Result<Self> {
        let reader = DiffReader::new(input)?;
        let mut side =
            Self { reader, from: None, to: None, size: 0, next: None, at: 0, tail: None };
        side.advance()?;
        Ok(side)
    }

    fn advance(&mut self) -> Result<()> {
        self.next = loop {
            let part = match self.reader.next_record()? {
                DiffRecord::From(name) => {
                    self.from = Some(name);
                    continue;
                }
                DiffRecord::To(name) => {
                    self.to = Some(name);
                    continue;
                }
                DiffRecord::Size(size) => {
                    self.size = size;
                    continue;
                }
                DiffRecord::Protected(_) => continue,
                DiffRecord::Write { offset, data } => {
                    Part { offset, length: data.len() as u64, data: Some(data) }
                }
                DiffRecord::Zero { offset, length } => Part { offset, length, data: None },
                DiffRecord::End => break self.tail.take(),
            };
            if part.length == 0 {
                continue;
            }
            if part.offset < self.at {
                return Err(Error::damaged("the records are not in order"));
            }
            self.at = part.end();
            break Some(part);
        };
        Ok(())
    }
}

/// Writes the diff that does what the first one and then the second one does, as `rbd merge-diff` does.
///
/// # Errors
/// The first does not lead to where the second starts; one cannot be read, or the result not be written.
pub fn merge(first: impl Read, second: impl Read, out: &mut impl Write) -> Result<()> {
    let mut one = Side::new(first).map_err(|error| error.at("the first diff"))?;
    let mut two = Side::new(second).map_err(|error| error.at("the second diff"))?;
    if one.to != two.from || one.to.is_none() {
        let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "nowhere".into());
        return Err(Error::bad(format!(
            "the first diff leads to {}, and the second starts from {}; they do not follow each other",
            name(&one.to),
            name(&two.from)
        )));
    }
    let mut head = Vec::new();
    Version::V1.put_banner(&mut head);
    let from = one.from.take().map(DiffRecord::From);
    let to = two.to.take().map(DiffRecord::To);
    for record in from.into_iter().chain(to).chain([DiffRecord::Size(two.size)]) {
        Version::V1.put(&mut head, &record);
    }
    write(out, &head)?;
    if one.size < two.size {
        // What the image has got again is zeroes, whatever was there before the first diff.
        let tail = Part { offset: one.size, length: two.size - one.size, data: None };
        if one.next.is_some() { one.tail = Some(tail) } else { one.next = Some(tail) }
    }
    merge_parts(&mut one, &mut two, out)?;
    let mut end = Vec::new();
    Version::V1.put(&mut end, &DiffRecord::End);
    write(out, &end)
}

fn merge_parts<A: Read, B: Read>(
    one: &mut Side<A>,
    two: &mut Side<B>,
    out: &mut impl Write,
) -> Result<()> {
    let size = two.size;
    while one.next.is_some() || two.next.is_some() {
        let start = two.next.as_ref().map_or(u64::MAX, |part| part.offset);
        let mut bytes = Vec::new();
        match one.next.take() {
            // Before what the second changes.
            Some(part) if part.offset < start => {
                let (now, rest) = part.cut(start);
                // What the image does not have any more is not written.
                if now.offset < size {
                    let (inside, _cut_off) = now.cut(size);
                    inside.put(&mut bytes);
                }
                one.next = rest;
                if one.next.is_none() {
                    one.advance().map_err(|error| error.at("the first diff"))?;
                }
            }
            part => {
                let Some(second) = two.next.take() else { break };
                // The first is not seen behind the second.
                one.next = part;
                let end = second.end();
                while let Some(part) = one.next.take() {
                    if part.offset >= end {
                        one.next = Some(part);
                        break;
                    }
                    let (_hidden, rest) = part.cut(end);
                    one.next = rest;
                    if one.next.is_none() {
                        one.advance().map_err(|error| error.at("the first diff"))?;
                    }
                }
                second.put(&mut bytes);
                two.advance().map_err(|error| error.at("the second diff"))?;
            }
        }
        write(out, &bytes)?;
    }
    Ok(())
}

fn write(out: &mut impl Write, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).map_err(Error::io("writing the merged diff"))
}
