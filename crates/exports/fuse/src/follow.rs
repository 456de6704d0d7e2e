//! The kernel hears of new sizes, of disks that become read-only, and of those that are taken away.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use blockyard_blkmq::{Changed, Changes};
use blockyard_fuse::wire::{InvalEntryFlags, NotifyInvalInode};
use blockyard_fuse::{Name, Notification, ROOT_ID};
use blockyard_sys::fuse::Channel;
use blockyard_sys::net::IoVecs;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::outstanding::Outstanding;
use crate::tree::{Node, Tree};

/// How often a file is looked at of which not all is answered that is waited for.
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
        let (channel, outstanding) = (Weak::clone(&self.channel), Arc::clone(&node.outstanding));
        self.runtime.spawn(forget_data(channel, outstanding, node.id, Before::All));
    }
}

/// What of a file is to be answered before the kernel is told to forget data of it.
#[derive(Clone, Copy)]
enum Before {
    /// All: nothing more is asked of it.
    All,
    /// What has come until now: there may always be something.
    CameUntilNow,
}

/// Has the kernel forget data of a file. It waits for pages that are being read (`invalidate_inode_pages2_range`), where not even
/// a signal is heard: a disk that does not answer would keep whoever tells it, and this process from its end, which the
/// kernel waits for to give up those pages. So they are answered first.
async fn forget_data(
    channel: Weak<Channel>,
    outstanding: Arc<Outstanding>,
    ino: u64,
    before: Before,
) {
    let epoch = outstanding.next_epoch();
    let is_answered = || match before {
        Before::All => outstanding.is_idle(),
        Before::CameUntilNow => outstanding.is_answered(epoch),
    };
    // Without a queue there is nobody to be told, nor to answer.
    while channel.strong_count() > 0 && !is_answered() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    tell_elsewhere(channel, ino, 0).await;
}

/// From another thread: the kernel may wait for a file of which it gives up pages, whatever it is told of that, and a queue
/// that waited with it could not answer what those wait for.
async fn tell_elsewhere(channel: Weak<Channel>, ino: u64, off: i64) {
    // If that fails there is nothing more to do.
    let _ = tokio::task::spawn_blocking(move || tell_changed(&channel, ino, off)).await;
}

/// Tells of a file whenever it is another than it was, as long as there is the file.
async fn tell_kernel(channel: Weak<Channel>, node: Weak<Node>, mut changes: Changes) {
    // What has happened since the file was made is told first.
    let mut changed = Changed::empty();
    // Data are to be forgotten, and have begun to be: what has come before one change is answered before the next is seen to.
    let (mut to_forget, mut forgetting) = (false, None);
    loop {
        let Some(now) = node.upgrade() else { return };
        let (ino, outstanding) = (now.id, Arc::clone(&now.outstanding));
        let has_changed = now.has_changed() || changed.contains(Changed::MEDIUM);
        drop(now);
        if has_changed {
            tell_elsewhere(Weak::clone(&channel), ino, ATTRIBUTES).await;
            to_forget = true;
        }
        if to_forget && forgetting.is_none() {
            let channel = Weak::clone(&channel);
            let forget = forget_data(channel, outstanding, ino, Before::CameUntilNow);
            (to_forget, forgetting) = (false, Some(Box::pin(forget)));
        }
        changed = match &mut forgetting {
            None => changes.next().await,
            Some(under_way) => tokio::select! {
                () = under_way => {
                    forgetting = None;
                    Changed::empty()
                }
                changed = changes.next() => changed,
            },
        };
    }
}

/// Instead of an offset: of the file only its attributes are not right any more. No page is waited for then.
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

#[cfg(test)]
mod tests;
