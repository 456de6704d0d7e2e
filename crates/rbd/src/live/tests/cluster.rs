//! A cluster in memory: clients with watches, notifications that get lost, requests that take their time and are done also
//! after their client has died, and a list of those who are kept out. Its time is the runtime's, which is paused.

use crate::class::Caller;
use crate::dir::DirStore;
use crate::dir::tests::simulated::Simulated;
use crate::error::{Error, Result};
use crate::live::lock;
use crate::store::{
    Answer, ListPlace, NotifyAnswers, ObjectName, ObjectStore, Op, Query, Request, StoreWatch,
    WatchEvent, Watcher,
};
use blockyard_rados::encoding::{EntityAddr, EntityName, EntityType};
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

/// After this time without a sign of life a watch is gone.
const WATCH_TIMEOUT: Duration = Duration::from_secs(30);

/// The cluster.
pub(super) struct Cluster {
    /// The objects of each pool.
    pools: [DirStore<Simulated>; 2],
    rng: Mutex<StdRng>,
    world: Mutex<World>,
    held: watch::Sender<Option<Held>>,
    /// Of a hundred notifications so many get lost, and of a hundred requests so many cost a watch.
    pub(super) faults: u32,
}

#[derive(Default)]
struct World {
    next: u64,
    watches: BTreeMap<u64, Entry>,
    answers: HashMap<(u64, u64), oneshot::Sender<Bytes>>,
    dead: BTreeSet<i64>,
    fenced: BTreeSet<i64>,
    /// Who wrote data without having the lock.
    intruders: Vec<String>,
    applied: u64,
    /// How long requests for data take.
    slow: Duration,
    /// A client, and an object of which his next request fails.
    broken: Option<(i64, String)>,
    requests: u64,
}

/// What does not answer until it is let go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Writes to objects whose names end so.
    Writes(&'static str),
    /// A pool.
    Pool(i64),
    /// Whoever gives numbers to snapshots, and takes them back.
    Monitors,
}

/// The pool of images, and another one.
pub(super) const POOLS: [i64; 2] = [1, 2];

struct Entry {
    client: Caller,
    object: ObjectName,
    events: mpsc::UnboundedSender<WatchEvent>,
}

fn shutdown() -> Error {
    Error::answer(Errno::SHUTDOWN)
}

impl Cluster {
    pub(super) fn new(seed: u64, faults: u32) -> Arc<Self> {
        Arc::new(Self {
            pools: POOLS.map(|_| DirStore::on(Simulated::default()).unwrap()),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            world: Mutex::default(),
            held: watch::Sender::new(None),
            faults,
        })
    }

    pub(super) fn random(&self, range: std::ops::Range<u64>) -> u64 {
        self.rng.lock().random_range(range)
    }

    async fn delay(&self) {
        self.pause(20).await;
    }

    /// Lets a time pass, of so many milliseconds at most.
    pub(super) async fn pause(&self, most: u64) {
        let millis = self.random(0..most);
        sleep(Duration::from_millis(millis)).await;
    }

    /// Lets so many seconds pass.
    #[allow(clippy::unused_self, reason = "it is the cluster's time")]
    pub(super) async fn pass(&self, seconds: u64) {
        sleep(Duration::from_secs(seconds)).await;
    }

    fn strikes(&self) -> bool {
        self.random(0..100) < self.faults.into()
    }

    /// Requests for data take so many seconds from now on.
    pub(super) fn slow_down(&self, seconds: u64) {
        self.world.lock().slow = Duration::from_secs(seconds);
    }

    /// The next request of a client for an object fails.
    pub(super) fn fail_once(&self, client: i64, object: &ObjectName) {
        self.world.lock().broken = Some((client, object.to_string()));
    }

    /// Something does not answer from now on.
    pub(super) fn hold(&self, what: Held) {
        self.held.send_replace(Some(what));
    }

