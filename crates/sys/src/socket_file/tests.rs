use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::{Barrier, mpsc};

use super::*;

const BACKLOG: i32 = 16;
const LIMIT: Duration = Duration::from_secs(60);

fn names(dir: &Path) -> Vec<OsString> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn a_socket_listens_when_it_appears_and_its_file_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let (socket, file) = SocketFile::bind(&path, Some(0o600), BACKLOG).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!((file.path(), names(dir.path())), (path.as_path(), vec!["s".into()]));
    connect_unix(&path, LIMIT).unwrap();
    let second = SocketFile::bind(&path, None, BACKLOG).unwrap_err();
    assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    SocketFile::remove_stale(&path).unwrap();
    connect_unix(&path, LIMIT).unwrap();
    drop((file, socket));
    assert!(names(dir.path()).is_empty());
}

/// Who is told of it by its file, as by a directory that is watched, is let in.
#[test]
fn a_socket_that_is_found_listens() {
    const ROUNDS: usize = 300;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let (look, looks) = mpsc::channel();
        let path = &path;
        scope.spawn(move || {
            for () in looks {
                let found = loop {
                    match connect_unix(path, LIMIT) {
                        Err(err) if err.kind() == io::ErrorKind::NotFound => {
                            std::hint::spin_loop();
                        }
                        found => break found.map(drop),
                    }
                };
                tell.send(found).unwrap();
            }
        });
        for _ in 0..ROUNDS {
            look.send(()).unwrap();
            let bound = SocketFile::bind(path, None, BACKLOG).unwrap();
            told.recv_timeout(LIMIT).unwrap().unwrap();
            drop(bound);
        }
    });
}

#[test]
fn only_the_socket_of_the_dead_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    let (socket, file) = SocketFile::bind(&path, None, BACKLOG).unwrap();
    connect_unix(&path, LIMIT).unwrap();
    // Another takes its place; its file is not ours to remove.
    drop(socket);
    let successor = SocketFile::bind(&path, None, BACKLOG).unwrap();
    drop(file);
    connect_unix(&path, LIMIT).unwrap();
    drop(successor);
    drop(UnixListener::bind(&path).unwrap());
    SocketFile::remove_stale(&path).unwrap();
    std::fs::write(&path, b"data").unwrap();
    SocketFile::remove_stale(&path).unwrap();
    let error = SocketFile::bind(&path, None, BACKLOG).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&path).unwrap(), b"data");
    assert_eq!(names(dir.path()), ["s"]);
    let error = SocketFile::bind(&dir.path().join("no/s"), None, BACKLOG).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn who_leaves_does_not_take_the_socket_of_who_comes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let (mut socket, mut file) = SocketFile::bind(&path, None, BACKLOG).unwrap();
    for round in 0..300 {
        let barrier = Barrier::new(2);
        let bound = std::thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                drop(socket);
                drop(file);
            });
            barrier.wait();
            loop {
                match SocketFile::bind(&path, None, BACKLOG) {
                    Err(err) if err.kind() == io::ErrorKind::AddrInUse => {}
                    bound => break bound.unwrap(),
                }
            }
        });
        connect_unix(&path, LIMIT).unwrap_or_else(|err| panic!("round {round}: {err}"));
        (socket, file) = bound;
    }
}

#[test]
fn of_many_that_start_at_once_on_a_stale_socket_one_listens() {
    const STARTERS: usize = 8;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    for round in 0..40 {
        if round % 2 == 0 {
            drop(UnixListener::bind(&path).unwrap());
        }
        let barrier = Barrier::new(STARTERS);
        let start = || {
            barrier.wait();
            SocketFile::bind(&path, None, BACKLOG)
        };
        let all: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..STARTERS).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let (bound, failed): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
        assert_eq!(bound.len(), 1, "round {round}");
        let in_use = |lost: &io::Result<_>| {
            lost.as_ref().is_err_and(|err| err.kind() == io::ErrorKind::AddrInUse)
        };
        assert!(failed.iter().all(in_use), "round {round}: {failed:?}");
        connect_unix(&path, LIMIT).unwrap();
        assert_eq!(names(dir.path()), ["s"], "round {round}");
        drop(bound);
        assert!(names(dir.path()).is_empty(), "round {round}");
    }
}

fn leave_a_stale_one(path: &Path) {
    let dead = UnixListener::bind(path).unwrap();
    drop(dead);
    assert!(path.exists());
}

/// Anybody who can read a directory can lock it.
#[test]
fn a_directory_that_others_have_locked_keeps_no_stale_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let held = std::fs::File::open(dir.path()).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    leave_a_stale_one(&path);
    let bound = SocketFile::bind(&path, None, BACKLOG).unwrap();
    connect_unix(&path, LIMIT).unwrap();
    drop(bound);
    assert!(names(dir.path()).is_empty());
}

#[test]
fn the_file_of_a_lock_is_its_owners() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::of(&dir.path().join("s")).unwrap();
    let lock = place.lock().unwrap();
    let file = dir.path().join(place.lock_name());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(place.lock().map(drop).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(lock);
    assert!(names(dir.path()).is_empty());
    let long = Place::of(&dir.path().join("n".repeat(255))).unwrap();
    drop(long.lock().unwrap());
}

/// As on NFS and 9P.
#[test]
fn where_a_rename_replaces_a_server_takes_no_place_either() {
    let refuse = |_: &Place, _: &OsStr, _: &OsStr| Err(Errno::INVAL);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let place = Place::of(&path).unwrap();
    let bind = || {
        let (socket, temporary) = Temporary::bind(&place).unwrap();
        listen(&socket, BACKLOG).unwrap();
        temporary.publish_by(refuse).map(|()| socket)
    };
    let first = bind().unwrap();
    connect_unix(&path, LIMIT).unwrap();
    assert_eq!(bind().unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert_eq!(names(dir.path()), ["s"]);
    drop(first);
    let _second = bind().unwrap();
    connect_unix(&path, LIMIT).unwrap();
    assert_eq!(names(dir.path()), ["s"]);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    assert_eq!(bind().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    // Nor where there are no links.
    std::fs::remove_file(&path).unwrap();
    let (_socket, mut temporary) = Temporary::bind(&place).unwrap();
    assert!(temporary.rename_if(Found::is_nothing).unwrap());
    let (_socket, mut temporary) = Temporary::bind(&place).unwrap();
    assert!(!temporary.rename_if(Found::is_nothing).unwrap());
    drop(temporary);
    assert_eq!(names(dir.path()), ["s"]);
}

#[test]
fn a_path_may_be_longer_than_an_address() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(200));
    std::fs::create_dir(&deep).unwrap();
    for name in ["s".to_owned(), "n".repeat(250)] {
        let path = deep.join(name);
        let bound = SocketFile::bind(&path, None, BACKLOG).unwrap();
        connect_unix(&path, LIMIT).unwrap();
        let second = SocketFile::bind(&path, None, BACKLOG).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        drop(bound);
        assert!(names(&deep).is_empty());
    }
}

#[test]
fn a_server_that_accepts_nobody_any_more_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let (_socket, _file) = SocketFile::bind(&path, None, 0).unwrap();
    let _first = connect_unix(&path, LIMIT).unwrap();
    let second = connect_unix(&path, Duration::from_millis(1)).unwrap_err();
    assert_eq!(second.kind(), io::ErrorKind::TimedOut);
}
