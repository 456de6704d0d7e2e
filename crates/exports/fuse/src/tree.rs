//! What there is to see: one disk as the root, or a directory of disks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use blockyard_blkmq::{Bdev, Features};
use blockyard_fuse::wire::Attr;
use blockyard_fuse::{Name, ROOT_ID};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::bios::can_flush;
use crate::error::{Error, ErrorKind};
use crate::outstanding::Outstanding;

/// The longest name of a file, as of most file systems.
pub(crate) const NAME_MAX: usize = 255;
/// The first node that is not the root. Those below it are cookies of `.` and `..`.
const FIRST_ID: u64 = 3;
/// The kind of file in a mode.
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
/// Bytes of a block in what stat(2) shows.
const STAT_BLOCK: u64 = 512;
/// The preferred size of I/O, at least.
const BLKSIZE: u32 = 4096;

/// A disk as a file.
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) bdev: Arc<Bdev>,
    /// It answers reads with memory of its own.
    pub(crate) supplies: bool,
    /// What the kernel waits for.
    pub(crate) outstanding: Arc<Outstanding>,
    /// The size, and whether it is read-only, as the kernel was told last, or has asked itself since the file was made.
    told: Mutex<(u64, bool)>,
}

impl Node {
    fn new(id: u64, name: String, bdev: Arc<Bdev>, queues: usize) -> Arc<Self> {
        if !can_flush(&bdev) {
            tracing::warn!(
                name,
                "disk does not support flush; synchronised data may be lost on power failure"
            );
        }
        let supplies = bdev.limits().features.contains(Features::OWN_MEMORY);
        let told = Mutex::new((bdev.size_bytes(), bdev.is_read_only()));
        let outstanding = Arc::new(Outstanding::new(queues));
        Arc::new(Self { id, name, bdev, supplies, outstanding, told })
    }

    /// Whether it is another file than it was at the last call.
    pub(crate) fn has_changed(&self) -> bool {
        let now = (self.bdev.size_bytes(), self.bdev.is_read_only());
        std::mem::replace(&mut *self.told.lock(), now) != now
    }
}

/// All files, by their node: a picture that does not change.
#[derive(Clone)]
pub(crate) struct Nodes {
    pub(crate) is_directory: bool,
    pub(crate) files: BTreeMap<u64, Arc<Node>>,
}

impl Nodes {
    pub(crate) fn named(&self, name: &[u8]) -> Option<&Arc<Node>> {
        self.files.values().find(|node| node.name.as_bytes() == name)
    }
}

/// Whose the files are, and what others may do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Permissions of a file that can be written.
    pub(crate) mode: u32,
}

/// The files as they are now. Whoever serves them keeps the latest picture, and looks whether there is a newer one.
pub(crate) struct Tree {
    nodes: Mutex<Arc<Nodes>>,
    generation: AtomicU64,
    /// Told of each change, for those who sleep: an old picture keeps disks open that were taken away.
    changed: watch::Sender<()>,
    /// Nobody is to be served any more.
    closed: AtomicBool,
    next: AtomicU64,
    /// Of whoever serves them.
    queues: usize,
    owner: Owner,
    born: Duration,
}

impl Tree {
    /// One disk, which is the root, served by so many queues.
    pub(crate) fn single(bdev: Arc<Bdev>, owner: Owner, queues: usize) -> Self {
        let node = Node::new(ROOT_ID, bdev.name(), bdev, queues);
        Self::new(Nodes { is_directory: false, files: [(ROOT_ID, node)].into() }, owner, queues)
    }

    /// A directory, empty at first, served by so many queues.
    pub(crate) fn directory(owner: Owner, queues: usize) -> Self {
        Self::new(Nodes { is_directory: true, files: BTreeMap::new() }, owner, queues)
    }

    fn new(nodes: Nodes, owner: Owner, queues: usize) -> Self {
        Self {
            queues,
            nodes: Mutex::new(Arc::new(nodes)),
            generation: AtomicU64::new(1),
            changed: watch::channel(()).0,
            closed: AtomicBool::new(false),
            next: AtomicU64::new(FIRST_ID),
            owner,
            // Before 1970 is when it was.
            born: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        }
    }

