use std::os::fd::{AsFd, AsRawFd, OwnedFd};

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

/// What is before the page that was touched is still the guest's, and goes to its disk if it is just being written there.
#[test]
fn what_is_left_of_the_file_stays() {
    let (view, cut) = guest();
    view.write(0x10, b"left").unwrap();
    let left = view.memory().user_range(0x7000_0000, 4096).unwrap();
    let gone = view.memory().user_range(0x7000_0000 + 4096, 4096).unwrap();
    ftruncate(&cut, 44 * KIB).unwrap();
    assert!(!left.is_lost() && !gone.is_lost());
    assert!(gone.probe(Access::Write));
    assert!(view.memory().is_lost() && gone.is_lost() && gone.slice(4095, 1).is_lost());
    assert!(!left.is_lost());
    assert_eq!(left.slice(0x10, 4).to_vec(), b"left");
    left.copy_from(b"more");
    let mut found = [0; 4];
    rustix::io::pread(&cut, &mut found, 40 * KIB).unwrap();
    assert_eq!(&found, b"more", "it is the file's");
    // The rest goes later, and a page before it then.
    ftruncate(&cut, 0).unwrap();
    assert!(left.probe(Access::Write));
    assert!(left.is_lost());
    assert_eq!(left.slice(0x10, 4).to_vec(), [0; 4]);
}

/// The kernel has found that it is gone, and nothing else has.
#[test]
fn memory_is_lost_when_somebody_says_so() {
    let (view, _file) = guest();
    view.write(4096, b"here").unwrap();
    let part = view.memory().user_range(0x7000_0000 + 4096, 4).unwrap();
    assert!(!part.probe(Access::Write));
    let before = crate::losses();
    assert!(part.lose());
    assert!(part.is_lost() && view.memory().is_lost() && crate::losses() > before);
    assert_eq!(part.to_vec(), [0; 4]);
    let own = Segment::from_vec(vec![1; 4]);
    assert!(!own.is_shared() && !own.lose() && !own.probe(Access::Write));
}

/// The kernel moves nothing of it, as often as it is asked, and what is put there is seen by nobody; whatever is around that
/// stays out of reach.
#[test]
fn memory_that_is_taken_away_is_not_zeroes() {
    let (view, file) = guest();
    let written = tempfile::tempfile().unwrap();
    let at = |offset: u64, len| view.memory().user_range(0x7000_0000 + offset, len).unwrap();
    let written_from = |part: &Segment| {
        let iov = libc::iovec { iov_base: part.as_ptr().cast(), iov_len: part.len() };
        // SAFETY: it is the memory of a segment, which the kernel only reads.
        let done = unsafe { libc::pwritev(written.as_raw_fd(), &raw const iov, 1, 0) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error().raw_os_error())
    };
    let part = at(4096, 4096);
    part.copy_from(&[7; 4096]);
    assert_eq!(written_from(&part), Ok(4096));
    assert!(view.memory().lose() && view.memory().is_lost() && part.is_lost());
    for touches in [false, true] {
        if touches {
            // A copy of ours to the page before.
            view.write(0, b"put").unwrap();
        }
        assert_eq!(written_from(&part), Err(Some(libc::EFAULT)));
        assert!(!part.probe(Access::Read) && !part.probe(Access::Write) && !part.lose());
        assert_eq!(written_from(&part), Err(Some(libc::EFAULT)));
    }
    let mut found = [0; 3];
    rustix::io::pread(&file, &mut found, 40 * KIB).unwrap();
    assert_eq!(found, [0; 3], "nothing reaches the guest");
    // Again, and when its file becomes shorter.
    assert!(view.memory().lose());
    ftruncate(&file, 0).unwrap();
    assert_eq!(part.to_vec(), [0; 4096]);
    drop((view, part));
    let (next, _file) = guest();
    next.write(0, b"next").unwrap();
    assert!(!next.memory().is_lost());
}

#[test]
fn memory_of_any_size_is_taken_away() {
    let file = file(16 << 30);
    let mut memory = GuestMemory::default();
    memory.add(spec(0, 16 << 30, 0), file.as_fd()).unwrap();
    let last = memory.user_range(0x7000_0000 + (16 << 30) - 4, 4).unwrap();
    assert!(memory.lose() && memory.is_lost() && last.is_lost());
    last.copy_from(b"none");
    let mut found = [0; 4];
    rustix::io::pread(&file, &mut found, (16 << 30) - 4).unwrap();
    assert_eq!(found, [0; 4]);
}

