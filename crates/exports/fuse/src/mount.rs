//! A file system of ours, from its mount to its end.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockyard_blkmq::Bdev;
use blockyard_sys::EventWatch;
use blockyard_sys::fuse::{Channel, Unmount};
use tokio::runtime::Handle;

use crate::ending::Ending;
use crate::error::{Error, ErrorKind};
use crate::follow::Follow;
use crate::handshake::handshake;
use crate::outstanding::Outstanding;
use crate::point::{MountPoint, Place};
use crate::queue::{Requests, Session, Worker};
use crate::tree::{Owner, Tree};
use crate::watchers::Watchers;

/// Requests that each queue may have with a disk, unless told otherwise. Each has memory for the longest of its own, which
/// costs nothing before it is used.
pub const DEFAULT_DEPTH: u16 = 64;
/// The most.
const MAX_DEPTH: u16 = 1024;
/// How long a server that stops waits for those who use files of a file system that is unmounted.
const USERS_PATIENCE: Duration = Duration::from_secs(5);
/// How long it waits for the disks then.
const DISKS_PATIENCE: Duration = Duration::from_secs(30);
/// What the disks have for the last of it when others have used up the grace of an end.
const LEAST: Duration = Duration::from_secs(1);
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
    /// Requests that each queue may have with a disk. Others wait, and those of other disks pass them.
    pub depth: u16,
    /// The directory of the records of mounts, below the one of run-time files.
    pub records: PathBuf,
}

impl Config {
    /// Where, and how, it is mounted.
    #[must_use]
    pub fn place(&self, is_directory: bool) -> Place<'_> {
        Place {
            path: &self.path,
            records: &self.records,
            is_directory,
            allow_other: self.allow_other,
            read_only: false,
        }
    }

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
    /// Queues of the device that are served.
    pub queues: usize,
    /// Requests of the kernel until now, of whatever kind.
    pub requests: u64,
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

/// The requests of a mount that are not answered.
pub struct InFlight(Vec<Arc<Outstanding>>);

impl InFlight {
    /// How many there are now.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|of_file| of_file.count()).sum()
    }
}

