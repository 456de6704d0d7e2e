//! The kernel hears of new sizes, of disks that become read-only, and of those that are taken away.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};

use blockyard_blkmq::{Disk, DiskListener, Event};
use blockyard_fuse::wire::{InvalEntryFlags, NotifyInvalInode};
use blockyard_fuse::{Name, Notification, ROOT_ID};
use blockyard_sys::fuse::Channel;
use blockyard_sys::net::IoVecs;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::tree::{Node, Tree};

/// Told of what happens to a disk; the kernel is told from another thread, as that may wait.
struct Told(watch::Sender<()>);

impl DiskListener for Told {
    fn event(&self, _disk: &Disk, event: Event) {
        if matches!(event, Event::Resized { .. } | Event::ReadOnly(_) | Event::Partitions) {
            self.0.send_replace(());
        }
    }
}

/// What the kernel may have kept of a file.
type Known = HashMap<u64, (u64, bool)>;

/// As long as it lives, the files follow their disks.
pub(crate) struct Follow {
    /// That of a queue. A queue that has ended has closed it.
    channel: Weak<Channel>,
    listener: Arc<dyn DiskListener>,
    /// Which disks have the listener: each one once, however many files show it.
    heard: Mutex<Vec<Arc<Disk>>>,
    task: JoinHandle<()>,
}

impl Follow {
    pub(crate) fn new(channel: &Arc<Channel>, tree: &Arc<Tree>, runtime: &Handle) -> Self {
        let (tell, told) = watch::channel(());
        let follow = Self {
            channel: Arc::downgrade(channel),
            listener: Arc::new(Told(tell)),
            heard: Mutex::default(),
            task: runtime.spawn(tell_kernel(Arc::downgrade(channel), Arc::clone(tree), told)),
        };
        tree.nodes().files.values().for_each(|node| follow.add(node));
        follow
    }

    /// Follows a disk, too.
    pub(crate) fn add(&self, node: &Node) {
        let disk = node.bdev.disk();
        let mut heard = self.heard.lock();
        if !heard.iter().any(|known| Arc::ptr_eq(known, disk)) {
            disk.subscribe(&self.listener);
            heard.push(Arc::clone(disk));
        }
    }

    /// A disk was taken away: its name goes at once. May wait for the kernel.
    pub(crate) fn removed(&self, node: &Node) {
        self.heard.lock().retain(|disk| !Arc::ptr_eq(disk, node.bdev.disk()));
        if let Ok(name) = Name::new(node.name.as_bytes()) {
            let flags = InvalEntryFlags::empty();
            tell(&self.channel, &Notification::InvalEntry { parent: ROOT_ID, name, flags });
        }
        tell_changed(&self.channel, node.id);
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn tell_kernel(channel: Weak<Channel>, tree: Arc<Tree>, mut told: watch::Receiver<()>) {
    let mut known = Known::new();
    loop {
        let (channel, tree) = (Weak::clone(&channel), Arc::clone(&tree));
        let tell = move || {
            tell_changes(&channel, &tree, &mut known);
            known
        };
        match tokio::task::spawn_blocking(tell).await {
            Ok(now) => known = now,
            Err(_ended) => return,
        }
        if told.changed().await.is_err() {
            return;
        }
    }
}

/// Tells of each file that is another than it was.
fn tell_changes(channel: &Weak<Channel>, tree: &Tree, known: &mut Known) {
    let nodes = tree.nodes();
    known.retain(|id, _| nodes.files.contains_key(id));
    for node in nodes.files.values() {
        let now = (node.bdev.size_bytes(), node.bdev.is_read_only());
        if known.insert(node.id, now).is_some_and(|before| before != now) {
            tell_changed(channel, node.id);
        }
    }
}

/// What was kept of a file is not right any more: its attributes, and data in the page cache.
fn tell_changed(channel: &Weak<Channel>, ino: u64) {
    tell(channel, &Notification::InvalInode(NotifyInvalInode { ino, off: 0, len: 0 }));
}

fn tell(channel: &Weak<Channel>, notification: &Notification<'_>) {
    let Some(channel) = channel.upgrade() else { return };
    let mut bytes = Vec::new();
    notification.encode(&mut bytes);
    let mut vecs = IoVecs::new();
    let mut message = vecs.gather();
    message.push(&bytes);
    match channel.write(message) {
        // It has never heard of the file, or is not mounted any more.
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Err(err) => tracing::debug!(%err, "the kernel takes no notification"),
        Ok(()) => {}
    }
}
