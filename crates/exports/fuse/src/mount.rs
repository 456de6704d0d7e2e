//! A file system of ours, from its mount to its end.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::Bdev;
use blockyard_sys::EventWatch;
use blockyard_sys::fuse::{self, Channel, MountOptions, Unmount};
use tokio::runtime::Handle;

use crate::ending::Ending;
use crate::error::{Error, ErrorKind};
use crate::follow::Follow;
use crate::handshake::handshake;
use crate::queue::{Session, Worker};
use crate::record::{self, Held, SUBTYPE};
use crate::tree::{Owner, Tree};

/// Requests that each queue may have with the disks, unless told otherwise. Each has memory for the longest of its own, which
/// costs nothing before it is used.
pub const DEFAULT_DEPTH: u16 = 64;
/// The most.
const MAX_DEPTH: u16 = 1024;
/// How long a server that stops waits for those who use files of a file system that is unmounted.
const USERS_PATIENCE: Duration = Duration::from_secs(5);
/// How long it waits for the disks then.
const DISKS_PATIENCE: Duration = Duration::from_secs(30);
/// What a file may be used for, by whom, unless told otherwise: by its owner.
const DEFAULT_MODE: u32 = 0o600;

/// Whether programs' reads and writes go through the kernel's page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// They go to the disk, with `O_DIRECT` or without: what others do to the disk is seen at once.
    #[default]
    Bypassed,
    /// What was read stays in the cache until the file is opened anew, whatever others do to the disk; writes go through
    /// it to the disk at once.
    Used,
}

/// How disks are shown.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where: a file for one disk, a directory for several.
    pub path: PathBuf,
    /// Whether the page cache is used.
    pub cache: Cache,
    /// Other users may open the files, as far as `mode` lets them.
    pub allow_other: bool,
    /// Permissions of a file; what writes is left out of those that cannot be written.
    pub mode: u32,
    /// Requests that each queue may have with the disks.
    pub depth: u16,
    /// The directory of the records of mounts, below the one of run-time files.
    pub records: PathBuf,
}

impl Config {
    /// Disks at `path`, on record in `records`, for their owner only.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, records: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            cache: Cache::default(),
            allow_other: false,
            mode: DEFAULT_MODE,
            depth: DEFAULT_DEPTH,
            records: records.into(),
        }
    }
}

/// What is shown.
pub enum Shown {
    /// One disk, as a file.
    File(Arc<Bdev>),
    /// Several, as files of a directory, by their names. [`Mount::add`] adds more.
    Directory(Vec<(String, Arc<Bdev>)>),
}

/// What there is to say of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Whether it is not any more, whoever has unmounted it.
    pub is_over: bool,
    /// Its files.
    pub files: Vec<ReportedFile>,
}

/// A disk, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportedFile {
    /// Where.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Whether it cannot be written.
    pub read_only: bool,
}

/// A mounted file system that is served. Dropping it unmounts it: who has its files open may still use them.
pub struct Mount {
    path: PathBuf,
    tree: Arc<Tree>,
    follow: Follow,
    ending: Ending,
    /// Until it is unmounted by us.
    record: Option<Held>,
}

