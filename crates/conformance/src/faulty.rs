//! A file system of one file, by FUSE, whose server fails, holds back and records what a test says. The kernel's page
//! cache is above it: what is written reaches the server when it is synced, or when the kernel likes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, FileAttr, FileHandle, FileType, Filesystem,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyWrite, Request, Session, TimeOrNow, WriteFlags,
};

pub use fuser::Errno;

const FILE: INodeNo = INodeNo(2);
const NAME: &str = "disk";
/// Nobody but the kernel changes attributes, unless they are to be asked for each time.
const FOR_LONG: Duration = Duration::from_secs(3600);
/// Calls that may be held back at the same time.
const THREADS: u16 = 24;
/// No wait takes longer.
const LIMIT: Duration = Duration::from_secs(60);

/// What the kernel asks of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// Bytes, as many as the kernel reads ahead.
    Read,
    /// Bytes that the kernel has had in its cache.
    Write,
    /// fsync(2) or fdatasync(2).
    Sync,
    /// fallocate(2).
    Allocate,
    /// The size and the like.
    Attr,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    /// As they were when they were synced last.
    durable: Vec<u8>,
    seen: BTreeMap<Call, usize>,
    held: BTreeSet<Call>,
    /// Allocations to succeed, before those that fail.
    allocations: usize,
    /// Bytes that the next writes take, each less than it is given.
    short_writes: VecDeque<usize>,
    errors: BTreeMap<Call, VecDeque<Errno>>,
}

#[derive(Default)]
struct Server {
    state: Mutex<State>,
    changed: Condvar,
    /// How long the kernel may keep attributes.
    attributes_for: Duration,
}

impl Server {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A call is counted, waits while its kind is held, and fails if it is to.
    fn arrive(&self, call: Call) -> Result<MutexGuard<'_, State>, Errno> {
        let mut state = self.lock();
        *state.seen.entry(call).or_default() += 1;
        self.changed.notify_all();
        state = self.changed.wait_while(state, |state| state.held.contains(&call)).unwrap();
        match state.errors.get_mut(&call).and_then(VecDeque::pop_front) {
            Some(errno) => Err(errno),
            None => Ok(state),
        }
    }

    fn attr(&self, ino: INodeNo) -> FileAttr {
        let size = self.lock().bytes.len() as u64;
        let is_file = ino == FILE;
        let time = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino,
            size: if is_file { size } else { 0 },
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// The file system: it is in no folder, and goes with this.
pub struct Faulty {
    server: Arc<Server>,
    /// Its root, without which it is gone.
    root: std::fs::File,
    _session: BackgroundSession,
}

impl Faulty {
    /// One with a file of `size` bytes, all zeroes.
    pub fn new(size: usize) -> Self {
        Self::with(size, FOR_LONG)
    }

    /// The same, whose attributes the kernel asks for each time that somebody wants them, as those of a file on the network.
    pub fn on_the_network(size: usize) -> Self {
        Self::with(size, Duration::ZERO)
    }

    fn with(size: usize, attributes_for: Duration) -> Self {
        let server = Arc::new(Server { attributes_for, ..Server::default() });
        server.lock().bytes = vec![0; size];
        server.lock().durable = vec![0; size];
        let mut config = Config::default();
        config.n_threads = Some(THREADS.into());
        let folder = tempfile::tempdir().unwrap();
        let made = Session::new(Kernel(Arc::clone(&server)), folder.path(), &config).unwrap();
        let session = made.spawn().unwrap();
        let root = std::fs::File::open(folder.path());
        let unmounted = Command::new("umount").arg("-l").arg(folder.path()).status().unwrap();
        assert!(unmounted.success());
        Self { server, root: root.unwrap(), _session: session }
    }

    /// Its file, for this process.
    pub fn file(&self) -> PathBuf {
        let root = format!("/proc/{}/fd/{}", std::process::id(), self.root.as_raw_fd());
        PathBuf::from(root).join(NAME)
    }

    /// The next `count` calls of that kind fail.
    pub fn fail(&self, call: Call, errno: Errno, count: usize) {
        self.server.lock().errors.entry(call).or_default().extend(vec![errno; count]);
    }

    /// No more calls of that kind fail.
    pub fn succeed(&self, call: Call) {
        self.server.lock().errors.remove(&call);
    }

    /// The next `count` allocations succeed, and change nothing.
    pub fn accept_allocations(&self, count: usize) {
        self.server.lock().allocations = count;
    }

    /// The next write takes so many bytes, and no more. It is not counted, and does not wait.
    pub fn cut_write(&self, bytes: usize) {
        self.server.lock().short_writes.push_back(bytes);
    }

    /// Calls of that kind wait until the guard is dropped.
    #[must_use]
    pub fn hold(&self, call: Call) -> Held<'_> {
        self.server.lock().held.insert(call);
        Held(&self.server, call)
    }

    /// Waits until so many calls of that kind have come, since the beginning.
    pub fn wait_for(&self, call: Call, count: usize) {
        let few = |state: &mut State| state.seen.get(&call).is_none_or(|&seen| seen < count);
        let waited = self.server.changed.wait_timeout_while(self.server.lock(), LIMIT, few);
        assert!(!waited.unwrap().1.timed_out(), "{call:?} did not come {count} times");
    }

    /// How many calls of that kind have come.
    pub fn seen(&self, call: Call) -> usize {
        self.server.lock().seen.get(&call).copied().unwrap_or(0)
    }

    /// What a power cut now would leave.
    pub fn durable(&self) -> Vec<u8> {
        self.server.lock().durable.clone()
    }
}

