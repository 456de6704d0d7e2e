//! A guest's memory of any content: a ring of 8 descriptors at its start, and requests of virtiofs, which are answered.
#![no_main]

use std::os::fd::AsFd;
use std::sync::{Arc, LazyLock};

use blockyard_buf::{GuestMemory, GuestView, RegionSpec, SharedMapping};
use blockyard_export_virtiofs::{Connection, Exchange, Guest};
use blockyard_fs::{FileSystem, Outcome};
use blockyard_fuse::dirent::{Dirent, Entries};
use blockyard_fuse::wire::*;
use blockyard_fuse::{Errno, Name};
use blockyard_vhost_user::queue::{Chain, Ring, RingPlace};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

const LEN: usize = 8192;

/// Finds whatever it is asked for.
struct Anything;

impl FileSystem for Anything {
    fn lookup(&self, _parent: u64, name: Name<'_>) -> Outcome<EntryOut> {
        assert!(!name.is_dots() && !name.bytes().contains(&b'/'));
        Ok(EntryOut { nodeid: 2, ..EntryOut::default() })
    }

    fn forget(&self, _node: u64, _lookups: u64) {}

    fn getattr(&self, _node: u64, _fh: Option<u64>) -> Outcome<AttrOut> {
        Ok(AttrOut::default())
    }

    fn read(&self, _args: &ReadIn, into: &mut [u8]) -> Outcome<usize> {
        into.fill(7);
        Ok(into.len())
    }

    fn write(&self, args: &WriteIn, data: &[u8]) -> Outcome<u32> {
        assert_eq!(args.size as usize, data.len());
        Ok(args.size)
    }

    fn readdir(
        &self,
        _node: u64,
        _args: &ReadIn,
        plus: bool,
        entries: &mut Entries<'_>,
    ) -> Outcome {
        let name = Name::new(b"name").map_err(|_| Errno::EIO)?;
        let entry = Dirent { ino: 2, next: 1, kind: 8, name };
        let found = EntryOut { nodeid: 2, ..EntryOut::default() };
        while if plus { entries.add_plus(&found, &entry) } else { entries.add(&entry) } {}
        Ok(())
    }
}

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
    let connection = Connection::new(Arc::new(Anything));
    let (mut guest, mut exchange) = (Guest::default(), Exchange::default());
    while let Ok(Some(head)) = ring.pop() {
        if chain.read(&ring, &view, true, head).is_err() {
            return;
        }
        let room: usize = chain.writable.iter().map(|buffer| buffer.len as usize).sum();
        if exchange.read(&chain, &view).is_err() {
            return;
        }
        let written = guest.answer(&connection, &exchange);
        assert!(written <= room);
        ring.push(head, written as u32);
        ring.publish();
    }
});