impl Mount {
    /// Mounts a file system and serves it on `queue_threads`, each the runtime of a thread of its own, whose place in the
    /// list is the number that [`Bdev::submit`] is given for it. What a killed server of ours has left at that place is
    /// taken away before. Must not be called on one of them.
    ///
    /// The kernel writes back by this process what programs have left in its page cache. A process that waits for memory
    /// which only its own answer can free waits for itself: one that serves what is written by maps, or through the cache,
    /// wants `prctl(PR_SET_IO_FLUSHER, 1)` and `mlockall(MCL_CURRENT | MCL_FUTURE)` before it starts any thread, as its threads
    /// inherit the first (`CAP_SYS_RESOURCE`, and enough `RLIMIT_MEMLOCK`). This crate does neither: both are the process's.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where there is no FUSE, [`ErrorKind::NotFound`] and [`ErrorKind::Unsuitable`] if `path` is
    /// not what can be mounted on, and what else keeps it from being mounted. Nothing of it is left then.
    ///
    /// # Panics
    /// There are no queue threads.
    pub fn start(config: &Config, shown: Shown, queue_threads: &[Handle]) -> Result<Self, Error> {
        assert!(!queue_threads.is_empty(), "no thread to serve {} on", config.path.display());
        let owner = Owner {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            mode: config.mode & 0o777,
        };
        let (tree, is_directory) = match shown {
            Shown::File(bdev) => (Tree::single(bdev, owner), false),
            Shown::Directory(disks) => {
                let tree = Tree::directory(owner);
                disks.into_iter().try_for_each(|(name, bdev)| tree.add(&name, bdev).map(drop))?;
                (tree, true)
            }
        };
        clean_up(&config.records)?;
        let path = place(&config.path, is_directory)?;
        let mark = format!("{:016x}", RandomState::new().hash_one(std::process::id()));
        let record = record::begin(&config.records, &mark, &path)?;
        let options = MountOptions {
            source: &record::source(&mark),
            subtype: SUBTYPE,
            directory: is_directory,
            allow_other: config.allow_other,
            read_only: false,
        };
        let channel = match fuse::mount(&path, &options) {
            Ok(channel) => channel,
            Err(err) => {
                record.remove();
                return Err(cannot_mount(&path, err));
            }
        };
        match serve(config, tree, channel, queue_threads) {
            Ok((tree, follow, ending)) => {
                Ok(Self { path, tree, follow, ending, record: Some(record) })
            }
            Err(err) => {
                // Its device is closed: it is as one that a killed server left behind.
                match record.unmount(fuse::unmount_dead) {
                    Ok(_) => record.remove(),
                    Err(err) => {
                        tracing::warn!(path = %path.display(), %err, "cannot unmount; the mount is left behind");
                    }
                }
                Err(Error::io(format!("cannot serve {}", path.display()), err))
            }
        }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Shows another disk in the directory.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if there is one of that name, [`ErrorKind::Unsuitable`] for what cannot be a name.
    pub fn add(&self, name: &str, bdev: Arc<Bdev>) -> Result<(), Error> {
        let node = self.tree.add(name, bdev)?;
        self.follow.add(&node);
        Ok(())
    }

    /// Takes a disk out of the directory; says whether there was one. Who has it open gets errors from now on. Must not be
    /// called on a queue thread.
    pub fn remove(&self, name: &str) -> bool {
        let removed = self.tree.remove(name);
        if let Some(node) = &removed {
            self.follow.removed(node);
        }
        removed.is_some()
    }

    /// Whether it is not mounted any more, whoever has unmounted it, nobody uses it, and what was written is durable, as far
    /// as its disks can make it so.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.ending.is_over()
    }

    /// Waits until it is over.
    pub async fn over(&self) {
        self.ending.over().await;
    }

    /// What there is to say of it.
    #[must_use]
    pub fn report(&self) -> Report {
        let nodes = self.tree.nodes();
        let file = |node: &Arc<crate::tree::Node>| ReportedFile {
            path: if nodes.is_directory { self.path.join(&node.name) } else { self.path.clone() },
            size: node.bdev.size_bytes(),
            read_only: node.bdev.is_read_only(),
        };
        Report {
            path: self.path.clone(),
            is_over: self.is_over(),
            files: nodes.files.values().map(file).collect(),
        }
    }

    /// Unmounts it, if it still is, and waits until all that was asked has ended and is durable. Who has files of it open
    /// though it is unmounted, or in another mount namespace, has some seconds; then the kernel is told that nobody serves
    /// them. It can be tried again where it fails. Must not be called on a queue thread.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if somebody has a file of it open, or a disk has not ended what it was asked; what disks say to
    /// their flushes, each time that it is called.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.unmount(Unmount::IfUnused)?;
        if !self.ending.wait(USERS_PATIENCE) {
            self.tree.close();
            if !self.ending.wait(DISKS_PATIENCE) {
                let path = self.path.display();
                let what = format!("{path}: requests are still in flight; try again");
                return Err(Error::new(ErrorKind::Busy, what));
            }
        }
        self.ending.result()
    }

    /// Unmounts it, unless that was done before.
    fn unmount(&mut self, how: Unmount) -> Result<(), Error> {
        let Some(record) = &self.record else { return Ok(()) };
        let unmounted = record.unmount(|path| {
            if self.is_over() {
                return fuse::unmount_dead(path);
            }
            match fuse::unmount(path, how) {
                // Who has ended the session may have left the mount.
                Err(_) if self.is_over() => fuse::unmount_dead(path),
                Err(err) if err.kind() == io::ErrorKind::ResourceBusy => {
                    let path = path.display();
                    let what = format!("it is in use; close its files, or run: umount -l {path}");
                    Err(io::Error::new(err.kind(), what))
                }
                done => done,
            }
        });
        if let Err(err) = unmounted {
            let path = self.path.display();
            if err.kind() == io::ErrorKind::ResourceBusy {
                return Err(Error::new(ErrorKind::Busy, format!("{path}: {err}")));
            }
            return Err(Error::io(format!("{path} cannot be unmounted"), err));
        }
        if let Some(record) = self.record.take() {
            record.remove();
        }
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(err) = self.unmount(Unmount::Lazily) {
            tracing::warn!(path = %self.path.display(), %err, "cannot unmount; the mount is left behind");
        }
    }
}

