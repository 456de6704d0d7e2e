//! Whatever is in a guest's memory, its chains are refused or bounded, and a region of what was in flight names chains of
//! the queue.
#![no_main]

use std::os::fd::AsFd;
use std::sync::{Arc, LazyLock};

use blockyard_buf::{GuestMemory, GuestView, RegionSpec, Segment};
use blockyard_vhost_user::queue::{Chain, InflightRegion, Ring, RingPlace, region_len};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

const SIZE: u16 = 16;
const LEN: usize = 4096;
const PLACE: RingPlace =
    RingPlace { descriptors: 0, available: 512, used: 1024, size: SIZE, event_idx: true };

static GUEST: LazyLock<Arc<GuestMemory>> = LazyLock::new(|| {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, LEN as u64).expect("room in memory");
    let mut memory = GuestMemory::default();
    let spec = RegionSpec { guest_addr: 0, user_addr: 0, size: LEN as u64, mmap_offset: 0 };
    memory.add(spec, file.as_fd()).expect("a mapping");
    Arc::new(memory)
});

fuzz_target!(|bytes: &[u8]| {
    let view = GuestView::new(Arc::clone(&GUEST));
    let mut memory = [0; LEN];
    let len = bytes.len().min(LEN);
    memory[..len].copy_from_slice(&bytes[..len]);
    view.write(0, &memory).expect("it is as large");
    let mut ring = Ring::new(&GUEST, &PLACE, 0).expect("it lies in the memory");
    let mut chain = Chain::default();
    for _ in 0..=SIZE {
        let Ok(Some(head)) = ring.pop() else { break };
        if chain.read(&ring, &view, true, head).is_ok() {
            let buffers = chain.readable.iter().chain(&chain.writable);
            let total: u64 = buffers.map(|buffer| u64::from(buffer.len)).sum();
            assert!(u32::try_from(total).is_ok());
        }
        if head < ring.size() {
            ring.push(head, 1);
        }
    }
    ring.publish();
    let _ = (ring.wants_signal(), ring.enable_notify());

    let mut region = vec![0; region_len(SIZE)];
    let len = bytes.len().min(region.len());
    region[..len].copy_from_slice(&bytes[..len]);
    if let Ok((mut region, resume)) = InflightRegion::attach(Segment::from_vec(region), SIZE, 3) {
        assert!(resume.chains.len() <= usize::from(SIZE));
        for head in resume.chains {
            assert!(head < SIZE);
            region.used(head);
        }
        region.published(4);
    }
});