    /// All answers.
    pub(super) fn let_go(&self) {
        self.held.send_replace(None);
    }

    /// Waits until something answers.
    async fn answers(&self, is_held: impl Fn(&Held) -> bool) {
        let mut held = self.held.subscribe();
        held.wait_for(|held| !held.as_ref().is_some_and(&is_held)).await.unwrap();
    }

    /// How many requests there were.
    pub(super) fn requests(&self) -> u64 {
        self.world.lock().requests
    }

    fn objects(&self, pool: i64) -> &DirStore<Simulated> {
        let place = POOLS.iter().position(|known| *known == pool).unwrap();
        &self.pools[place]
    }

    /// How long a request takes beside others.
    fn slowness(&self, object: &ObjectName) -> Duration {
        let is_data = object.to_string().starts_with("rbd_data.");
        if is_data { self.world.lock().slow } else { Duration::ZERO }
    }

    /// Who wrote without having the lock.
    pub(super) fn intruders(&self) -> Vec<String> {
        self.world.lock().intruders.clone()
    }

    /// The objects whose names have something in them.
    pub(super) async fn objects_with(&self, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        for pool in &self.pools {
            let (all, _) = pool.list(None, 1000).await.unwrap();
            found.extend(all.iter().map(ToString::to_string).filter(|name| name.contains(text)));
        }
        found
    }

    /// How many writes of data were done.
    pub(super) fn applied(&self) -> u64 {
        self.world.lock().applied
    }

    /// Whether a client is kept out.
    pub(super) fn is_fenced(&self, client: &Client) -> bool {
        self.world.lock().fenced.contains(&client.number())
    }

    /// Whether a client was killed.
    pub(super) fn is_dead(&self, client: &Client) -> bool {
        self.world.lock().dead.contains(&client.number())
    }

    /// A client does nothing any more; what it has sent is done all the same, and its watches are there for a while.
    pub(super) fn kill(self: &Arc<Self>, client: &Client) {
        let number = client.number();
        self.world.lock().dead.insert(number);
        let cluster = Arc::clone(self);
        tokio::spawn(async move {
            sleep(WATCH_TIMEOUT).await;
            cluster.world.lock().watches.retain(|_, entry| entry.client.client.number != number);
        });
    }

    /// Ends a watch, and tells its owner.
    pub(super) fn cut(&self, client: i64) {
        let mut world = self.world.lock();
        let of_client = |entry: &Entry| entry.client.client.number == client;
        let found = world.watches.iter().find(|(_, entry)| of_client(entry));
        let Some(cookie) = found.map(|(cookie, _)| *cookie) else { return };
        if let Some(entry) = world.watches.remove(&cookie) {
            let _gone = entry.events.send(WatchEvent::Lost(Error::answer(Errno::NOTCONN)));
        }
    }

    /// Does a request that has come, unless its client is kept out.
    fn apply(
        &self,
        client: &Client,
        object: &ObjectName,
        request: &Request,
    ) -> Result<Vec<Answer>> {
        if self.world.lock().fenced.contains(&client.number()) {
            return Err(shutdown());
        }
        let request_of = (client.number(), object.to_string());
        let broken = self.world.lock().broken.take_if(|broken| *broken == request_of);
        if broken.is_some() {
            return Err(Errno::IO.into());
        }
        if let [Op::Query(Query::Watchers)] = request.ops() {
            return Ok(vec![Answer::Watchers(self.watchers(object))]);
        }
        self.world.lock().requests += 1;
        self.guard(client, object, request);
        self.objects(client.pool).operate_as(&client.caller, object, request)
    }

