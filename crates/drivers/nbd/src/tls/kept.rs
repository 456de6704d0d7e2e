//! The files of TLS are read for each connection, as they are renewed while a disk is attached. What they were when that last
//! went well is kept: they may be on the very disk that waits for the connection, or gone, or half renewed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blockyard_nbd::uri::Uri;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::TlsSetup;
use crate::config::TlsFiles;
use crate::error::{Error, ErrorKind};

type Loaded = Result<TlsSetup, Error>;

/// The part of an attempt to connect that the files may take, where there is something to go on with.
const PART_OF_ATTEMPT: u32 = 4;

#[derive(Debug, Default)]
pub(crate) struct KeptSetup {
    last_good: Mutex<Option<TlsSetup>>,
    /// The load under way. There is one at a time, as one of a file system that hangs costs a thread.
    loading: tokio::sync::Mutex<Option<oneshot::Receiver<Loaded>>>,
    has_warned: AtomicBool,
}

impl KeptSetup {
    /// The setup of the files as they are now, or, if they cannot be read or that takes long, as they were. All of the attempt
    /// may take `limit`.
    pub(crate) async fn load(&self, uri: &Uri, files: &TlsFiles, limit: Duration) -> Loaded {
        let part = limit / PART_OF_ATTEMPT;
        // Without one, there is nothing better to do than to wait, and to say before the attempt is over what for.
        let limit = if self.last_good.lock().is_some() { part } else { limit.saturating_sub(part) };
        let error = match tokio::time::timeout(limit, self.load_now(uri, files)).await {
            Ok(Ok(setup)) => {
                self.keep(&setup);
                return Ok(setup);
            }
            Ok(Err(err)) => err,
            Err(_) => {
                let what = format!("the files of TLS for {uri} cannot be read within {limit:?}");
                Error::new(ErrorKind::Timeout, what)
            }
        };
        let Some(setup) = self.last_good.lock().clone() else { return Err(error) };
        if !self.has_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                server = %uri,
                error = error.chain(),
                "TLS files unreadable; using the previous ones"
            );
        }
        Ok(setup)
    }

    fn keep(&self, setup: &TlsSetup) {
        *self.last_good.lock() = Some(setup.clone());
        self.has_warned.store(false, Ordering::Relaxed);
    }

    async fn load_now(&self, uri: &Uri, files: &TlsFiles) -> Loaded {
        let mut loading = self.loading.lock().await;
        match loading.as_mut().map(oneshot::Receiver::try_recv) {
            None | Some(Err(TryRecvError::Empty)) => {}
            Some(ended) => {
                // One that nobody waited for tells what the files were then, which is better than what they were before.
                if let Ok(Ok(setup)) = ended {
                    self.keep(&setup);
                }
                *loading = None;
            }
        }
        let load = match &mut *loading {
            Some(load) => load,
            none => {
                let before = self.last_good.lock().clone();
                none.insert(begin(uri.clone(), files.clone(), before)?)
            }
        };
        let loaded = load.await;
        *loading = None;
        loaded.map_err(|err| cannot().caused_by(err))?
    }
}

/// Files may be slow, and the caller's thread has others' requests. This one is no task of the runtime, whose end would wait
/// for it.
fn begin(
    uri: Uri,
    files: TlsFiles,
    before: Option<TlsSetup>,
) -> Result<oneshot::Receiver<Loaded>, Error> {
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new()
        .name("nbd-tls-files".into())
        .spawn(move || {
            // Nobody waits any more if the disk was closed.
            let _ = tell.send(TlsSetup::load(&uri, &files, before.as_ref()));
        })
        .map_err(|err| cannot().caused_by(err))?;
    Ok(told)
}

fn cannot() -> Error {
    Error::new(ErrorKind::Tls, "the files of TLS cannot be read now")
}
