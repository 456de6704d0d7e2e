//! Operations on real files, by either engine, and what is told of files.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use blockyard_buf::{FileRange, Segment, Segments};
use blockyard_sys::fallocate::Allocate;
use blockyard_sys::holes::{self, Run};
use blockyard_sys::lock::{Lock, LockError, LockKind};
use blockyard_sys::{
    Completion, Files, IoEngine, IoQueue, Operation, Pool, Writer, block_device, fallocate, uring,
};

const ENGINES: [IoEngine; 2] = [IoEngine::Uring, IoEngine::Threads];
const PAGE: u64 = 4096;
/// No wait takes longer.
const LIMIT: Duration = Duration::from_secs(60);

fn file(size: u64) -> Arc<OwnedFd> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    Arc::new(file.into())
}

fn queue(file: &Arc<OwnedFd>, engine: IoEngine, depth: u32) -> IoQueue<u32> {
    let mut queue = IoQueue::new(&Files::one(file), engine, &Pool::new(2), depth).unwrap();
    queue.submit_here();
    queue
}

fn bytes(byte: u8, len: usize) -> Segments {
    [Segment::from_vec(vec![byte; len])].into_iter().collect()
}

/// Waits for the event as a runtime does: after each edge, one turn.
fn wait(queue: &mut IoQueue<u32>, count: usize) -> Vec<Completion<u32>> {
    let mut done = Vec::new();
    queue.turn(&mut done).unwrap();
    let event = queue.event();
    while done.len() < count {
        let mut fds = [rustix::event::PollFd::new(&*event, rustix::event::PollFlags::IN)];
        let timeout = rustix::event::Timespec::try_from(LIMIT).unwrap();
        assert_eq!(rustix::event::poll(&mut fds, Some(&timeout)).unwrap(), 1, "no signal came");
        rustix::io::read(&*event, &mut [0; 8]).unwrap();
        queue.turn(&mut done).unwrap();
    }
    assert_eq!(queue.out(), 0);
    done
}

fn run(queue: &mut IoQueue<u32>, operation: Operation) -> Completion<u32> {
    queue.push(operation, 7).unwrap();
    let done = wait(queue, 1).pop().unwrap();
    assert_eq!(done.token, 7);
    done
}

#[test]
fn what_is_written_is_read_back_whatever_the_segments() {
    for engine in ENGINES {
        let file = file(4 * PAGE);
        let mut queue = queue(&file, engine, 4);
        for (durable, offset, parts) in
            [(false, 0, vec![100]), (true, 100, vec![1, 4000, 7]), (false, 5000, vec![512; 20])]
        {
            let memory: Segments =
                parts.iter().zip(1..).flat_map(|(&len, n)| bytes(n, len)).collect();
            let total: usize = parts.iter().sum();
            let wrote = run(&mut queue, Operation::Write { offset, memory, durable });
            assert_eq!(wrote.result.unwrap(), total);
            let into: Segments =
                [bytes(0, 50), bytes(0, total - 50)].into_iter().flatten().collect();
            let read = run(&mut queue, Operation::Read { offset, memory: into });
            assert_eq!(read.result.unwrap(), total);
            let got: Vec<u8> = read.operation.memory().iter().flat_map(Segment::to_vec).collect();
            let sent: Vec<u8> = wrote.operation.memory().iter().flat_map(Segment::to_vec).collect();
            assert_eq!(got, sent, "{engine:?}");
        }
        run(&mut queue, Operation::Sync).result.unwrap();
        let end = run(&mut queue, Operation::Read { offset: 4 * PAGE, memory: bytes(0, 9) });
        assert_eq!(end.result.unwrap(), 0, "{engine:?}: the end of the file is no error");
    }
}

#[test]
fn as_many_as_the_queue_holds_are_out_at_once_and_one_more_comes_back() {
    for engine in ENGINES {
        let file = file(PAGE);
        let mut queue = queue(&file, engine, 300);
        for token in 0..300 {
            let memory = bytes(1, 8);
            queue.push(Operation::Write { offset: 0, memory, durable: false }, token).unwrap();
        }
        let (_, token) = queue.push(Operation::Sync, 300).unwrap_err();
        assert_eq!(token, 300);
        let mut tokens: Vec<u32> = wait(&mut queue, 300).iter().map(|done| done.token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..300).collect::<Vec<_>>(), "{engine:?}");
    }
}

