//! What disks and other processes do at a bad time.

use super::simulated::Simulated;
use crate::dir::DirStore;
use crate::error::Result;
use crate::store::{Mutation, NOSNAP, Op, Request, SnapContext};
use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rustix::io::Errno;

/// Cuts after which different parts of what is not synchronised are there.
const CUTS: u64 = 16;

type Store = DirStore<Simulated>;

fn write(store: &Store, snaps: &[u64], op: Op) -> Result<()> {
    let context =
        SnapContext { seq: snaps.first().copied().unwrap_or_default(), snaps: snaps.to_vec() };
    store.operate_blocking(&"a".into(), &Request::Write { context, ops: vec![op] }).map(|_| ())
}

fn read(store: &Store, snap: u64) -> Result<Bytes> {
    let request = Request::Read { snap, ops: vec![Op::read(0, 0)] };
    Ok(store.operate_blocking(&"a".into(), &request)?.remove(0).into_data())
}

fn after_a_cut(disk: &Simulated, seed: u64) -> Bytes {
    disk.cut_after(0);
    let disk = disk.power_on(&mut StdRng::seed_from_u64(seed));
    read(&DirStore::on(disk).unwrap(), NOSNAP).unwrap()
}

#[test]
fn a_flush_covers_a_write_that_an_earlier_flush_overtook() {
    for seed in 0..CUTS {
        let disk = Simulated::default();
        let store = DirStore::on(disk.clone()).unwrap();
        write(&store, &[], Op::write(0, "old")).unwrap();
        let parked = disk.park(b"new");
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| write(&store, &[], Op::write(0, "new")));
            parked.arrived();
            store.flush_blocking().unwrap();
            parked.release();
            writer.join().unwrap().unwrap();
        });
        store.flush_blocking().unwrap();
        assert_eq!(after_a_cut(&disk, seed), "new", "cut {seed}");
    }
}

#[test]
fn a_file_stays_as_long_as_a_clone_has_it() {
    let store = DirStore::on(Simulated::default()).unwrap();
    write(&store, &[], Op::write(0, "bytes")).unwrap();
    let key = || Mutation::OmapSet([("key".into(), "value".into())].into()).into();
    let first = store.store.create_snapshot().unwrap();
    write(&store, &[first], key()).unwrap();
    let second = store.store.create_snapshot().unwrap();
    write(&store, &[second, first], key()).unwrap();
    // Both clones have one file, which the head has no more.
    write(&store, &[second, first], Op::write_full("other")).unwrap();
    store.store.remove_snapshot(first).unwrap();
    assert_eq!(read(&store, second).unwrap(), "bytes");
    store.store.remove_snapshot(second).unwrap();
    assert_eq!(store.store.files_in_use().unwrap(), 1);
    assert_eq!(store.store.files_on_disk().unwrap(), 1);
}

#[test]
fn a_disk_without_space_fails_what_it_fails_and_nothing_after_that() {
    for changes in 0.. {
        let disk = Simulated::default();
        let store = DirStore::on(disk.clone()).unwrap();
        write(&store, &[], Op::write(0, "old")).unwrap();
        disk.fail_after(changes);
        let written = write(&store, &[], Op::write_full("new"));
        if !disk.has_failed() {
            written.unwrap();
            assert!(changes > 3, "a transaction changes more than that");
            return;
        }
        if let Err(error) = &written {
            assert_eq!(error.errno(), Some(Errno::NOSPC), "change {changes}: {error}");
        }
        let found =
            read(&store, NOSNAP).unwrap_or_else(|error| panic!("change {changes}: {error}"));
        assert!(
            found == "new" || found == "old" && written.is_err(),
            "change {changes}: {found:?}"
        );
        let again = write(&store, &[], Op::write_full("newer"));
        again.unwrap_or_else(|error| panic!("change {changes}: {error}"));
        assert_eq!(read(&store, NOSNAP).unwrap(), "newer");
        assert_eq!(after_a_cut(&disk, changes), "newer");
    }
}

#[test]
fn one_that_takes_over_makes_what_the_dead_one_wrote_durable() {
    for seed in 0..CUTS {
        let disk = Simulated::default();
        let store = DirStore::on(disk.clone()).unwrap();
        // On this disk nobody holds a lock, as if the other one were dead.
        let dead = DirStore::on(disk.clone()).unwrap();
        write(&dead, &[], Op::write(0, "old")).unwrap();
        write(&dead, &[], Op::write(0, "new")).unwrap();
        store.take_over_blocking().unwrap();
        assert_eq!(after_a_cut(&disk, seed), "new", "cut {seed}");
    }
}
