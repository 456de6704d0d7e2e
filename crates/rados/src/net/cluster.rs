//! The connection to a cluster.

use super::config::{CONNECT_TIMEOUT, Config};
use super::engine::Engine;
use super::pool::Pool;
use crate::auth::{MonitorAuth, Random};
use crate::cluster::Client;
use crate::encoding::{EntityAddr, EntityType, ObjectLocator, PgId};
use crate::error::{Error, ErrorKind, Result};
use crate::features;
use crate::maps::{OsdMap, Placed, Placer};
use crate::{cluster, mon, objecter};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// A cluster. Clones share its connections, which are closed when the last of them is gone.
#[derive(Clone)]
pub struct Cluster {
    pub(super) engine: Arc<Engine>,
    pub(super) op_timeout: Option<Duration>,
    pub(super) monitor_timeout: Option<Duration>,
    _tasks: Arc<Tasks>,
}

/// Ends what runs in the background.
struct Tasks {
    engine: Arc<Engine>,
    pump: AbortHandle,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        if !self.engine.part() {
            self.pump.abort();
            self.engine.shut_down();
        }
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The epoch of the map that says so.
    pub epoch: u32,
    /// The hash of its name.
    pub hash: u32,
    /// Its placement group.
    pub pg: PgId,
    /// The OSDs.
    pub placed: Placed,
}

/// Bytes from the kernel's source of chance.
fn fill_random(bytes: &mut [u8]) {
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            // Without chance there are no keys. Linux since 3.17 has the call, and 5.15 is needed anyway.
            Err(error) => {
                assert!(filled == bytes.len(), "no random bytes from the kernel: {error}");
            }
        }
    }
}

impl Cluster {
    /// Finds a monitor, and waits for the first map. What it needs runs as tasks of the calling task's runtime.
    ///
    /// # Errors
    /// No monitor answers in [`Config::connect_timeout`], the client may not in (the error says with which key), or the
    /// cluster speaks another language.
    pub async fn connect(config: Config) -> Result<Self> {
        let mut nonce = [0; 4];
        fill_random(&mut nonce);
        let nonce = u32::from_le_bytes(nonce).max(1);
        let supported = features::SUPPORTED;
        let mon = mon::Config { monitors: config.monitors, seed: nonce.into(), nonce, supported };
        let objecter = objecter::Config {
            max_ops: config.max_ops.max(1),
            max_bytes: config.max_bytes.max(1),
            location: config.location,
            seed: nonce.into(),
            ..objecter::Config::default()
        };
        let random = Random::new(fill_random);
        let services = vec![EntityType::OSD];
        let auth = MonitorAuth::new(config.credentials, config.monitor_modes, services, random);
        let machine =
            cluster::Config { mon, objecter, osd_modes: config.osd_modes, random: fill_random };
        let client = Client::new(machine, auth, Instant::now())?;
        let engine = Engine::new(client);
        let pump = tokio::spawn(Arc::clone(&engine).pump()).abort_handle();
        let tasks = Tasks { engine: Arc::clone(&engine), pump };
        let cluster = Self {
            engine,
            op_timeout: config.op_timeout,
            monitor_timeout: config.monitor_timeout,
            _tasks: Arc::new(tasks),
        };
        let limit = config.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
        match timeout(limit, cluster.engine.wait_for_map(1)).await {
            Ok(found) => found?,
            Err(_) => return Err(cluster.engine.unreachable()),
        }
        Ok(cluster)
    }

    /// A pool.
    ///
    /// # Errors
    /// There is none of that name, also not in the newest map; or no monitor answers in time.
    pub async fn pool(&self, name: &str) -> Result<Pool> {
        let find = || self.map(|map| map.pool_named(name));
        let mut found = find();
        if found.is_none() {
            self.newest_map().await?;
            found = find();
        }
        let Some(id) = found else {
            let problem = "no pool of this name";
            let kind = ErrorKind::BadParameter { problem, text: name.to_owned() };
            return Err(Error::new("opening a pool", kind));
        };
        Ok(Pool::new(self.clone(), id))
    }

    /// A pool by its number, whether it is there or not.
    #[must_use]
    pub fn pool_by_id(&self, id: i64) -> Pool {
        Pool::new(self.clone(), id)
    }

    /// Looks at the map in use.
    pub fn map<T>(&self, look: impl FnOnce(&OsdMap) -> T) -> T {
        look(self.engine.state.lock().client.objecter().map())
    }

    /// The epoch of the map in use.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.map(OsdMap::epoch)
    }

    /// Waits for a map that is at least this new, for [`Config::monitor_timeout`] at most.
    ///
    /// # Errors
    /// It does not come in time, or cannot be used; or the client may not in any more.
    pub async fn wait_for_map(&self, epoch: u32) -> Result<()> {
        self.in_time("waiting for a map", self.engine.wait_for_map(epoch)).await
    }

    /// Does something for which monitors and maps are needed, in the time that there is for that.
    pub(super) async fn in_time<T>(
        &self,
        doing: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match self.monitor_timeout {
            None => work.await,
            Some(limit) => match timeout(limit, work).await {
                Ok(done) => done,
                Err(_) => Err(self.engine.late(doing)),
            },
        }
    }

    /// From now on nothing is sent before the map has this epoch, such as that in which
    /// [`blocklist`](Self::blocklist) of another cluster's handle shut a client out.
    pub fn set_barrier(&self, epoch: u32) {
        let mut state = self.engine.state.lock();
        state.client.objecter_mut().set_barrier(epoch);
        state.wake_pump();
    }

    /// The client's number in the cluster.
    #[must_use]
    pub fn global_id(&self) -> u64 {
        self.engine.state.lock().client.session().map_or(0, |session| session.global_id)
    }

    /// The client's address, by which it is put on a blocklist.
    #[must_use]
    pub fn address(&self) -> Option<EntityAddr> {
        self.engine.state.lock().client.session().map(|session| session.own)
    }

    /// Whether the cluster keeps the client out, or has done so: no operation is done any more.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.engine.state.lock().client.objecter().is_fenced()
    }

    /// Waits until nobody has a part of the cluster any more, and OSDs have been told of the end of watches. This future is
    /// no part of it.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut engine = self.engine.subscribe();
        // Its sender is the machine's, and goes with it.
        async move { while engine.changed().await.is_ok() {} }
    }

    /// How many connections to OSDs there are.
    #[must_use]
    pub fn osd_connections(&self) -> usize {
        self.engine.state.lock().client.objecter().sessions()
    }

    /// Where an object is, by the map in use.
    ///
    /// # Errors
    /// There is no such pool, or its map cannot be used.
    pub fn locate(
        &self,
        locator: &ObjectLocator,
        object: &(impl AsRef<[u8]> + Sync + ?Sized),
    ) -> Result<Placement> {
        self.map(|map| {
            let (hash, pg) = map.object_group(locator, object)?;
            let placed = Placer::new(map)?.place(map, pg);
            Ok(Placement { epoch: map.epoch(), hash, pg, placed })
        })
    }
}
