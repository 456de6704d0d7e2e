//! Golden streams, and streams that are cut, damaged, or merged.

use super::*;
use proptest::prelude::*;

fn records(bytes: &[u8]) -> Result<Vec<DiffRecord>> {
    let mut reader = DiffReader::new(bytes)?;
    let mut records = Vec::new();
    loop {
        match reader.next_record()? {
            DiffRecord::End => return Ok(records),
            record => records.push(record),
        }
    }
}

fn diff(version: Version, records: &[DiffRecord]) -> Vec<u8> {
    let mut out = Vec::new();
    version.put_banner(&mut out);
    records.iter().for_each(|record| version.put(&mut out, record));
    version.put(&mut out, &DiffRecord::End);
    out
}

fn some_records() -> Vec<DiffRecord> {
    vec![
        DiffRecord::From("a".into()),
        DiffRecord::To("bc".into()),
        DiffRecord::Protected(true),
        DiffRecord::Size(0x0102),
        DiffRecord::Write { offset: 4, data: "xyz".into() },
        DiffRecord::Zero { offset: 0x10, length: 0x20 },
    ]
}

/// doc/dev/rbd-diff.rst, "rbd diff v1".
#[test]
fn golden_diff_v1() {
    let bytes = b"rbd diff v1\nf\x01\0\0\0at\x02\0\0\0bcs\x02\x01\0\0\0\0\0\0\
        w\x04\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0xyz\
        z\x10\0\0\0\0\0\0\0\x20\0\0\0\0\0\0\0e";
    assert_eq!(diff(Version::V1, &some_records()), bytes);
    let mut expected = some_records();
    expected.remove(2);
    assert_eq!(records(bytes).unwrap(), expected);
}

/// doc/dev/rbd-diff.rst, "rbd diff v2"; a record that is not known is passed over.
#[test]
fn golden_diff_v2() {
    let bytes = b"rbd diff v2\nf\x05\0\0\0\0\0\0\0\x01\0\0\0at\x06\0\0\0\0\0\0\0\x02\0\0\0bc\
        p\x08\0\0\0\0\0\0\0\x01s\x08\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0\
        w\x13\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0xyz\
        z\x10\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x20\0\0\0\0\0\0\0e";
    assert_eq!(diff(Version::V2, &some_records()), bytes);
    assert_eq!(records(bytes).unwrap(), some_records());
    let newer = b"rbd diff v2\n?\x03\0\0\0\0\0\0\0abce";
    assert_eq!(records(newer).unwrap(), []);
}

/// doc/dev/rbd-export.rst; the banner of the diffs is not in it (ceph: src/tools/rbd/Utils.h, RBD_IMAGE_DIFFS_BANNER_V2).
#[test]
fn golden_export() {
    let header = ExportHeader {
        order: Some(22),
        features: Some(61),
        stripe_unit: Some(4 << 20),
        stripe_count: Some(1),
        metadata: vec![("k".into(), "v1".into())],
    };
    let bytes =
        b"rbd image v2\nO\x08\0\0\0\0\0\0\0\x16\0\0\0\0\0\0\0T\x08\0\0\0\0\0\0\0\x3d\0\0\0\0\0\0\0\
        U\x08\0\0\0\0\0\0\0\0\0\x40\0\0\0\0\0C\x08\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\
        M\x0b\0\0\0\0\0\0\0\x01\0\0\0k\x02\0\0\0v1Erbd image diffs v2\n\x02\0\0\0\0\0\0\0";
    let mut out = Vec::new();
    header.put(&mut out);
    put_diff_count(&mut out, 2);
    assert_eq!(out, bytes);
    let mut input = &bytes[..];
    assert_eq!(ExportHeader::read(&mut input).unwrap(), header);
    assert_eq!(diff_count(&mut input).unwrap(), 2);
    for cut in 0..bytes.len() {
        let mut input = &bytes[..cut];
        let read = ExportHeader::read(&mut input).and_then(|_| diff_count(&mut input));
        assert!(read.is_err(), "{cut}");
    }
}

#[test]
fn what_is_cut_or_lies_is_refused() {
    for version in [Version::V1, Version::V2] {
        let bytes = diff(version, &some_records());
        for cut in 0..bytes.len() {
            assert!(records(&bytes[..cut]).is_err(), "{version:?} {cut}");
        }
    }
    for (bytes, part) in [
        (&b"rbd diff v3\ne"[..], "not a diff"),
        (b"rbd diff v1\n?e", "a record 0x3f"),
        (b"rbd diff v1\nf\xff\xff\xff\xffx", "it can have 4096"),
        (b"rbd diff v2\ns\x09\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0e", "has 9 bytes, not 8"),
        (b"rbd diff v1\nf\x01\0\0\0\xffe", "not UTF-8"),
        (
            b"rbd diff v1\nz\xff\xff\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\0\0\0e",
            "past the last byte",
        ),
        // It says that it has 2^60 bytes, and has 3.
        (b"rbd diff v1\nw\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10abc", "ends in the middle"),
    ] {
        let error = records(bytes).unwrap_err().to_string();
        assert!(error.contains(part), "{part:?}: {error}");
    }
    let long = b"rbd image v2\nM\0\0\0\0\0\0\0\x10";
    assert!(ExportHeader::read(&mut &long[..]).is_err());
}

