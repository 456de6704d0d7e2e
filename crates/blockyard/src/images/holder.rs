//! Which process of this machine has an image of a cluster as a disk, and as whom the cluster knows it: in the directory
//! `images` of the runtime directory, a file for each image, locked as long as the disk is open.
//!
//! A cluster takes a client for dead when it has not heard of it for 30 seconds. Whoever finds the file unlocked knows better:
//! the one who is written down in it has died, and his lock of the image can be taken at once.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blockyard_rados::encoding::{EntityAddr, EntityName, EntityType};
use blockyard_rbd::Error as RbdError;
use blockyard_rbd::live::Owner;
use blockyard_rbd::store::Caller;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde::{Deserialize, Serialize};

use super::open::{LOCK_LIMIT, in_use, me};
use crate::api::{make_runtime_dir, runtime_dir};
use crate::error::{Error, Result};

/// The folder of the runtime directory.
const FOLDER: &str = "images";
const VERSION: u32 = 1;
/// The largest file that is read.
const MAX_BYTES: u64 = 4096;
/// How long an image has time to be closed.
pub(crate) const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// One that could not be closed is closed again after this time.
const CLOSE_AGAIN: Duration = Duration::from_secs(1);
/// Also EBLOCKLISTED.
const ESHUTDOWN: i32 = 108;

/// What is in the file.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    /// The process, for people.
    process: String,
    /// The number of the client in the cluster.
    client: i64,
    /// Where it is, for people.
    address: String,
    /// What it calls the lock of the image.
    cookie: String,
}

/// An image that is this process' as long as this lives.
#[derive(Debug)]
pub(crate) struct Holder {
    file: Option<File>,
    path: PathBuf,
    /// The cluster may know this process as the owner.
    is_noted: AtomicBool,
}

/// An image, as files are called after it.
pub(crate) fn file_name(cluster: &str, pool: i64, namespace: &str, image: &str) -> String {
    let escaped = |text: &str| percent_encode(text.as_bytes(), NON_ALPHANUMERIC).to_string();
    format!("{}.{pool}.{}.{}", escaped(cluster), escaped(namespace), escaped(image))
}

impl Holder {
    /// Takes an image, which is called `what` in messages: and says who has had it, who is dead.
    ///
    /// # Errors
    /// Somebody of this machine has it; the file cannot be made.
    pub(crate) fn take(name: &str, what: &impl std::fmt::Display) -> Result<(Self, Option<Owner>)> {
        let directory = runtime_dir()?.join(FOLDER);
        Self::take_in(&directory, name, what)
    }

    fn take_in(
        directory: &Path,
        name: &str,
        what: &impl std::fmt::Display,
    ) -> Result<(Self, Option<Owner>)> {
        let path = directory.join(name);
        let failed = |err: std::io::Error| {
            Error::failed(format!("cannot lock {}", path.display())).caused_by(err)
        };
        make_runtime_dir(directory).map_err(failed)?;
        let begun = Instant::now();
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path).map_err(failed)?;
            match file.try_lock() {
                Ok(()) if is_at(&file, &path) => {
                    let dead = read(&file).map(|record| record.owner());
                    let is_noted = AtomicBool::new(false);
                    return Ok((Self { file: Some(file), path, is_noted }, dead));
                }
                // It was removed while it was opened.
                Ok(()) => {}
                Err(TryLockError::Error(err)) => return Err(failed(err)),
                Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_LIMIT => {
                    std::thread::sleep(LOCK_LIMIT / 20);
                }
                Err(TryLockError::WouldBlock) => {
                    let process = read(&file).map(|record| record.process).unwrap_or_default();
                    return Err(in_use(what, &process));
                }
            }
        }
    }

    /// Writes down as whom the cluster knows this process.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn note(&self, owner: &Owner) -> std::io::Result<()> {
        let record = Record {
            version: VERSION,
            process: me(),
            client: owner.client.client.number,
            address: owner.client.addr.to_string(),
            cookie: owner.cookie.clone(),
        };
        self.is_noted.store(true, Ordering::Release);
        let text = serde_json::to_vec(&record)?;
        let Some(mut file) = self.file.as_ref() else { return Ok(()) };
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(&text)
    }

    /// Closes an image whose lock could not be given back in time, again and again, until it is: then this process may have it
    /// anew. Whoever is kept out of the cluster meanwhile writes nothing any more, and may have it as somebody new.
    pub(crate) async fn close_later<F>(self: Arc<Self>, close: impl Fn() -> F)
    where
        F: Future<Output = Result<(), RbdError>>,
    {
        self.close_every(CLOSE_AGAIN, CLOSE_LIMIT, close).await;
    }

    async fn close_every<F>(&self, pause: Duration, limit: Duration, close: impl Fn() -> F)
    where
        F: Future<Output = Result<(), RbdError>>,
    {
        loop {
            tokio::time::sleep(pause).await;
            match tokio::time::timeout(limit, close()).await {
                Ok(Ok(())) => break,
                Ok(Err(error)) if is_kept_out(&error) => break,
                Ok(Err(_)) | Err(_) => {}
            }
        }
        tracing::info!(file = %self.path.display(), "lock of an image released late");
        self.forget();
    }

    /// The lock of the image was given back: nobody needs to know any more who had it.
    pub(crate) fn forget(&self) {
        // What stays says of somebody that he has had the image, whose lock is not there.
        let _stays = std::fs::remove_file(&self.path);
        self.is_noted.store(false, Ordering::Release);
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Its lock of the image may not be given back, and this process lives: nobody may take it for dead.
        if self.is_noted.load(Ordering::Acquire) {
            std::mem::forget(self.file.take());
        }
    }
}

