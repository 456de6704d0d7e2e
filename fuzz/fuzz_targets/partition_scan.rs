//! A disk of any bytes is scanned for partitions: it ends, reads whole blocks of the disk only, and what it finds lies on it.
//!
//! The first byte chooses the logical block size (even: 512 bytes, odd: 4096); the rest is the disk.
#![no_main]

use blockyard_blkmq::partition::{MAX_PARTITIONS, scan};
use blockyard_blkmq::{BlockSize, Sector};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, disk)) = data.split_first() else { return };
    let logical = if choice % 2 == 0 { BlockSize::B512 } else { BlockSize::B4096 };
    let capacity = Sector::from_bytes_floor(disk.len() as u64);
    let mut reads = 0;
    let mut read = |at: Sector, buf: &mut [u8]| {
        reads += 1;
        assert!(logical.divides(at.bytes()) && logical.divides(buf.len() as u64));
        let from = usize::try_from(at.bytes()).expect("an offset within the disk");
        buf.copy_from_slice(&disk[from..from + buf.len()]);
        Ok(())
    };
    let table = scan(&mut read, logical, capacity).expect("every block can be read");
    assert!(reads <= 1024, "{reads} reads");
    assert!(table.partitions.len() < MAX_PARTITIONS as usize);
    for part in &table.partitions {
        assert!(part.len > Sector::ZERO);
        assert!(part.start.checked_add(part.len).is_some_and(|end| end <= capacity));
    }
});