    pub(crate) fn nodes(&self) -> Arc<Nodes> {
        Arc::clone(&self.nodes.lock())
    }

    /// Hears of changes from now on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// From now on, nobody is served: queues let go of the device, and end.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.changed.send_replace(());
    }

    /// Has all who sleep look whether they are to be served.
    pub(crate) fn wake(&self) {
        self.changed.send_replace(());
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Brings `nodes` up to date, which were as of `seen`; says whether they are others now.
    pub(crate) fn refresh(&self, nodes: &mut Arc<Nodes>, seen: &mut u64) -> bool {
        let generation = self.generation.load(Ordering::Acquire);
        if generation != *seen {
            *nodes = self.nodes();
            *seen = generation;
            return true;
        }
        false
    }

    /// Adds a disk to the directory.
    pub(crate) fn add(&self, name: &str, bdev: Arc<Bdev>) -> Result<Arc<Node>, Error> {
        let is_name = Name::new(name.as_bytes()).is_ok_and(|name| !name.is_dots());
        if !is_name || name.len() > NAME_MAX {
            let what =
                format!("invalid file name {name:?}; use 1 to {NAME_MAX} bytes without a slash");
            return Err(Error::new(ErrorKind::Unsuitable, what));
        }
        let mut current = self.nodes.lock();
        if !current.is_directory {
            let what = "one disk is shown, as a file; mount a directory for several";
            return Err(Error::new(ErrorKind::Unsuitable, what));
        }
        if current.named(name.as_bytes()).is_some() {
            let what =
                format!("a disk named {name:?} is already mounted here; choose another name");
            return Err(Error::new(ErrorKind::Busy, what));
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let node = Node::new(id, name.to_owned(), bdev, self.queues);
        let mut nodes = Nodes::clone(&current);
        nodes.files.insert(id, Arc::clone(&node));
        *current = Arc::new(nodes);
        self.generation.fetch_add(1, Ordering::Release);
        self.changed.send_replace(());
        Ok(node)
    }

    /// Takes a disk out of the directory.
    pub(crate) fn remove(&self, name: &str) -> Option<Arc<Node>> {
        let mut current = self.nodes.lock();
        let node = current.named(name.as_bytes()).filter(|_| current.is_directory).cloned()?;
        let mut nodes = Nodes::clone(&current);
        nodes.files.remove(&node.id);
        *current = Arc::new(nodes);
        self.generation.fetch_add(1, Ordering::Release);
        self.changed.send_replace(());
        Some(node)
    }

    fn attr(&self, ino: u64, mode: u32) -> Attr {
        let (seconds, nanoseconds) = (self.born.as_secs(), self.born.subsec_nanos());
        Attr {
            ino,
            atime: seconds,
            mtime: seconds,
            ctime: seconds,
            atimensec: nanoseconds,
            mtimensec: nanoseconds,
            ctimensec: nanoseconds,
            mode,
            nlink: 1,
            uid: self.owner.uid,
            gid: self.owner.gid,
            blksize: BLKSIZE,
            ..Attr::default()
        }
    }

    /// What stat(2) shows of a disk, as it is now.
    pub(crate) fn file_attr(&self, node: &Node) -> Attr {
        let size = node.bdev.size_bytes();
        let permissions =
            if node.bdev.is_read_only() { self.owner.mode & !0o222 } else { self.owner.mode };
        let blksize = node.bdev.limits().io_opt.max(BLKSIZE);
        let attr = self.attr(node.id, S_IFREG | permissions);
        Attr { size, blocks: size.div_ceil(STAT_BLOCK), blksize, ..attr }
    }

    /// What stat(2) shows of the directory: who may read files in it may list it.
    pub(crate) fn directory_attr(&self) -> Attr {
        let listable = (self.owner.mode & 0o444) >> 2;
        Attr { nlink: 2, ..self.attr(ROOT_ID, S_IFDIR | (self.owner.mode & 0o555) | listable) }
    }
}