impl Record {
    fn owner(self) -> Owner {
        let client = EntityName { kind: EntityType::CLIENT, number: self.client };
        // The cluster knows where he was.
        let client = Caller { client, addr: EntityAddr::default() };
        Owner { client, cookie: self.cookie }
    }
}

/// Whether the cluster keeps this client out.
pub(crate) fn is_kept_out(error: &RbdError) -> bool {
    error.errno().is_some_and(|errno| errno.raw_os_error() == ESHUTDOWN)
}

/// What is in the file, if it can be understood.
fn read(file: &File) -> Option<Record> {
    let mut file = file;
    let mut text = Vec::new();
    file.rewind().ok()?;
    file.take(MAX_BYTES).read_to_end(&mut text).ok()?;
    let record: Record = serde_json::from_slice(&text).ok()?;
    (record.version == VERSION).then_some(record)
}

/// Whether a file is still at its path.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(file), Ok(there)) => (file.dev(), file.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn owner(number: i64) -> Owner {
        let client = EntityName { kind: EntityType::CLIENT, number };
        let client = Caller { client, addr: EntityAddr::default() };
        Owner { client, cookie: "auto 1".into() }
    }

    #[test]
    fn the_next_one_learns_who_had_an_image_and_has_died() {
        let dir = tempfile::tempdir().unwrap();
        let take = || Holder::take_in(dir.path(), "a", &"a");
        let (holder, dead) = take().unwrap();
        assert_eq!(dead, None);
        holder.note(&owner(4711)).unwrap();
        let error = take().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        let process = format!("process {}", std::process::id());
        assert!(error.to_string().contains(&process), "{error}");
        // As when the process dies.
        holder.is_noted.store(false, Ordering::Release);
        drop(holder);
        let (holder, dead) = take().unwrap();
        assert_eq!(dead, Some(owner(4711)));
        holder.note(&owner(7)).unwrap();
        holder.forget();
        drop(holder);
        assert_eq!(take().unwrap().1, None);
    }

    #[test]
    fn who_has_not_given_an_image_back_is_not_taken_for_dead() {
        let dir = tempfile::tempdir().unwrap();
        let (holder, _) = Holder::take_in(dir.path(), "a", &"a").unwrap();
        holder.note(&owner(1)).unwrap();
        drop(holder);
        assert_eq!(Holder::take_in(dir.path(), "a", &"a").unwrap_err().kind(), ErrorKind::Busy);
        assert!(Holder::take_in(dir.path(), "b", &"b").is_ok());
    }

    #[tokio::test]
    async fn an_image_that_is_given_back_late_can_be_had_again() {
        use std::sync::atomic::AtomicUsize;
        let dir = tempfile::tempdir().unwrap();
        for last in [Ok(()), Err(ESHUTDOWN)] {
            let (holder, _) = Holder::take_in(dir.path(), "a", &"a").unwrap();
            holder.note(&owner(1)).unwrap();
            let tries = AtomicUsize::new(0);
            let close = || {
                let now = tries.fetch_add(1, Ordering::Relaxed);
                async move {
                    let failed =
                        |errno| Err(RbdError::from(rustix::io::Errno::from_raw_os_error(errno)));
                    match now {
                        0 => std::future::pending().await,
                        1 => failed(110),
                        _ => last.or_else(failed),
                    }
                }
            };
            let moment = Duration::from_millis(1);
            holder.close_every(moment, moment, close).await;
            drop(holder);
            assert_eq!(tries.into_inner(), 3);
            // Nobody has died.
            assert_eq!(Holder::take_in(dir.path(), "a", &"a").unwrap().1, None);
        }
    }

    #[test]
    fn what_cannot_be_understood_says_of_nobody_that_he_is_dead() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "{", r#"{"version":2,"process":"","client":1,"address":"","cookie":""}"#] {
            std::fs::write(dir.path().join("a"), text).unwrap();
            assert_eq!(Holder::take_in(dir.path(), "a", &"a").unwrap().1, None, "{text}");
        }
    }
}