/// Calls that wait. It comes after the disk in a test, so that a failure lets them go before the disk waits for them.
pub struct Held<'a>(&'a Server, Call);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.lock().held.remove(&self.1);
        self.0.changed.notify_all();
    }
}

/// The kernel's end of it.
struct Kernel(Arc<Server>);

fn range(state: &State, offset: u64, len: usize) -> std::ops::Range<usize> {
    let start = usize::try_from(offset).unwrap().min(state.bytes.len());
    start..(start + len).min(state.bytes.len())
}

impl Filesystem for Kernel {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        config.add_capabilities(InitFlags::FUSE_WRITEBACK_CACHE).unwrap();
        config.set_max_background(THREADS).unwrap();
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == NAME {
            reply.entry(&self.0.attributes_for, &self.0.attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.arrive(Call::Attr).map(drop) {
            Ok(()) => reply.attr(&self.0.attributes_for, &self.0.attr(ino)),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let Some(size) = size {
            self.0.lock().bytes.resize(usize::try_from(size).unwrap(), 0);
        }
        reply.attr(&self.0.attributes_for, &self.0.attr(ino));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.arrive(Call::Read) {
            Ok(state) => reply.data(&state.bytes[range(&state, offset, size as usize)]),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.0.lock();
        if let Some(taken) = state.short_writes.pop_front() {
            let range = range(&state, offset, taken);
            state.bytes[range].copy_from_slice(&data[..taken]);
            return reply.written(u32::try_from(taken).unwrap());
        }
        drop(state);
        match self.0.arrive(Call::Write) {
            Ok(mut state) => {
                let range = range(&state, offset, data.len());
                let written = range.len();
                state.bytes[range].copy_from_slice(&data[..written]);
                reply.written(u32::try_from(data.len()).unwrap());
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.0.arrive(Call::Sync) {
            Ok(mut state) => {
                state.durable = state.bytes.clone();
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        // What it makes of the range does not matter to whoever asks past the end.
        let left = self.0.lock().allocations;
        if left > 0 {
            self.0.lock().allocations = left - 1;
            return reply.ok();
        }
        reply.error(self.0.arrive(Call::Allocate).err().unwrap_or(Errno::ENOSYS));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}
