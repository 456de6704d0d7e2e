//! Several that have a store open: as processes do, each with files and locks of its own.

use crate::dir::DirStore;
use crate::store::{NOSNAP, ObjectName, Op, Request, SnapContext};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Set for a process that is to write until it is killed.
const VICTIM: &str = "BLOCKYARD_TEST_STORE_OF_VICTIM";

fn read(store: &DirStore, object: &str, snap: u64) -> Vec<u8> {
    let request = Request::Read { snap, ops: vec![Op::read(0, 0)] };
    let object: ObjectName = object.into();
    store.operate_blocking(&object, &request).unwrap().remove(0).into_data().to_vec()
}

fn write(store: &DirStore, object: &str, snaps: &[u64], byte: u8) {
    let context =
        SnapContext { seq: snaps.first().copied().unwrap_or_default(), snaps: snaps.to_vec() };
    let request = Request::Write { context, ops: vec![Op::write(0, vec![byte; 4096])] };
    store.operate_blocking(&object.into(), &request).unwrap();
}

#[test]
fn what_one_writes_another_reads_and_no_snapshot_changes() {
    let directory = tempfile::tempdir().unwrap();
    let first = DirStore::open(directory.path(), true).unwrap();
    let second = DirStore::open(directory.path(), false).unwrap();
    assert_ne!(first.store.caller(), second.store.caller());
    write(&first, "a", &[], 1);
    assert_eq!(read(&second, "a", NOSNAP), [1; 4096]);
    write(&second, "a", &[], 2);
    assert_eq!(read(&first, "a", NOSNAP), [2; 4096]);
    let snapshot = first.store.create_snapshot().unwrap();
    write(&first, "a", &[snapshot], 3);
    // The other one has had the old file open.
    write(&second, "a", &[snapshot], 4);
    assert_eq!(read(&first, "a", NOSNAP), [4; 4096]);
    assert_eq!(read(&second, "a", snapshot), [2; 4096]);
}

#[test]
fn writers_of_one_object_take_turns() {
    const WRITES: u64 = 25;
    let directory = tempfile::tempdir().unwrap();
    let stores: Vec<_> = (0..3).map(|_| DirStore::open(directory.path(), true).unwrap()).collect();
    std::thread::scope(|scope| {
        for (index, store) in stores.iter().enumerate() {
            scope.spawn(move || {
                for number in 0..WRITES {
                    let mut input = blockyard_rados::encoding::Writer::new();
                    input.string(&format!("n{index}x{number}"));
                    input.string(&format!("i{index}x{number}"));
                    let add = Op::exec("rbd", "dir_add_image", input.into_bytes());
                    store
                        .operate_blocking(&"rbd_directory".into(), &Request::write(vec![add]))
                        .unwrap();
                }
            });
        }
    });
    let mut input = blockyard_rados::encoding::Writer::new();
    input.string("");
    input.u64(1000);
    let list = Request::read(vec![Op::exec("rbd", "dir_list", input.into_bytes())]);
    let list = stores[0].operate_blocking(&"rbd_directory".into(), &list).unwrap().remove(0);
    assert_eq!(list.into_data()[0], 75);
}

/// Names of sockets can be taken by anybody: one that could be known before is not used.
#[test]
fn no_name_that_others_can_know_is_needed_to_watch() {
    use crate::store::ObjectStore;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    let stores = [0, 1].map(|_| DirStore::open(directory.path(), true).unwrap());
    let folder = std::fs::metadata(directory.path()).unwrap();
    let _taken: Vec<_> = (0..4)
        .map(|session| {
            let (dev, ino) = (folder.dev(), folder.ino());
            let name = format!("blockyard-object-store/{dev:x}:{ino:x}/{session:08x}");
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
            std::os::unix::net::UnixListener::bind_addr(&address).unwrap()
        })
        .collect();
    write(&stores[0], "a", &[], 1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let object: ObjectName = "a".into();
        let mut watches = Vec::new();
        for store in &stores {
            watches.push(store.watch(&object).await.unwrap());
        }
        let found = stores[0].watchers(&object).await.unwrap();
        assert_eq!(found.len(), watches.len());
    });
}

/// Runs as the process that is killed; does nothing in a usual run.
#[test]
fn victim() {
    let Ok(path) = std::env::var(VICTIM) else { return };
    let store = DirStore::open(path.as_ref(), true).unwrap();
    for number in 0_u64.. {
        write(&store, "a", &[], (number % 251) as u8);
        let snapshot = store.store.create_snapshot().unwrap();
        write(&store, "a", &[snapshot], (number % 251) as u8);
        store.store.remove_snapshot(snapshot).unwrap();
        println!("wrote {}", number % 251);
    }
}

/// A process that is killed, whatever happens.
struct Victim(Child);

impl Victim {
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.kill();
    }
}

fn start_victim(path: &std::path::Path) -> Victim {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        "--exact",
        "dir::tests::processes::victim",
        "--nocapture",
        "--test-threads",
        "1",
    ]);
    Victim(command.env(VICTIM, path).stdout(Stdio::piped()).spawn().unwrap())
}

#[test]
fn one_that_is_killed_leaves_what_was_answered_and_nobody_waits_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let beside = DirStore::open(directory.path(), true).unwrap();
    let mut victim = start_victim(directory.path());
    let mut lines = BufReader::new(victim.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    // The test's name may stand in front of the first.
    let told = |line: String| Some(line.rsplit_once("wrote ")?.1.parse::<u8>().unwrap());
    // The third, so that it is in the middle of its work.
    let third = lines.by_ref().filter_map(told).nth(2).unwrap();
    victim.kill();
    let last = lines.filter_map(told).last().unwrap_or(third);
    let after = DirStore::open(directory.path(), false).unwrap();
    let bytes = [&beside, &after].map(|store| read(store, "a", NOSNAP)[0]);
    assert!(bytes == [last; 2] || bytes == [last + 1; 2], "{bytes:?} after {last}");
    write(&beside, "a", &[], 9);
    write(&after, "a", &[], 9);
    let (files, used) = (after.store.files_on_disk().unwrap(), after.store.files_in_use().unwrap());
    assert_eq!(files, used);
}
