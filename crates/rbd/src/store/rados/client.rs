//! Clients of clusters, which all who use the same cluster as the same user share.

use crate::error::{Error, Result};
use blockyard_rados::net::{Cluster, Config};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::oneshot;

/// How long the thread of a client that is gone waits for OSDs to hear of the end of its watches.
const CLOSING: Duration = Duration::from_secs(10);

/// A client that is there, or is being made: whoever else wants it waits for that.
type Slot = Arc<tokio::sync::Mutex<Weak<Client>>>;

/// The clients of the process, by the arguments that say what they are.
static CLIENTS: Mutex<BTreeMap<Vec<String>, Slot>> = Mutex::new(BTreeMap::new());

/// A client of a cluster, with a thread of its own for sockets and time: whoever uses it may come and go. It ends when nobody
/// has it any more.
#[derive(Debug)]
pub struct Client {
    cluster: Cluster,
    /// The cluster has said that it keeps the client out.
    is_fenced: AtomicBool,
    /// Tells the thread, by being dropped, that nobody has the client any more.
    _in_use: oneshot::Sender<()>,
}

impl Client {
    /// The client of a cluster as a user, by arguments as Ceph's programs take them, such as `--conf` and `--id`. It is one
    /// for all who give the same arguments, until the cluster keeps it out: whoever comes after that is somebody new.
    ///
    /// # Errors
    /// The configuration or the keyring cannot be used; no monitor lets the client in, in time.
    pub async fn shared(arguments: &[String]) -> Result<Arc<Self>> {
        let slot = {
            let mut clients = CLIENTS.lock();
            // Those that are gone, and that nobody is about to make.
            clients.retain(|_, slot| {
                let lives = |client: &Weak<Self>| client.strong_count() > 0;
                Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|client| lives(&client))
            });
            Arc::clone(clients.entry(arguments.to_vec()).or_default())
        };
        let mut place = slot.lock().await;
        if let Some(client) = place.upgrade().filter(|client| !client.is_fenced()) {
            return Ok(client);
        }
        let client = Arc::new(Self::connect(Config::from_arguments(arguments)?).await?);
        *place = Arc::downgrade(&client);
        Ok(client)
    }

    /// A client that is nobody else's.
    ///
    /// # Errors
    /// As [`shared`](Self::shared).
    pub async fn connect(config: Config) -> Result<Self> {
        let (connected, is_connected) = oneshot::channel();
        let (in_use, is_gone) = oneshot::channel::<()>();
        let started = std::thread::Builder::new().name("rados".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(run(config, connected, is_gone)),
                Err(error) => {
                    let error = Error::io("starting the client of a cluster")(error);
                    let _nobody_waits = connected.send(Err(error));
                }
            }
        });
        started.map_err(Error::io("starting the client of a cluster"))?;
        let cluster = is_connected.await.map_err(|_| Error::damaged("the client has died"))??;
        Ok(Self { cluster, is_fenced: AtomicBool::new(false), _in_use: in_use })
    }

    /// Whether the cluster has said that it keeps the client out.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.is_fenced.load(Ordering::Acquire) || self.cluster.is_fenced()
    }

    /// The cluster has said so.
    pub(super) fn note_fenced(&self) {
        self.is_fenced.store(true, Ordering::Release);
    }

    /// The cluster.
    #[must_use]
    pub const fn cluster(&self) -> &Cluster {
        &self.cluster
    }
}

/// Runs a client until nobody has it any more.
async fn run(
    config: Config,
    connected: oneshot::Sender<Result<Cluster>>,
    is_gone: oneshot::Receiver<()>,
) {
    let cluster = match Cluster::connect(config).await {
        Ok(cluster) => cluster,
        Err(error) => {
            let _nobody_waits = connected.send(Err(error.into()));
            return;
        }
    };
    let closed = cluster.closed();
    if connected.send(Ok(cluster)).is_ok() {
        let _gone = is_gone.await;
    }
    let _in_time = tokio::time::timeout(CLOSING, closed).await;
}