/// A mounted file system that is served. Dropping it unmounts it: who has its files open may still use them.
pub struct Mount {
    point: MountPoint,
    tree: Arc<Tree>,
    follow: Follow,
    ending: Ending,
    /// Of each queue.
    requests: Vec<Arc<Requests>>,
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
            Shown::File(bdev) => (Tree::single(bdev, owner, queue_threads.len()), false),
            Shown::Directory(disks) => {
                let tree = Tree::directory(owner, queue_threads.len());
                disks.into_iter().try_for_each(|(name, bdev)| tree.add(&name, bdev).map(drop))?;
                (tree, true)
            }
        };
        let (point, channel) = MountPoint::mount(&config.place(is_directory))?;
        match serve(config, tree, channel, queue_threads) {
            Ok(Served { tree, follow, ending, requests }) => {
                Ok(Self { point, tree, follow, ending, requests })
            }
            Err(err) => {
                // Its device is closed: it is as one that a killed server left behind.
                point.unmount_dead();
                Err(Error::io(format!("cannot serve {}", point.path().display()), err))
            }
        }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.point.path()
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

    /// Whether it could not be unmounted, or nobody has tried.
    #[must_use]
    pub fn is_mounted(&self) -> bool {
        self.point.is_mounted()
    }

    /// The requests that its disks have not ended, as long as anybody wants to know. It keeps no disk open.
    #[must_use]
    pub fn in_flight(&self) -> InFlight {
        let nodes = self.tree.nodes();
        InFlight(nodes.files.values().map(|node| Arc::clone(&node.outstanding)).collect())
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
            path: if nodes.is_directory {
                self.path().join(&node.name)
            } else {
                self.path().to_owned()
            },
            size: node.bdev.size_bytes(),
            read_only: node.bdev.is_read_only(),
        };
        Report {
            path: self.path().to_owned(),
            is_over: self.is_over(),
            queues: self.requests.len(),
            requests: self.requests.iter().map(|requests| requests.until_now()).sum(),
            files: nodes.files.values().map(file).collect(),
        }
    }

    /// Unmounts it, if it still is, and waits until all that was asked has ended and is durable. Who has files of it open
    /// though it is unmounted, or in another mount namespace, has some seconds; then the kernel is told that nobody serves
    /// them. It can be tried again where it fails. Must not be called on a queue thread.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if somebody has a file of it open, [`ErrorKind::InFlight`] if a disk has not ended what it was asked;
    /// what disks say to their flushes, each time that it is called.
    pub fn stop(&self) -> Result<(), Error> {
        self.point.unmount(Unmount::IfUnused, || self.is_over())?;
        self.finish(USERS_PATIENCE, || DISKS_PATIENCE)
    }

    /// Ends it, whoever uses it, within `grace`: `users` of that is for those who use it, the rest for the disks, a second at
    /// least. Nobody finds it any more from the start, and nobody is served in the end, also where it cannot be unmounted. Must
    /// not be called on a queue thread.
    ///
    /// # Errors
    /// As those of [`Mount::stop`]. It is not mounted any more, though, unless the error says that.
    pub fn end(&self, users: Duration, grace: Duration) -> Result<(), Error> {
        let end = Instant::now() + grace;
        let unmounted = match self.point.unmount(Unmount::IfUnused, || self.is_over()) {
            Err(err) if err.kind() == ErrorKind::Busy => {
                tracing::warn!(path = %self.path().display(), "mount in use; unmounting it lazily");
                self.point.unmount(Unmount::Lazily, || self.is_over())
            }
            done => done,
        };
        let left = || end.saturating_duration_since(Instant::now());
        // Who can still open it is not waited for.
        let users = if unmounted.is_ok() { users.min(grace) } else { Duration::ZERO };
        let finished = self.finish(users, || left().max(LEAST));
        unmounted.and(finished)
    }

    /// Waits until it is over: for those who use it, and for the disks then.
    fn finish(&self, users: Duration, disks: impl FnOnce() -> Duration) -> Result<(), Error> {
        if !self.ending.wait(users) {
            self.tree.close();
            if !self.ending.wait(disks()) {
                let path = self.path().display();
                let what = format!("{path}: requests are still in flight; try again");
                return Err(Error::new(ErrorKind::InFlight, what));
            }
        }
        self.ending.result()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(err) = self.point.unmount(Unmount::Lazily, || self.is_over()) {
            tracing::warn!(path = %self.path().display(), error = %err, "cannot unmount; the mount is left behind");
        }
    }
}

/// A queue for another thread. For whom may not open the device, which fusermount3 has done for him, it is the same one.
fn another(channel: &Arc<Channel>) -> io::Result<Arc<Channel>> {
    match channel.another() {
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => Ok(Arc::clone(channel)),
        done => done.map(Arc::new),
    }
}

/// What is served.
struct Served {
    tree: Arc<Tree>,
    follow: Follow,
    ending: Ending,
    requests: Vec<Arc<Requests>>,
}

/// Begins the session, and serves each of its queues on a thread.
fn serve(
    config: &Config,
    tree: Tree,
    channel: Channel,
    queue_threads: &[Handle],
) -> io::Result<Served> {
    let tree = Arc::new(tree);
    let depth = usize::from(config.depth.clamp(1, MAX_DEPTH));
    let protocol = handshake(&channel)?;
    let watchers = Watchers::new(queue_threads.len());
    let session =
        Arc::new(Session { tree: Arc::clone(&tree), protocol, cache: config.cache, watchers });
    let channel = Arc::new(channel);
    let mut queues = Vec::with_capacity(queue_threads.len());
    for (cpu, runtime) in queue_threads.iter().enumerate() {
        let channel = if cpu == 0 { Arc::clone(&channel) } else { another(&channel)? };
        let event = EventWatch::new(Arc::clone(&channel), runtime)?;
        queues.push((Worker::new(Arc::clone(&session), channel, cpu, depth)?, event, runtime));
    }
    let follow = Follow::new(&channel, &tree, &queue_threads[0]);
    let spawn = |(worker, event, runtime): (Worker, _, &Handle)| runtime.spawn(worker.run(event));
    let requests = queues.iter().map(|(worker, ..)| worker.requests()).collect();
    let workers = queues.into_iter().map(spawn).collect();
    let ending = Ending::new(workers, Arc::clone(&tree), &queue_threads[0]);
    Ok(Served { tree, follow, ending, requests })
}