#[test]
fn guests_that_lose_their_memory_share_none_of_what_they_get() {
    let parts: Vec<_> = (0..2)
        .map(|_| {
            let (view, cut) = guest();
            ftruncate(&cut, 0).unwrap();
            view.memory().user_range(0x7000_0000, 64).unwrap()
        })
        .collect();
    parts[0].copy_from(b"secret");
    assert_eq!(parts[1].slice(0, 6).to_vec(), [0; 6]);
    let (first, at) = (parts[0].slice(0, 6), parts[0].as_ptr().addr());
    drop(parts);
    assert_eq!(first.to_vec(), b"secret");
    drop(first);
    // Nor does the next at the same address, which is likely to be the same.
    let (view, cut) = guest();
    ftruncate(&cut, 0).unwrap();
    let next = view.memory().user_range(0x7000_0000, 64).unwrap();
    assert_eq!(next.slice(0, 6).to_vec(), [0; 6], "{at:#x} {:?}", next.as_ptr());
}

#[test]
fn a_probe_finds_that_a_file_became_shorter() {
    let (view, cut) = guest();
    let mut pieces = Vec::new();
    view.pieces(0, 8192, Access::Read, |piece| pieces.push(piece)).unwrap();
    assert!(!pieces[0].probe(Access::Read) && !pieces[0].slice(0, 0).probe(Access::Read));
    ftruncate(&cut, 44 * KIB - 1).unwrap();
    // Whatever is asked for of the mapping, and at no cost in memory.
    assert!(pieces[0].slice(7, 0).probe(Access::Read) && view.memory().is_lost());
    assert!(!pieces[0].slice(7, 4089).is_lost() && pieces[0].slice(7, 4090).is_lost());
    assert!(!pieces[0].probe(Access::Read), "all of it can be used now");
    ftruncate(&cut, 41 * KIB).unwrap();
    assert!(!pieces[0].slice(0, 1).probe(Access::Read));
    ftruncate(&cut, 40 * KIB).unwrap();
    assert!(pieces[0].slice(4095, 1).probe(Access::Read) && pieces[0].slice(0, 1).is_lost());
}

