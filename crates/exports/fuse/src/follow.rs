//! The kernel hears of new sizes, of disks that become read-only, and of those that are taken away.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use blockyard_blkmq::{Changed, Changes, Disk};
use blockyard_fuse::wire::{InvalEntryFlags, NotifyInvalInode};
use blockyard_fuse::{Name, Notification, ROOT_ID};
use blockyard_sys::fuse::Channel;
use blockyard_sys::net::IoVecs;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::tree::{Node, Tree};

/// How often a disk is looked at that has not answered all that is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A file that follows its disk as long as this lives. What is waited for on its behalf, no other file waits for.
struct Following(JoinHandle<()>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// As long as it lives, the files follow their disks.
pub(crate) struct Follow {
    /// That of a queue. A queue that has ended has closed it.
    channel: Weak<Channel>,
    runtime: Handle,
    /// By their nodes.
    files: Mutex<HashMap<u64, Following>>,
}

impl Follow {
    pub(crate) fn new(channel: &Arc<Channel>, tree: &Arc<Tree>, runtime: &Handle) -> Self {
        let channel = Arc::downgrade(channel);
        let follow = Self { channel, runtime: runtime.clone(), files: Mutex::default() };
        tree.nodes().files.values().for_each(|node| follow.add(node));
        follow
    }

    /// Follows the disk of a file, too.
    pub(crate) fn add(&self, node: &Arc<Node>) {
        let changes = Changes::of(node.bdev.disk());
        let tell = tell_kernel(Weak::clone(&self.channel), Arc::downgrade(node), changes);
        self.files.lock().insert(node.id, Following(self.runtime.spawn(tell)));
    }

    /// A disk was taken away: its name goes at once, and what the kernel has kept of its data once nothing of it is read any
    /// more. May wait for the kernel, not for the disk.
    pub(crate) fn removed(&self, node: &Node) {
        drop(self.files.lock().remove(&node.id));
        if let Ok(name) = Name::new(node.name.as_bytes()) {
            let flags = InvalEntryFlags::empty();
            tell(&self.channel, &Notification::InvalEntry { parent: ROOT_ID, name, flags });
        }
        let disk = Arc::downgrade(node.bdev.disk());
        let channel = Weak::clone(&self.channel);
        self.runtime.spawn(forget_data(channel, disk, node.id, Before::All));
    }
}

/// What of a disk is to be answered before the kernel is told to forget data of it.
#[derive(Clone, Copy)]
enum Before {
    /// All: nothing more is asked of it.
    All,
    /// What was asked until now: there may always be something.
    AskedUntilNow,
}

/// Has the kernel forget data of a file. It waits for pages that are being read (`invalidate_inode_pages2_range`), where not even
/// a signal is heard: a disk that does not answer would keep whoever tells it, and this process from its end, which the
/// kernel waits for to give up those pages. So they are answered first.
async fn forget_data(channel: Weak<Channel>, disk: Weak<Disk>, ino: u64, before: Before) {
    let asked = Instant::now();
    let is_answered = |disk: &Disk| match before {
        Before::All => disk.stats().0.in_flight() == [0, 0] && disk.kept_for().is_none(),
        Before::AskedUntilNow => {
            let since = asked.elapsed();
            disk.oldest().is_none_or(|oldest| oldest < since)
        }
    };
    while disk.upgrade().is_some_and(|disk| !is_answered(&disk)) {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    // From another thread. If that fails there is nothing more to do.
    let _ = tokio::task::spawn_blocking(move || tell_changed(&channel, ino, 0)).await;
}

/// Tells of a file whenever it is another than it was, as long as there is the file.
async fn tell_kernel(channel: Weak<Channel>, node: Weak<Node>, mut changes: Changes) {
    // What has happened since the file was made is told first.
    let mut changed = Changed::empty();
    let mut forgetting = None;
    loop {
        let Some(now) = node.upgrade() else { return };
        if now.has_changed() || changed.contains(Changed::MEDIUM) {
            let (disk, ino) = (Arc::downgrade(now.bdev.disk()), now.id);
            tell_changed(&channel, ino, ATTRIBUTES);
            let channel = Weak::clone(&channel);
            forgetting = Some(Box::pin(forget_data(channel, disk, ino, Before::AskedUntilNow)));
        }
        drop(now);
        changed = loop {
            let Some(under_way) = &mut forgetting else { break changes.next().await };
            tokio::select! {
                () = under_way => forgetting = None,
                changed = changes.next() => break changed,
            }
        };
    }
}

/// Instead of an offset: of the file only its attributes are not right any more. That waits for nothing.
const ATTRIBUTES: i64 = -1;

/// What was kept of a file is not right any more: its attributes, and, from `off` on, data in the page cache.
fn tell_changed(channel: &Weak<Channel>, ino: u64, off: i64) {
    tell(channel, &Notification::InvalInode(NotifyInvalInode { ino, off, len: 0 }));
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
        Err(err) => tracing::debug!(error = %err, "kernel refused a notification"),
        Ok(()) => {}
    }
}
