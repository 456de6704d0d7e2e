//! What a clone of an object has in common with what came after it.

use super::disk::DiskFile;
use std::io;

/// Bytes that are compared as one: those of a page, which is what most writes are made of.
const BLOCK: usize = 4096;
/// Bytes that are read at a time.
const CHUNK: usize = 64 * BLOCK;

/// The ranges in which two files have the same bytes: first byte, number of bytes. An OSD knows what was written, and here it
/// is seen: what was written and is the same is in common, too.
pub(super) fn overlap(older: &impl DiskFile, newer: &impl DiskFile) -> io::Result<Vec<(u64, u64)>> {
    let size = older.size()?.min(newer.size()?);
    let (mut ranges, mut at): (Vec<(u64, u64)>, u64) = (Vec::new(), 0);
    let (mut one, mut other) = (vec![0; CHUNK], vec![0; CHUNK]);
    while at < size {
        let length = usize::try_from(size - at).unwrap_or(CHUNK).min(CHUNK);
        let (one, other) = (one.get_mut(..length), other.get_mut(..length));
        let (Some(one), Some(other)) = (one, other) else { break };
        if older.read_at(one, at)? != length || newer.read_at(other, at)? != length {
            // It was cut meanwhile: what is behind is in common with nobody.
            break;
        }
        for (one, other) in one.chunks(BLOCK).zip(other.chunks(BLOCK)) {
            let length = one.len() as u64;
            if one == other {
                match ranges.last_mut() {
                    Some((start, bytes)) if *start + *bytes == at => *bytes += length,
                    _ => ranges.push((at, length)),
                }
            }
            at += length;
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use crate::dir::DirStore;
    use crate::store::{Answer, NOSNAP, Op, Query, Request, SnapContext};

    #[test]
    fn a_clone_has_in_common_what_was_not_written() {
        const BLOCK: u64 = super::BLOCK as u64;
        const SIZE: u64 = super::CHUNK as u64 + 2 * BLOCK + 100;
        let directory = tempfile::tempdir().unwrap();
        let store = DirStore::open(directory.path(), true).unwrap();
        let object = "a".into();
        let write = |snaps: &[u64], op: Op| {
            let seq = snaps.first().copied().unwrap_or_default();
            let context = SnapContext { seq, snaps: snaps.to_vec() };
            store.operate_blocking(&object, &Request::Write { context, ops: vec![op] }).unwrap();
        };
        let bytes = |length: u64| vec![1_u8; length.try_into().unwrap()];
        write(&[], Op::write(0, bytes(SIZE)));
        write(&[1], Op::write(2 * BLOCK + 5, vec![2; 10]));
        write(&[1], Op::write(super::CHUNK as u64 - 1, vec![3; 2]));
        write(&[2, 1], Op::truncate(BLOCK));
        let list = Request::Read { snap: NOSNAP, ops: vec![Query::Snapshots.into()] };
        let listed = store.operate_blocking(&object, &list).unwrap().remove(0);
        let Answer::Snapshots(snapshots) = listed else { panic!("no clones") };
        let overlaps: Vec<_> = snapshots.clones.iter().map(|clone| &clone.overlap[..]).collect();
        let until = super::CHUNK as u64 - BLOCK;
        let behind = super::CHUNK as u64 + BLOCK;
        let first = [(0, 2 * BLOCK), (3 * BLOCK, until - 3 * BLOCK), (behind, SIZE - behind)];
        // The second, which was cut after it; and the head.
        assert_eq!(overlaps, [&first[..], &[(0, BLOCK)], &[]]);
    }
}