/// The first page that is gone is found, wherever it is: what is before it stays the file's.
#[test]
fn a_probe_finds_the_first_page_that_cannot_be_had() {
    let place = tempfile::tempdir().unwrap();
    let command = format!("mount -t tmpfs -o size=64k tmpfs {}", place.path().display());
    let run = |command: &str| std::process::Command::new("sh").args(["-ec", command]).status();
    assert!(run(&command).unwrap().success(), "as root?");
    let path = place.path().join("guest");
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(path);
    run(&format!("umount -l {}", place.path().display())).unwrap();
    let file = file.unwrap();
    file.set_len(1024 * KIB).unwrap();
    let mapping = SharedMapping::new(file.as_fd(), 0, 1024 * KIB).unwrap();
    mapping.segment(0, 4096).copy_from(&[7; 4096]);
    let all = mapping.segment(0, 1024 << 10);
    assert!(all.probe(Access::Write), "there is no room for all of it");
    let pages = rustix::fs::fstat(&file).unwrap().st_blocks.unsigned_abs() * 512 / 4096;
    assert!((1..=16).contains(&pages), "{pages}");
    let left = usize::try_from(pages * 4096).unwrap();
    assert!(!mapping.segment(0, left).is_lost() && mapping.segment(left, 1).is_lost());
    assert_eq!(mapping.segment(0, 4096).to_vec(), [7; 4096]);
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

/// Runs `act` in a process of its own, by running the test of that name again, and says how that ended.
fn alone(test: &str, act: impl FnOnce()) -> std::process::ExitStatus {
    const CHILD: &str = "BLOCKYARD_TEST_SIGBUS";
    if std::env::var_os(CHILD).is_some() {
        // It ends, whatever becomes of it.
        // SAFETY: it concerns no memory.
        unsafe { libc::alarm(60) };
        act();
        std::process::exit(0);
    }
    let name = format!("guest::tests::{test}");
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let child = child.args(["--exact", &name, "--nocapture"]).env(CHILD, "1").output().unwrap();
    println!("{}", String::from_utf8_lossy(&child.stderr));
    child.status
}

/// Sends this thread the signal, as the kernel would; what has raised it does not raise it again.
fn raise(code: i32, address: usize) {
    let mut info = [0_usize; 16];
    // `si_signo`, `si_errno`; `si_code` and padding; `si_addr` (include/uapi/asm-generic/siginfo.h).
    info[0] = libc::SIGBUS as usize;
    info[1] = code as usize;
    info[2] = address;
    // SAFETY: the kernel reads 128 bytes, which are there.
    let sent = unsafe {
        let (process, thread) = (libc::getpid(), libc::gettid());
        let call = libc::SYS_rt_tgsigqueueinfo;
        libc::syscall(call, process, thread, libc::SIGBUS, info.as_ptr())
    };
    assert_eq!(sent, 0);
}

fn lose_memory() {
    let (view, cut) = guest();
    ftruncate(&cut, 0).unwrap();
    assert!(view.read(0, &mut [0]).is_some() && view.memory().is_lost());
}

/// What is none of ours ends the process, as it did.
#[test]
fn other_memory_that_is_gone_is_still_a_fault() {
    use std::os::unix::process::ExitStatusExt;
    let status = alone("other_memory_that_is_gone_is_still_a_fault", || {
        lose_memory();
        let file = file(4 * KIB);
        let (read, shared) = (ProtFlags::READ, MapFlags::SHARED);
        // SAFETY: no mapping is replaced, and nobody borrows this one.
        let base = unsafe { mmap(std::ptr::null_mut(), 4096, read, shared, &file, 0) }.unwrap();
        ftruncate(&file, 0).unwrap();
        // SAFETY: this is the fault that is wanted.
        let byte = unsafe { base.cast::<u8>().read_volatile() };
        panic!("{byte}");
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status:?}");
}

/// The process would go on without a handler, and end with the next guest that loses its memory.
#[test]
fn a_fault_that_does_not_happen_again_ends_the_process_too() {
    use std::os::unix::process::ExitStatusExt;
    const BUS_ADRERR: i32 = 2;
    let status = alone("a_fault_that_does_not_happen_again_ends_the_process_too", || {
        lose_memory();
        raise(BUS_ADRERR, 0x1000);
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status:?}");
}

#[test]
fn broken_hardware_that_nobody_has_touched_leaves_the_handler_in_place() {
    const BUS_MCEERR_AO: i32 = 5;
    let status =
        alone("broken_hardware_that_nobody_has_touched_leaves_the_handler_in_place", || {
            lose_memory();
            raise(BUS_MCEERR_AO, 0x1000);
            let (view, _file) = guest();
            view.write(0, b"here").unwrap();
            let part = view.memory().user_range(0x7000_0000, 4).unwrap();
            raise(BUS_MCEERR_AO, part.as_ptr().addr());
            assert!(!part.is_lost() && part.to_vec() == b"here", "whose it is is not known");
            lose_memory();
        });
    assert!(status.success(), "{status:?}");
}

/// As many threads as there can be find it out at once, while others lose theirs and all of it is let go.
#[test]
fn many_threads_lose_the_same_memory() {
    let status = alone("many_threads_lose_the_same_memory", || {
        for round in 0..50 {
            let (view, cut) = guest();
            let start = std::sync::Barrier::new(5);
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let (view, start) = (view.clone(), &start);
                    scope.spawn(move || {
                        start.wait();
                        let page = (thread + round) % 4 * 4096;
                        (0..64).for_each(|_| view.write(page, b"x").unwrap());
                        lose_memory();
                    });
                }
                start.wait();
                ftruncate(&cut, 0).unwrap();
            });
        }
    });
    assert!(status.success(), "{status:?}");
}

/// What takes the place of a guest's memory is none of the process's data.
#[test]
fn a_limit_of_data_does_not_end_the_process() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let status = alone("a_limit_of_data_does_not_end_the_process", || {
        let file = file(16 << 30);
        let mut memory = GuestMemory::default();
        memory.add(spec(0, 16 << 30, 0), file.as_fd()).unwrap();
        let view = GuestView::new(Arc::new(memory));
        let limit = Some(1 << 30);
        setrlimit(Resource::Data, Rlimit { current: limit, maximum: limit }).unwrap();
        ftruncate(&file, 0).unwrap();
        view.read(0, &mut [0]).unwrap();
        assert!(view.memory().is_lost());
        crate::Mapping::new(64 << 20).expect("the process has room for its own data");
    });
    assert!(status.success(), "{status:?}");
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
