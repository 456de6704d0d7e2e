//! Diffs and exported images. First byte: a diff, an image, or two diffs (the length of the first one in front) that are merged.
#![no_main]

use blockyard_rbd::stream::{DiffReader, DiffRecord, ExportHeader, MAX_PIECE, diff_count, merge};
use libfuzzer_sys::fuzz_target;

/// Reads a diff to its end, and what is read again from what was written.
fn diff(bytes: &[u8]) {
    let Ok(mut reader) = DiffReader::new(bytes) else { return };
    let version = reader.version();
    let (mut written, mut records) = (Vec::new(), Vec::new());
    version.put_banner(&mut written);
    while let Ok(record) = reader.next_record() {
        version.put(&mut written, &record);
        if record == DiffRecord::End {
            let mut again = DiffReader::new(&written[..]).expect("it begins as a diff");
            for record in records {
                assert_eq!(again.next_record().expect("it reads what it wrote"), record);
            }
            return;
        }
        if let DiffRecord::Write { data, .. } = &record {
            assert!(!data.is_empty() && data.len() as u64 <= MAX_PIECE);
        }
        records.push(record);
    }
}

fn image(mut bytes: &[u8]) {
    let Ok(header) = ExportHeader::read(&mut bytes) else { return };
    let mut written = Vec::new();
    header.put(&mut written);
    let again = ExportHeader::read(&mut &written[..]).expect("a header reads what it wrote");
    assert_eq!(again, header);
    if diff_count(&mut bytes).is_ok_and(|count| count > 0) {
        diff(bytes);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&which, bytes)) = data.split_first() else { return };
    match which % 3 {
        0 => diff(bytes),
        1 => image(bytes),
        _ => {
            let Some((&length, bytes)) = bytes.split_first() else { return };
            let (first, second) = bytes.split_at(bytes.len().min(length.into()));
            let mut merged = Vec::new();
            if merge(first, second, &mut merged).is_ok() {
                let mut reader = DiffReader::new(&merged[..]).expect("a diff was written");
                while reader.next_record().expect("and can be read") != DiffRecord::End {}
            }
        }
    }
});
