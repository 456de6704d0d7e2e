//! The files of TLS are read again when they have changed: certificates are renewed every few weeks, and a server runs for
//! years. A client that comes after that is served by the new ones; connections that there are go on. What cannot be used, as
//! it is renewed in part, or gone, takes nothing's place.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blockyard_nbd::certificates::UsedFiles;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Engine, TlsIdentity};
use crate::error::Error;

/// How long a client waits for the files to be looked at. Then it is served by what they were.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

/// A setup, and the files that it was made from.
pub(super) struct Setup {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) used: UsedFiles,
}

/// What tells a file from what it was before: device, inode, size, and times of its content and of itself. `None`: it is not
/// there, or cannot be looked at.
type Stamp = Option<[i128; 5]>;

pub(super) struct Renewal {
    identity: TlsIdentity,
    current: Mutex<Current>,
    /// The look under way. There is one at a time, as one at a file system that hangs costs a thread.
    looking: tokio::sync::Mutex<Option<oneshot::Receiver<()>>>,
    has_warned: AtomicBool,
}

struct Current {
    setup: Setup,
    stamps: Vec<Stamp>,
}

impl Renewal {
    pub(super) fn new(identity: TlsIdentity) -> Result<Arc<Self>, Error> {
        let stamps = stamps(&identity);
        let current = Mutex::new(Current { setup: identity.setup()?, stamps });
        let (looking, has_warned) = (tokio::sync::Mutex::default(), AtomicBool::new(false));
        Ok(Arc::new(Self { identity, current, looking, has_warned }))
    }

    pub(super) fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(&self.current.lock().setup.engine)
    }

    /// Reads the files again if they have changed. Who comes while that takes too long is not kept waiting.
    pub(super) async fn look(self: &Arc<Self>) {
        let look = async {
            let mut looking = self.looking.lock().await;
            if let Some(earlier) = &mut *looking {
                let _ = earlier.await;
            }
            *looking = None;
            if let Some(begun) = self.begin() {
                let _ = looking.insert(begun).await;
            }
            *looking = None;
        };
        let _ = tokio::time::timeout(LOOK_LIMIT, look).await;
    }

    /// Files may be slow, and the caller's thread has others' requests. This one is no task of the runtime, whose end would wait
    /// for it.
    fn begin(self: &Arc<Self>) -> Option<oneshot::Receiver<()>> {
        let (tell, told) = oneshot::channel();
        let this = Arc::clone(self);
        let looks = move || {
            this.renew();
            // Nobody may wait any more.
            let _ = tell.send(());
        };
        // Without a thread all stays as it was.
        std::thread::Builder::new().name("nbd-tls-files".into()).spawn(looks).ok().map(|_| told)
    }

    fn renew(&self) {
        // Before they are read: what changes in between is seen the next time.
        let stamps = stamps(&self.identity);
        if self.current.lock().stamps == stamps {
            self.has_warned.store(false, Ordering::Relaxed);
            return;
        }
        let renewed = self.identity.setup().and_then(|setup| {
            let before = self.current.lock().setup.used.clone();
            setup.used.may_follow(&before, Path::exists)?;
            Ok(setup)
        });
        match renewed {
            Ok(setup) => {
                *self.current.lock() = Current { setup, stamps };
                self.has_warned.store(false, Ordering::Relaxed);
                tracing::info!("TLS files reloaded; new connections use them");
            }
            Err(err) if !self.has_warned.swap(true, Ordering::Relaxed) => {
                tracing::warn!(
                    error = err.chain(),
                    "changed TLS files cannot be used; using the previous ones"
                );
            }
            Err(_) => {}
        }
    }
}

fn stamps(identity: &TlsIdentity) -> Vec<Stamp> {
    identity.paths().iter().map(stamp).collect()
}

fn stamp(path: &PathBuf) -> Stamp {
    let it = fs::metadata(path).ok()?;
    let time = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    Some([
        it.dev().into(),
        it.ino().into(),
        it.size().into(),
        time(it.mtime(), it.mtime_nsec()),
        time(it.ctime(), it.ctime_nsec()),
    ])
}