/// Whoever does it: the caller, a thread of the kernel, one of ours, or the one that writes for all queues.
#[test]
fn long_operations_that_come_together_are_all_done_whoever_shares_them() {
    const LEN: usize = 256 << 10;
    for engine in ENGINES {
        let file = file(8 * LEN as u64);
        let mut queues = [queue(&file, engine, 16), queue(&file, engine, 16)];
        if let Some(writer) = Writer::of(&Files::one(&file)) {
            queues.iter_mut().for_each(|queue| queue.write_by(writer.clone()));
        }
        let offset = |at: u32| u64::from(at) * LEN as u64;
        for (at, queue) in (0..8).zip([0, 1].into_iter().cycle()) {
            let memory = bytes(u8::try_from(at + 1).unwrap(), LEN);
            let write = Operation::Write { offset: offset(at), memory, durable: false };
            queues[queue].push(write, at).unwrap();
        }
        for queue in &mut queues {
            assert!(wait(queue, 4).iter().all(|done| done.result.as_ref().unwrap() == &LEN));
        }
        let [queue, _] = &mut queues;
        for at in 0..8 {
            let read = Operation::Read { offset: offset(at), memory: bytes(0, LEN) };
            queue.push(read, at).unwrap();
        }
        let mut done = wait(queue, 8);
        done.sort_unstable_by_key(|done| done.token);
        for (at, done) in (1..).zip(done) {
            assert_eq!(done.result.unwrap(), LEN);
            assert!(done.operation.memory()[0].to_vec() == [at; LEN]);
        }
        let (from, to) = (FileRange::new(&file, 0, 3 * LEN as u64), self::file(4 * LEN as u64));
        let mut target = self::queue(&to, engine, 16);
        let copy = Operation::CopyRange { offset: LEN as u64, from, may_share: true };
        assert_eq!(run(&mut target, copy).result.unwrap(), 3 * LEN);
        let read = Operation::Read { offset: LEN as u64, memory: bytes(0, LEN) };
        assert!(run(&mut target, read).operation.memory()[0].to_vec() == [1; LEN]);
    }
}

/// All threads that may wait do, as for storage that is slow.
#[test]
fn long_reads_of_cached_bytes_wait_for_no_thread_that_waits() {
    const LEN: usize = 256 << 10;
    let file = file(4 * LEN as u64);
    let kept = std::fs::File::from(file.try_clone().unwrap());
    kept.write_all_at(&[7; 4 * LEN], 0).unwrap();
    let pool = Pool::new(1);
    let (stand, stands) = std::sync::mpsc::channel::<()>();
    pool.execute(Box::new(move || _ = stands.recv()));
    let files = Files::one(&file);
    let mut queue = IoQueue::new(&files, IoEngine::Threads, &pool, 4).unwrap();
    for at in 0..4 {
        let offset = u64::from(at) * LEN as u64;
        queue.push(Operation::Read { offset, memory: bytes(0, LEN) }, at).unwrap();
    }
    for done in wait(&mut queue, 4) {
        assert_eq!(done.result.unwrap(), LEN);
        assert!(done.operation.memory()[0].to_vec() == [7; LEN]);
    }
    drop(stand);
}

#[test]
fn a_sync_waits_for_no_thread_that_waits() {
    let pool = Pool::new(1);
    let (stand, stands) = std::sync::mpsc::channel::<()>();
    pool.execute(Box::new(move || _ = stands.recv()));
    let files = Files::one(&file(PAGE));
    let mut queue = IoQueue::new(&files, IoEngine::Threads, &pool, 4).unwrap();
    run(&mut queue, Operation::Sync).result.unwrap();
    drop(stand);
}

#[test]
fn dropping_a_queue_with_operations_out_is_safe() {
    for engine in ENGINES {
        let file = file(64 * PAGE);
        for _ in 0..20 {
            let mut queue = queue(&file, engine, 64);
            for i in 0..64 {
                let memory = bytes(3, 4096);
                let offset = u64::from(i) * PAGE;
                queue.push(Operation::Write { offset, memory, durable: true }, i).unwrap();
            }
            let mut done = Vec::new();
            queue.turn(&mut done).unwrap();
        }
    }
}

#[test]
fn holes_are_punched_and_told_and_space_is_kept_on_demand() {
    for engine in ENGINES {
        let file = file(64 * PAGE);
        let mut queue = queue(&file, engine, 4);
        let memory = bytes(9, 16 * 4096);
        run(&mut queue, Operation::Write { offset: 8 * PAGE, memory, durable: false });
        let range = 10 * PAGE..12 * PAGE;
        let punched = run(&mut queue, Operation::Allocate { mode: Allocate::PunchHole, range });
        punched.result.unwrap();
        let map = Operation::Map { range: 0..64 * PAGE, most: 100, found: Vec::new() };
        let Operation::Map { found, .. } = run(&mut queue, map).operation else { panic!() };
        let run_of = |pages: u64, hole| Run { len: pages * PAGE, hole };
        assert_eq!(
            found,
            [
                run_of(8, true),
                run_of(2, false),
                run_of(2, true),
                run_of(12, false),
                run_of(40, true)
            ]
        );
        let first = holes::map(file.as_fd(), 9 * PAGE..64 * PAGE, 1).unwrap();
        assert_eq!(first, [run_of(1, false)]);
        let range = 0..64 * PAGE;
        run(&mut queue, Operation::WillNeed { range: range.clone() }).result.unwrap();
        let kept = run(&mut queue, Operation::Allocate { mode: Allocate::Reserve, range });
        kept.result.unwrap();
        let blocks = rustix::fs::fstat(&file).unwrap().st_blocks;
        assert!(blocks >= 64 * 8, "{engine:?}: {blocks} sectors are allocated");
    }
    let past = holes::map(file(4 * PAGE).as_fd(), 0..16 * PAGE, 9).unwrap();
    let run_of = |len, hole| Run { len, hole };
    assert_eq!(past, [run_of(4 * PAGE, true), run_of(12 * PAGE, false)], "reads fail past the end");
    let past = holes::map(file(100).as_fd(), PAGE..2 * PAGE, 9).unwrap();
    assert_eq!(past, [run_of(PAGE, false)]);
    let file = file(PAGE);
    assert!(fallocate::can_punch_holes(file.as_fd(), i64::MAX as u64).unwrap());
    assert!(fallocate::can_punch_holes(file.as_fd(), PAGE).unwrap());
    assert!(holes::is_known(file.as_fd()));
}

