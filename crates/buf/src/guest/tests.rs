use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::*;

const KIB: u64 = 1024;

fn file(len: u64) -> OwnedFd {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, len).unwrap();
    file
}

fn spec(guest_addr: u64, size: u64, mmap_offset: u64) -> RegionSpec {
    RegionSpec { guest_addr, size, user_addr: guest_addr.wrapping_add(0x7000_0000), mmap_offset }
}

/// 8 KiB from address 0 on, and 8 KiB more right behind them from another place.
fn guest() -> (GuestView, OwnedFd) {
    let file = file(64 * KIB);
    let mut memory = GuestMemory::default();
    memory.add(spec(8 * KIB, 8 * KIB, 4 * KIB), file.as_fd()).unwrap();
    memory.add(spec(0, 8 * KIB, 40 * KIB), file.as_fd()).unwrap();
    (GuestView::new(Arc::new(memory)), file)
}

#[test]
fn both_addresses_lead_to_the_bytes_of_the_file() {
    let (view, file) = guest();
    view.write(0x10, b"low").unwrap();
    view.write(9 * KIB, b"high").unwrap();
    let mut found = [0; 4];
    rustix::io::pread(&file, &mut found, 5 * KIB).unwrap();
    assert_eq!(&found, b"high");
    let ring = view.memory().user_range(0x7000_0000 + 0x10, 3).unwrap();
    assert_eq!(ring.to_vec(), b"low");
}

#[test]
fn a_run_across_regions_comes_in_pieces() {
    let (view, _file) = guest();
    let mut pieces = Vec::new();
    view.pieces(8 * KIB - 4, 8, Access::Write, |piece| pieces.push(piece)).unwrap();
    assert_eq!(pieces.iter().map(Segment::len).collect::<Vec<_>>(), [4, 4]);
    pieces[0].copy_from(b"left");
    pieces[1].copy_from(b"over");
    let mut across = [0; 8];
    view.read(8 * KIB - 4, &mut across).unwrap();
    assert_eq!(&across, b"leftover");
    assert!(view.memory().user_range(0x7000_0000 + 8 * KIB - 4, 8).is_none(), "a ring is in one");
}

#[test]
fn what_is_not_in_the_guest_is_not_found() {
    let (view, _file) = guest();
    let none = |addr, len| view.pieces(addr, len, Access::Read, drop).is_none();
    assert!(
        none(16 * KIB, 1) && none(16 * KIB - 1, 2) && none(u64::MAX, 1) && none(u64::MAX - 1, 8)
    );
    assert!(view.read(16 * KIB - 1, &mut [0; 2]).is_none());
    assert!(view.write(u64::MAX, b"x").is_none());
    assert!(view.memory().user_range(0, 1).is_none());
    assert!(view.memory().user_range(0x7000_0000, usize::MAX).is_none());
    assert!(GuestView::new(Arc::default()).read(0, &mut [0]).is_none());
}

#[test]
fn what_is_read_only_is_not_written() {
    let (view, _file) = guest();
    view.pieces(0, 8, Access::Read, |piece| assert!(!piece.is_writable())).unwrap();
    view.pieces(0, 8, Access::Write, |piece| assert!(piece.is_writable())).unwrap();
}