    /// Whoever writes data has the lock.
    fn guard(&self, client: &Client, object: &ObjectName, request: &Request) {
        let text = object.to_string();
        let id = text.strip_prefix("rbd_data.").and_then(|rest| rest.split_once('.'));
        let (Some((id, _)), Request::Write { .. }) = (id, request) else { return };
        let header = crate::format::names::header(id);
        let get = lock::get_info();
        let info = self.objects(client.pool).operate_blocking(&header, &get);
        let mut world = self.world.lock();
        world.applied += 1;
        let Ok(info) = info else {
            world.intruders.push(format!("{object} by {}, no header", client.number()));
            return;
        };
        let owner = lock::parse_owner(info).unwrap();
        if owner.as_ref().is_none_or(|owner| owner.client.client != client.caller.client) {
            let intruder = format!("{object} by {}, owner {owner:?}", client.number());
            world.intruders.push(intruder);
        }
    }

    fn watchers(&self, object: &ObjectName) -> Vec<Watcher> {
        let world = self.world.lock();
        let of_object = world.watches.iter().filter(|(_, entry)| entry.object == *object);
        let watcher = |(cookie, entry): (&u64, &Entry)| Watcher {
            client: entry.client.client,
            cookie: *cookie,
            timeout: WATCH_TIMEOUT,
            addr: entry.client.addr,
        };
        of_object.map(watcher).collect()
    }
}

/// A client of the cluster.
#[derive(Clone)]
pub(super) struct Client {
    cluster: Arc<Cluster>,
    caller: Caller,
    pool: i64,
}

impl Client {
    pub(super) fn new(cluster: &Arc<Cluster>, number: u32) -> Self {
        let client = EntityName { kind: EntityType::CLIENT, number: number.into() };
        let addr = EntityAddr { nonce: number, ..EntityAddr::default() };
        Self { cluster: Arc::clone(cluster), caller: Caller { client, addr }, pool: POOLS[0] }
    }

    pub(super) fn number(&self) -> i64 {
        self.caller.client.number
    }

    /// Does not go on if the client is dead.
    async fn alive(&self) {
        if self.cluster.world.lock().dead.contains(&self.number()) {
            std::future::pending::<()>().await;
        }
    }
}

impl ObjectStore for Client {
    type Watch = SimulatedWatch;

    fn pool(&self) -> i64 {
        self.pool
    }

    fn namespace(&self) -> &str {
        ""
    }

    async fn in_pool(&self, pool: i64, _: &str) -> Result<Self> {
        if !POOLS.contains(&pool) {
            return Err(Errno::NOENT.into());
        }
        Ok(Self { pool, ..self.clone() })
    }

    async fn pools(&self) -> Result<Vec<i64>> {
        Ok(POOLS.to_vec())
    }

    fn caller(&self) -> Caller {
        self.caller.clone()
    }

    async fn fence(&self, client: &Caller) -> Result<()> {
        self.alive().await;
        self.cluster.delay().await;
        self.cluster.world.lock().fenced.insert(client.client.number);
        self.cluster.cut(client.client.number);
        self.cluster.delay().await;
        self.alive().await;
        Ok(())
    }

    fn unique(&self) -> Result<u64> {
        Ok(self.cluster.random(1..u64::MAX))
    }

    async fn operate(&self, object: &ObjectName, request: Request) -> Result<Vec<Answer>> {
        self.alive().await;
        if self.cluster.strikes() {
            self.cluster.cut(self.number());
        }
        let (done, is_done) = oneshot::channel();
        let (client, object) = (self.clone(), object.clone());
        // What is sent arrives, whatever becomes of the one who has sent it.
        tokio::spawn(async move {
            client.cluster.delay().await;
            sleep(client.cluster.slowness(&object)).await;
            let is_write = matches!(request, Request::Write { .. });
            let is_held = |held: &Held| match held {
                Held::Writes(end) => is_write && object.to_string().ends_with(end),
                Held::Pool(pool) => *pool == client.pool,
                Held::Monitors => false,
            };
            client.cluster.answers(is_held).await;
            let result = client.cluster.apply(&client, &object, &request);
            client.cluster.delay().await;
            let _given_up = done.send(result);
        });
        let result = is_done.await.unwrap();
        self.alive().await;
        result
    }