#[test]
fn errors_come_back_with_the_operation() {
    for engine in ENGINES {
        let read_only: Arc<OwnedFd> = Arc::new(File::open("/proc/self/exe").unwrap().into());
        let mut queue = queue(&read_only, engine, 4);
        let write = Operation::Write { offset: 0, memory: bytes(1, 5), durable: false };
        let failed = run(&mut queue, write);
        assert_eq!(failed.result.unwrap_err().raw_os_error(), Some(libc::EBADF), "{engine:?}");
        assert_eq!(failed.operation.memory()[0].len(), 5);
        let discard = run(&mut queue, Operation::Discard { range: 0..512 });
        let err = discard.result.unwrap_err();
        assert!(
            fallocate::is_not_supported(&err) || err.raw_os_error() == Some(libc::EBADF),
            "{err}"
        );
    }
    assert!(block_device::size(file(1).as_fd()).is_err());
}

#[test]
#[should_panic(expected = "read-only segment")]
fn reading_into_read_only_memory_is_a_bug() {
    let mut queue = queue(&file(PAGE), IoEngine::Uring, 1);
    let memory = [Segment::zero_run(8)].into_iter().collect();
    let _ = queue.push(Operation::Read { offset: 0, memory }, 0);
}

#[test]
fn writers_exclude_all_and_readers_only_writers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, b"x").unwrap();
    let open = || -> Arc<OwnedFd> {
        Arc::new(File::options().read(true).write(true).open(&path).unwrap().into())
    };
    let (one, two, three) = (open(), open(), open());
    let readers = [&one, &two].map(|file| Lock::take(file, LockKind::Shared).unwrap());
    let held = Lock::take(&three, LockKind::Exclusive).unwrap_err();
    assert!(
        matches!(held, LockError::Held { pid: None, kind: LockKind::Shared, qemu: false }),
        "{held}"
    );
    drop(readers);
    let _writer = Lock::take(&three, LockKind::Exclusive).unwrap();
    let held = Lock::take(&open(), LockKind::Shared).unwrap_err();
    assert!(
        matches!(held, LockError::Held { pid: None, kind: LockKind::Exclusive, qemu: false }),
        "{held}"
    );
}

#[test]
fn a_kernel_that_refuses_says_why() {
    uring::available().unwrap();
    std::thread::spawn(|| {
        forbid_io_uring();
        let why = uring::available().unwrap_err();
        assert!(matches!(why, uring::Unavailable::Policy), "{why}");
        let queue = IoQueue::<()>::new(&Files::one(&file(PAGE)), IoEngine::Uring, &Pool::new(1), 1);
        assert!(matches!(queue.err(), Some(uring::Unavailable::Policy)));
        let mut threads = queue_of_threads();
        run(&mut threads, Operation::Sync).result.unwrap();
    })
    .join()
    .unwrap();
    let missing = uring::Unavailable::from(io::Error::from_raw_os_error(libc::ENOSYS));
    assert!(matches!(missing, uring::Unavailable::Missing));
    let refused = uring::Unavailable::from(io::Error::from_raw_os_error(libc::EPERM));
    assert!(refused.to_string().contains("forbidden"), "{refused}");
    let failed = uring::Unavailable::from(io::Error::from_raw_os_error(libc::EMFILE));
    assert!(failed.to_string().contains("cannot be set up"), "{failed}");
}

fn queue_of_threads() -> IoQueue<u32> {
    queue(&file(PAGE), IoEngine::Threads, 1)
}

/// As the profile of a container runtime does it, for this thread only: seccomp(2).
fn forbid_io_uring() {
    let step = |code: u32, jf: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf,
        k,
    };
    let number = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let refuse = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).unwrap();
    let mut filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, number),
        step(libc::BPF_RET | libc::BPF_K, 0, refuse),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: the first takes numbers only; the second a program of four steps, valid for the call, which the
    // kernel copies.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}