#[test]
fn regions_that_cannot_be_are_refused() {
    let file = file(64 * KIB);
    let mut memory = GuestMemory::default();
    memory.add(spec(0x1000, 0x2000, 0), file.as_fd()).unwrap();
    for bad in [
        spec(0x2000, 0x1000, 0),
        spec(0, 0x1001, 0),
        spec(0x10000, 0, 0),
        spec(0x10000, 0x1000, 64 * KIB),
        spec(0x10000, u64::MAX - 0x1000, 0),
        spec(u64::MAX - 0xfff, 0x2000, 0),
        spec(0x10000, 0x1000, u64::MAX - 0xfff),
        RegionSpec { user_addr: 0x7000_1fff, ..spec(0x10000, 0x1000, 0) },
    ] {
        let error = memory.add(bad, file.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{bad:?}");
    }
    assert_eq!(memory.len(), 1);
}

#[test]
fn segments_outlive_the_region_that_they_are_of() {
    let (view, _file) = guest();
    let mut memory = view.memory().clone();
    let mut kept = None;
    view.pieces(0x20, 4, Access::Write, |piece| kept = Some(piece)).unwrap();
    assert!(memory.remove(&RegionSpec { mmap_offset: 0, ..spec(0, 8 * KIB, 0) }));
    assert!(!memory.remove(&spec(0, 8 * KIB, 0)));
    drop(view);
    let kept = kept.unwrap();
    kept.copy_from(b"kept");
    assert_eq!(kept.to_vec(), b"kept");
    assert!(GuestView::new(Arc::new(memory)).read(0x20, &mut [0]).is_none());
}

#[test]
fn a_region_may_start_anywhere_in_its_file() {
    let file = file(3 * KIB);
    let map = SharedMapping::new(file.as_fd(), 100, 1000).unwrap();
    map.segment(4, 4).copy_from(b"data");
    let mut found = [0; 4];
    rustix::io::pread(&file, &mut found, 104).unwrap();
    assert_eq!((&found, map.len()), (b"data", 1000));
    assert!(SharedMapping::new(file.as_fd(), 3 * KIB, 1).is_err());
}

#[test]
fn a_file_that_becomes_shorter_costs_its_own_guest_only() {
    let (lost, cut) = guest();
    let (other, _file) = guest();
    lost.write(0x10, b"low").unwrap();
    other.write(0x10, b"low").unwrap();
    let before = crate::losses();
    ftruncate(&cut, 0).unwrap();
    assert!(!lost.memory().is_lost(), "nobody has touched it");
    let mut found = [1; 3];
    lost.read(0x10, &mut found).unwrap();
    assert_eq!(found, [0; 3]);
    assert!(lost.memory().is_lost() && !other.memory().is_lost());
    assert!(crate::losses() > before);
    // It can be used as before, whatever for.
    lost.write(0x20, b"more").unwrap();
    let words = lost.memory().user_range(0x7000_0000, 64).and_then(crate::SharedWords::new);
    words.unwrap().store_u16(0, 7, Ordering::Relaxed);
    ftruncate(&cut, 64 * KIB).unwrap();
    assert_eq!(rustix::io::pread(&cut, &mut found, 40 * KIB + 0x20).unwrap(), 3);
    assert_eq!(found, [0; 3], "the file does not see it");
    other.read(0x10, &mut found).unwrap();
    assert_eq!(&found, b"low");
}

#[test]
fn a_touch_finds_that_a_file_became_shorter() {
    let (view, cut) = guest();
    let mut pieces = Vec::new();
    view.pieces(0, 8192, Access::Read, |piece| pieces.push(piece)).unwrap();
    pieces[0].touch();
    pieces[0].slice(0, 0).touch();
    assert!(!view.memory().is_lost());
    ftruncate(&cut, 44 * KIB).unwrap();
    pieces[0].slice(0, 4096).touch();
    assert!(!view.memory().is_lost());
    pieces[0].touch();
    assert!(view.memory().is_lost());
}

#[test]
fn a_file_that_can_be_sealed_does_not_become_shorter() {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, 8 * KIB).unwrap();
    let _map = SharedMapping::new(file.as_fd(), 0, 8 * KIB).unwrap();
    assert_eq!(ftruncate(&file, 4 * KIB), Err(rustix::io::Errno::PERM));
}

#[test]
fn nobody_takes_all_addresses() {
    let file = file(1 << 60);
    let error = SharedMapping::new(file.as_fd(), 0, MAX_SHARED_BYTES + 1).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
}

/// What is none of ours ends the process, as it did.
#[test]
fn other_memory_that_is_gone_is_still_a_fault() {
    use std::os::unix::process::ExitStatusExt;
    const CHILD: &str = "BLOCKYARD_TEST_SIGBUS";
    if std::env::var_os(CHILD).is_some() {
        let (view, _file) = guest();
        view.write(0, b"x").unwrap();
        let file = file(4 * KIB);
        let (read, shared) = (ProtFlags::READ, MapFlags::SHARED);
        // SAFETY: no mapping is replaced, and nobody borrows this one.
        let base = unsafe { mmap(std::ptr::null_mut(), 4096, read, shared, &file, 0) }.unwrap();
        ftruncate(&file, 0).unwrap();
        // SAFETY: this is the fault that is wanted.
        let byte = unsafe { base.cast::<u8>().read_volatile() };
        panic!("{byte}");
    }
    let name = "guest::tests::other_memory_that_is_gone_is_still_a_fault";
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let child = child.args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().unwrap();
    assert_eq!(child.status.signal(), Some(libc::SIGBUS), "{child:?}");
}

#[test]
fn memory_of_guests_is_in_no_core_dump() {
    let file = file(4 * PAGE_SIZE as u64);
    let mapping = SharedMapping::new(file.as_fd(), 0, 4 * PAGE_SIZE as u64).unwrap();
    let start = format!("{:x}-", mapping.segment(0, 1).as_ptr().addr());
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let ours = smaps.split("VmFlags:").zip(smaps.split("VmFlags:").skip(1));
    let flags = ours.filter(|(before, _)| before.lines().any(|line| line.starts_with(&start)));
    let flags: Vec<_> = flags.filter_map(|(_, after)| after.lines().next()).collect();
    assert!(flags.iter().any(|flags| flags.split(' ').any(|flag| flag == "dd")), "{flags:?}");
}