    async fn flush(&self) -> Result<()> {
        self.alive().await;
        Ok(())
    }

    async fn list(
        &self,
        _: Option<&ListPlace>,
        _: usize,
    ) -> Result<(Vec<ObjectName>, Option<ListPlace>)> {
        Ok((Vec::new(), None))
    }

    async fn create_snapshot(&self) -> Result<u64> {
        self.alive().await;
        self.cluster.delay().await;
        self.cluster.answers(|held| *held == Held::Monitors).await;
        self.cluster.objects(self.pool).create_snapshot_blocking()
    }

    async fn remove_snapshot(&self, id: u64) -> Result<()> {
        self.alive().await;
        self.cluster.delay().await;
        self.cluster.answers(|held| *held == Held::Monitors).await;
        self.cluster.objects(self.pool).remove_snapshot_blocking(id)
    }

    async fn watch(&self, object: &ObjectName) -> Result<SimulatedWatch> {
        self.operate(object, Request::read(vec![Op::assert_exists()])).await?;
        let (events, receiver) = mpsc::unbounded_channel();
        let mut world = self.cluster.world.lock();
        if world.fenced.contains(&self.number()) {
            return Err(shutdown());
        }
        world.next += 1;
        let cookie = world.next;
        let entry = Entry { client: self.caller.clone(), object: object.clone(), events };
        world.watches.insert(cookie, entry);
        Ok(SimulatedWatch { client: self.clone(), cookie, events: receiver })
    }

    async fn notify(
        &self,
        object: &ObjectName,
        payload: Bytes,
        limit: Duration,
    ) -> Result<NotifyAnswers> {
        self.operate(object, Request::read(vec![Op::assert_exists()])).await?;
        let mut waiting = Vec::new();
        for watcher in self.cluster.watchers(object) {
            let lost = self.cluster.strikes();
            let (answer, answered) = oneshot::channel();
            let mut world = self.cluster.world.lock();
            world.next += 1;
            let notify_id = world.next;
            let Some(entry) = world.watches.get(&watcher.cookie) else { continue };
            // Whoever loses one hears of that, some time later.
            let event = match lost {
                true => WatchEvent::Missed,
                false => {
                    let notifier = u64::try_from(self.number()).unwrap();
                    WatchEvent::Notified { notify_id, notifier, payload: payload.clone() }
                }
            };
            let _gone = entry.events.send(event);
            world.answers.insert((watcher.cookie, notify_id), answer);
            waiting.push((watcher, answered));
        }
        let end = tokio::time::Instant::now() + limit;
        let mut answers = NotifyAnswers::default();
        for (watcher, answered) in waiting {
            let who = (u64::try_from(watcher.client.number).unwrap(), watcher.cookie);
            match tokio::time::timeout_at(end, answered).await {
                Ok(Ok(answer)) => answers.answered.push((who, answer)),
                _ => answers.silent.push(who),
            }
        }
        self.cluster.delay().await;
        self.alive().await;
        Ok(answers)
    }
}

pub(super) struct SimulatedWatch {
    client: Client,
    cookie: u64,
    events: mpsc::UnboundedReceiver<WatchEvent>,
}

impl StoreWatch for SimulatedWatch {
    fn cookie(&self) -> u64 {
        self.cookie
    }

    async fn next(&mut self) -> Option<WatchEvent> {
        let event = self.events.recv().await;
        self.client.alive().await;
        event
    }

    async fn acknowledge(&mut self, notify_id: u64, payload: Bytes) -> Result<()> {
        let answer = self.client.cluster.world.lock().answers.remove(&(self.cookie, notify_id));
        if let Some(answer) = answer {
            let _waits_no_more = answer.send(payload);
        }
        Ok(())
    }
}

impl Drop for SimulatedWatch {
    fn drop(&mut self) {
        self.client.cluster.world.lock().watches.remove(&self.cookie);
    }
}