#[test]
fn a_long_write_comes_in_pieces() {
    let data = vec![7; usize::try_from(MAX_PIECE).unwrap() + 5];
    let bytes = diff(Version::V1, &[DiffRecord::Write { offset: 3, data: data.into() }]);
    let lengths: Vec<_> = records(&bytes)
        .unwrap()
        .into_iter()
        .map(|record| match record {
            DiffRecord::Write { offset, data } => (offset, data.len() as u64),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(lengths, [(3, MAX_PIECE), (3 + MAX_PIECE, 5)]);
}

/// Applies a diff to bytes.
fn apply(image: &mut Vec<u8>, bytes: &[u8]) {
    for record in records(bytes).unwrap() {
        let at = |at: u64| usize::try_from(at).unwrap();
        match record {
            DiffRecord::Size(size) => image.resize(at(size), 0),
            DiffRecord::Write { offset, data } => {
                image[at(offset)..][..data.len()].copy_from_slice(&data);
            }
            DiffRecord::Zero { offset, length } => {
                image[at(offset)..at(offset + length)].fill(0);
            }
            _ => {}
        }
    }
}

/// A diff of an image of up to 64 bytes: parts of it, each zeroed or written, in order.
fn parts() -> impl Strategy<Value = (u64, Vec<(u64, u64, Option<u8>)>)> {
    let part = (0_u64..6, 1_u64..9, proptest::option::of(1_u8..255));
    (1_u64..64, proptest::collection::vec(part, 0..8)).prop_map(|(size, steps)| {
        let (mut at, mut parts) = (0, Vec::new());
        for (gap, length, byte) in steps {
            let start = at + gap;
            let length = length.min(size.saturating_sub(start));
            if length == 0 {
                break;
            }
            parts.push((start, length, byte));
            at = start + length;
        }
        (size, parts)
    })
}

fn made(from: Option<&str>, to: &str, size: u64, parts: &[(u64, u64, Option<u8>)]) -> Vec<u8> {
    let mut all: Vec<_> = from.map(|name| DiffRecord::From(name.into())).into_iter().collect();
    all.extend([DiffRecord::To(to.into()), DiffRecord::Size(size)]);
    all.extend(parts.iter().map(|&(offset, length, byte)| match byte {
        Some(byte) => {
            let data = vec![byte; usize::try_from(length).unwrap()].into();
            DiffRecord::Write { offset, data }
        }
        None => DiffRecord::Zero { offset, length },
    }));
    diff(Version::V1, &all)
}

proptest! {
    /// One merged diff does what two do, whatever the image was and however it grows and shrinks.
    #[test]
    fn a_merged_diff_does_what_both_do(one in parts(), two in parts(), before in 0_usize..64) {
        let first = made(Some("a"), "b", one.0, &one.1);
        let second = made(Some("b"), "c", two.0, &two.1);
        let mut merged = Vec::new();
        merge(&first[..], &second[..], &mut merged).unwrap();
        let mut expected = vec![9; before];
        apply(&mut expected, &first);
        apply(&mut expected, &second);
        let mut found = vec![9; before];
        apply(&mut found, &merged);
        prop_assert_eq!(found, expected);
        let all = records(&merged).unwrap();
        prop_assert_eq!(&all[..2], &[DiffRecord::From("a".into()), DiffRecord::To("c".into())]);
    }

    #[test]
    fn what_is_written_is_read(
        v2: bool,
        names in proptest::collection::vec("[a-z]{0,9}", 2),
        size: u64,
        writes in proptest::collection::vec((0_u64..1 << 60, proptest::collection::vec(any::<u8>(), 1..40)), 0..6),
    ) {
        let version = if v2 { Version::V2 } else { Version::V1 };
        let mut all = vec![
            DiffRecord::From(names[0].clone()),
            DiffRecord::To(names[1].clone()),
            DiffRecord::Size(size),
        ];
        all.extend(writes.into_iter().map(|(offset, data)| DiffRecord::Write { offset, data: data.into() }));
        prop_assert_eq!(records(&diff(version, &all)).unwrap(), all);
    }

    #[test]
    fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), v2: bool) {
        let mut stream = Vec::new();
        if v2 { Version::V2 } else { Version::V1 }.put_banner(&mut stream);
        stream.extend(&bytes);
        let _any = records(&stream);
        let mut stream = b"rbd image v2\n".to_vec();
        stream.extend(&bytes);
        let _any = ExportHeader::read(&mut &stream[..]);
    }
}

#[test]
fn diffs_that_do_not_follow_each_other_are_not_merged() {
    let first = made(None, "b", 8, &[]);
    let second = made(Some("x"), "c", 8, &[]);
    let error = merge(&first[..], &second[..], &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("leads to b") && error.contains("starts from x"), "{error}");
    let unordered = made(Some("b"), "c", 60, &[(20, 4, None), (8, 4, None)]);
    let error = merge(&first[..], &unordered[..], &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("the second diff") && error.contains("order"), "{error}");
}
