//! A guest's memory of any content: rings of 8 descriptors at its start, and what a device reads from them.
#![no_main]

use std::os::fd::AsFd;
use std::sync::{Arc, LazyLock};

use blockyard_buf::{GuestMemory, GuestView, RegionSpec, SharedMapping};
use blockyard_vhost_user::queue::{Chain, Ring, RingPlace};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

const LEN: usize = 4096;

/// Guest addresses are those of the file, so that small numbers hit.
static GUEST: LazyLock<(Arc<GuestMemory>, Arc<SharedMapping>)> = LazyLock::new(|| {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, LEN as u64).unwrap();
    let spec = RegionSpec { guest_addr: 0, size: LEN as u64, user_addr: 0, mmap_offset: 0 };
    let mut memory = GuestMemory::default();
    memory.add(spec, file.as_fd()).unwrap();
    (Arc::new(memory), SharedMapping::new(file.as_fd(), 0, LEN as u64).unwrap())
});

fuzz_target!(|data: &[u8]| {
    let (memory, mapping) = &*GUEST;
    let all = mapping.segment(0, LEN);
    all.fill_zero();
    all.copy_from(&data[..data.len().min(LEN)]);
    let place = RingPlace { descriptors: 0, available: 128, used: 160, size: 8, event_idx: true };
    let mut ring = Ring::new(memory, &place, 0).unwrap();
    let (view, mut chain) = (GuestView::new(Arc::clone(memory)), Chain::default());
    while let Ok(Some(head)) = ring.pop() {
        if chain.read(&ring, &view, true, head).is_err() {
            return;
        }
        let buffers = chain.readable.iter().chain(&chain.writable);
        let total: u64 = buffers.clone().map(|buffer| u64::from(buffer.len)).sum();
        assert!(total <= u64::from(u32::MAX) && buffers.count() <= 1024);
        ring.push(head, 0);
        ring.publish();
    }
});
