//! Watching objects.

use crate::error::{Error, Result};
use bytes::Bytes;
use std::future::Future;

/// A watch on an object. It ends when it is dropped.
pub trait StoreWatch: Send + 'static {
    /// The watch's number, which its client gave it and of which it has no two. Locks carry it as their cookie.
    fn cookie(&self) -> u64;

    /// What happened next; `None` when the watch is over.
    fn next(&mut self) -> impl Future<Output = Option<WatchEvent>> + Send;

    /// Answers a notification. Whoever does not answer keeps the notifier waiting until its time is up.
    ///
    /// # Errors
    /// The store cannot be reached.
    fn acknowledge(
        &mut self,
        notify_id: u64,
        payload: Bytes,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Ends it, and waits until it is gone.
    ///
    /// # Errors
    /// The store cannot be reached.
    fn close(self) -> impl Future<Output = Result<()>> + Send
    where
        Self: Sized,
    {
        drop(self);
        std::future::ready(Ok(()))
    }
}

/// What happened to a watched object.
#[derive(Debug)]
pub enum WatchEvent {
    /// Somebody tells something, and waits for an answer.
    Notified {
        /// The number to answer with.
        notify_id: u64,
        /// Who: the client's number.
        notifier: u64,
        /// What.
        payload: Bytes,
    },
    /// Notifications may have been missed: what they are about has to be read again.
    Missed,
    /// The watch is gone.
    Lost(Error),
}