/// Takes away what killed servers of ours have left.
fn clean_up(records: &Path) -> Result<(), Error> {
    for leftover in record::clean_up(records)? {
        let (path, pid) = (leftover.path.display(), leftover.pid);
        match leftover.left {
            record::Left::Stuck(why) => {
                tracing::warn!(%path, pid, why, "what a dead server has left cannot be unmounted");
            }
            _ => tracing::info!(%path, pid, "what a dead server has left is gone"),
        }
    }
    Ok(())
}

/// The absolute path of what is mounted on.
fn place(path: &Path, is_directory: bool) -> Result<PathBuf, Error> {
    /// `ENOTCONN`: there is a file system, and its server is dead.
    const DEAD: i32 = 107;
    let failed = |err: io::Error| {
        if err.raw_os_error() == Some(DEAD) {
            return record::not_ours(path);
        }
        let what = if is_directory { "mkdir" } else { "touch" };
        let shown = path.display();
        Error::io(format!("cannot mount on {shown}; if it is not there, run: {what} {shown}"), err)
    };
    let path = std::fs::canonicalize(path).map_err(failed)?;
    let found = std::fs::metadata(&path).map_err(failed)?;
    if found.is_dir() != is_directory || !(found.is_dir() || found.is_file()) {
        let what = if is_directory {
            format!("{} is not a directory", path.display())
        } else {
            format!("{} is not a regular file", path.display())
        };
        return Err(Error::new(ErrorKind::Unsuitable, what));
    }
    record::refuse_ours(&path)?;
    Ok(path)
}

fn cannot_mount(path: &Path, err: io::Error) -> Error {
    /// `ENODEV`: the kernel knows no such file system.
    const UNKNOWN: i32 = 19;
    let shown = path.display();
    match err.kind() {
        _ if err.raw_os_error() == Some(UNKNOWN) => {
            let what =
                format!("cannot mount on {shown}: the kernel has no FUSE; run: modprobe fuse");
            Error::new(ErrorKind::Unavailable, what).caused_by(err)
        }
        io::ErrorKind::NotFound => {
            let what = format!(
                "cannot mount on {shown}: /dev/fuse or fusermount3 is missing; run: modprobe fuse, or install fuse3"
            );
            Error::new(ErrorKind::Unavailable, what).caused_by(err)
        }
        io::ErrorKind::PermissionDenied => {
            let what = format!(
                "cannot mount on {shown}: use a file or directory of your own; for other users, set \
                 user_allow_other in /etc/fuse.conf"
            );
            Error::new(ErrorKind::NotPermitted, what).caused_by(err)
        }
        _ => Error::io(format!("cannot mount on {shown}"), err),
    }
}

/// A queue for another thread. For whom may not open the device, which fusermount3 has done for him, it is the same one.
fn another(channel: &Arc<Channel>) -> io::Result<Arc<Channel>> {
    match channel.another() {
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => Ok(Arc::clone(channel)),
        done => done.map(Arc::new),
    }
}

type Served = (Arc<Tree>, Follow, Ending);

/// Begins the session, and serves each of its queues on a thread.
fn serve(
    config: &Config,
    tree: Tree,
    channel: Channel,
    queue_threads: &[Handle],
) -> io::Result<Served> {
    let tree = Arc::new(tree);
    let depth = usize::from(config.depth.clamp(1, MAX_DEPTH));
    let protocol = handshake(&channel, depth * queue_threads.len())?;
    let session = Arc::new(Session { tree: Arc::clone(&tree), protocol, cache: config.cache });
    let channel = Arc::new(channel);
    let mut queues = Vec::with_capacity(queue_threads.len());
    for (cpu, runtime) in queue_threads.iter().enumerate() {
        let channel = if cpu == 0 { Arc::clone(&channel) } else { another(&channel)? };
        let event = EventWatch::new(Arc::clone(&channel), runtime)?;
        queues.push((Worker::new(Arc::clone(&session), channel, cpu, depth)?, event, runtime));
    }
    let follow = Follow::new(&channel, &tree, &queue_threads[0]);
    let spawn = |(worker, event, runtime): (Worker, _, &Handle)| runtime.spawn(worker.run(event));
    let workers = queues.into_iter().map(spawn).collect();
    let ending = Ending::new(workers, Arc::clone(&tree), &queue_threads[0]);
    Ok((tree, follow, ending))
}
