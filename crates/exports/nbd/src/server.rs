//! The server: listeners, the list of clients, and the end.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blockyard_nbd::server::MemoryBudget;
use blockyard_sys::net::Watch;
use parking_lot::Mutex;
use socket2::{SockRef, Socket};
use tokio::io::Interest;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

use crate::catalogue::Catalogue;
use crate::client::{Client, ClientInfo, Phase};
use crate::clients::{Clients, Group};
use crate::config::{Config, Export, longest_flush_grace};
use crate::connection::{self, Close};
use crate::error::{Error, ErrorKind};
use crate::listener::{self, Listener, PeerHost};
use crate::rate_limit::RateLimit;
use crate::thread::QueueThread;

/// How long nothing is accepted when the system is out of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The part of the handshakes that one host may have under way: one in so many.
const HANDSHAKES_OF_HOST: usize = 4;
/// As many it may have in any case.
const LEAST_HANDSHAKES: usize = 4;
/// TLS handshakes whose arithmetic is done at a time.
const TLS_WORKERS: usize = 2;
/// How long connections that were cut are waited for: they only have to be polled once.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// Serves exports to clients. It lives until [`Server::shutdown`].
pub struct Server {
    pub(crate) config: Config,
    pub(crate) catalogue: Catalogue,
    pub(crate) threads: Vec<QueueThread>,
    memory: MemoryBudget,
    pub(crate) tls_workers: Arc<Semaphore>,
    clients: Mutex<Clients>,
    /// Told when a client has left.
    left: Notify,
    next_id: AtomicU64,
    listeners: Mutex<Vec<JoinHandle<()>>>,
    stage: AtomicU8,
    refused: RateLimit,
    accept_failed: RateLimit,
}

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// It has not begun.
    Serving,
    /// No new requests; those that were taken are answered.
    Draining,
    /// Nothing is waited for any more but the answer to a flush that the disk has.
    Cut,
    /// Nothing is waited for any more.
    Over,
}

impl Stage {
    pub(crate) const fn of(number: u8) -> Self {
        match number {
            0 => Self::Serving,
            1 => Self::Draining,
            2 => Self::Cut,
            _ => Self::Over,
        }
    }
}

impl Server {
    /// A server whose connections live on `queue_threads`. Each is the runtime of a thread of its own, with I/O
    /// and time enabled; its place in the list is the number that [`blockyard_blkmq::Bdev::submit`] is given
    /// for it.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for what cannot be, with what to change.
    pub fn new(mut config: Config, queue_threads: Vec<Handle>) -> Result<Arc<Self>, Error> {
        config.check()?;
        let single = |handle: &Handle| handle.runtime_flavor() == RuntimeFlavor::CurrentThread;
        if queue_threads.is_empty() || !queue_threads.iter().all(single) {
            let what = "an NBD server needs queue threads, each a current-thread runtime";
            return Err(Error::new(ErrorKind::Config, what));
        }
        let threads = queue_threads.into_iter().enumerate();
        let limits = &config.limits;
        let largest = limits.max_payload as usize;
        let memory = MemoryBudget::new(limits.max_memory, limits.max_clients, largest);
        Ok(Arc::new(Self {
            catalogue: Catalogue::new(&mut config, memory.clone()),
            config,
            memory,
            tls_workers: Arc::new(Semaphore::new(TLS_WORKERS)),
            threads: threads.map(|(cpu, handle)| QueueThread::new(handle, cpu)).collect(),
            clients: Mutex::default(),
            left: Notify::new(),
            next_id: AtomicU64::new(1),
            listeners: Mutex::default(),
            stage: AtomicU8::new(Stage::Serving as u8),
            refused: RateLimit::default(),
            accept_failed: RateLimit::default(),
        }))
    }

    /// Accepts connections from now on. May be called for several listeners.
    pub fn listen(self: &Arc<Self>, listener: Listener) {
        let Listener { sockets, file } = listener;
        // The file goes when the last of the sockets does.
        let file = Arc::new(file);
        let mut listeners = self.listeners.lock();
        for socket in sockets {
            let (server, file) = (Arc::clone(self), Arc::clone(&file));
            let thread = &self.threads[listeners.len() % self.threads.len()];
            listeners.push(thread.handle.spawn(async move {
                if let Err(err) = server.accept_all(socket).await {
                    tracing::error!(error = %err, "stopped accepting connections");
                }
                drop(file);
            }));
        }
    }

    /// Serves a client that is connected already, by a stream socket: a pair of sockets, say.
    pub fn serve(self: &Arc<Self>, connection: OwnedFd) {
        self.accepted(connection.into());
    }

    async fn accept_all(self: Arc<Self>, socket: Socket) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        let socket = Watch::new(socket.into(), Interest::READABLE)?;
        loop {
            let mut ready = socket.readable().await?;
            match ready.try_io(|socket| SockRef::from(socket.get_ref()).accept()) {
                Ok(Ok((accepted, _))) => self.accepted(accepted),
                Ok(Err(err)) if left_in_the_queue(&err) => {}
                Ok(Err(err)) => {
                    if let Some(times) = self.accept_failed.occurred(Instant::now()) {
                        tracing::warn!(
                            error = %err,
                            times,
                            "cannot accept connections now; raise the limit of open files (ulimit -n) \
                             or lower that of clients"
                        );
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                Err(_would_block) => {}
            }
        }
    }

    fn accepted(self: &Arc<Self>, socket: Socket) {
        let load = |thread: &&QueueThread| thread.connections.load(Ordering::Relaxed);
        let Some(thread) = self.threads.iter().min_by_key(load) else { return };
        let host = PeerHost::of(&socket);
        let mut clients = self.clients.lock();
        if let Err(why) = self.make_room(&mut clients, host) {
            drop(clients);
            if let Some(times) = self.refused.occurred(Instant::now()) {
                let peer = listener::peer_name(&socket);
                let limit = self.config.limits.max_clients;
                tracing::warn!(peer, limit, times, error = %why, "connections refused");
            }
            return;
        }
        if self.stage() > Stage::Serving {
            return;
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let client = Arc::new(Client::new(id, listener::peer_name(&socket), host, thread.cpu));
        clients.insert(&client);
        drop(clients);
        thread.connections.fetch_add(1, Ordering::Relaxed);
        let registration = Registration { server: Arc::clone(self), client };
        thread.handle.spawn(connection::run(registration, socket));
    }

    /// Whether one more may begin its handshake. Handshakes have a quota of their own, so that those who only connect
    /// keep nobody out: the oldest makes room for the newest. A host has its share, in which only its own make room, and
    /// those that it has too many are refused.
    fn make_room(&self, clients: &mut Clients, host: Option<PeerHost>) -> Result<(), &'static str> {
        let most = self.config.limits.max_clients;
        if clients.count(Group::Serving) >= most {
            return Err("max_clients reached");
        }
        let share = (most / HANDSHAKES_OF_HOST).max(LEAST_HANDSHAKES);
        let most = most.max(LEAST_HANDSHAKES);
        let of_host = |clients: &Clients, group: fn(PeerHost) -> Group| {
            host.map_or(0, |host| clients.count(group(host)))
        };
        // Those that were told to go have not all gone yet: what one host has of these is at its own cost.
        if of_host(clients, Group::HandshakesOf) >= 2 * share {
            return Err("too many handshakes of one host");
        }
        if clients.count(Group::Handshakes) >= 2 * most {
            return Err("too many handshakes");
        }
        if of_host(clients, Group::StayingOf) >= share {
            clients.evict_oldest(host);
        } else if clients.count(Group::Staying) >= most {
            clients.evict_oldest(None);
        }
        Ok(())
    }

    /// Who is connected.
    #[must_use]
    pub fn clients(&self) -> Vec<ClientInfo> {
        self.clients.lock().iter().map(|client| client.info()).collect()
    }

    /// Bytes of the memory for all clients that are in use, but for what each client has for itself.
    #[must_use]
    pub fn memory_in_use(&self) -> usize {
        self.memory.taken() + self.memory.stashed()
    }

    pub(crate) fn stage(&self) -> Stage {
        Stage::of(self.stage.load(Ordering::SeqCst))
    }

    /// Ends it: nothing is accepted any more, requests that have arrived are finished and answered, connections
    /// are closed. What takes longer than `grace` is cut off. Clients that have something to flush have
    /// [`flush_grace`](crate::ServerLimits::flush_grace) of that for it. Where a disk has a flush of theirs by then, they are
    /// left until that is answered, or [`finish`](Self::finish) gives them up: what their disk is to keep has nothing to do
    /// with how long it takes. Says how many were cut off.
    pub async fn shutdown(&self, grace: Duration) -> usize {
        self.give_flush_grace(grace, |_| true);
        self.enter(Stage::Draining);
        let listeners = std::mem::take(&mut *self.listeners.lock());
        for listener in listeners {
            listener.abort();
            // Cancelled, as was asked.
            let _ = listener.await;
        }
        if tokio::time::timeout(grace, self.all_left()).await.is_ok() {
            return 0;
        }
        let late = self.late(|_| true);
        self.enter(Stage::Cut);
        // A queue thread that has ended does not answer.
        let cut = self.have_left(|client| !client.awaits_last_flush());
        let _ = tokio::time::timeout(CUT_GRACE, cut).await;
        let flushing =
            self.clients.lock().iter().filter(|client| client.awaits_last_flush()).count();
        if flushing > 0 {
            tracing::info!(clients = flushing, "waiting for disks that flush for clients");
        }
        let clients = self.cut_off(&late);
        if clients > 0 {
            tracing::warn!(
                clients,
                ?grace,
                "shutdown grace period expired; remaining clients were disconnected"
            );
        }
        clients
    }

    /// Those clients that have not got all that they have asked for. Who only has to hang up has.
    fn late(&self, which: impl Fn(&Client) -> bool) -> Vec<Arc<Client>> {
        let clients = self.clients.lock();
        clients.iter().filter(|client| which(client) && !client.has_all()).cloned().collect()
    }

    /// How many of those who were late were cut off, or still have to be. Others have left by themselves meanwhile, or with the
    /// answer to their last flush.
    fn cut_off(&self, late: &[Arc<Client>]) -> usize {
        let clients = self.clients.lock();
        let is_left = |client: &Arc<Client>| !client.awaits_last_flush() && clients.has(client);
        late.iter().filter(|client| client.was_cut_off() || is_left(client)).count()
    }

    /// Waits for what [`shutdown`](Self::shutdown) has left: for the answers of flushes, for so long at most.
    pub async fn finish(&self, limit: Duration) {
        if tokio::time::timeout(limit, self.all_left()).await.is_err() {
            self.enter(Stage::Over);
            let _ = tokio::time::timeout(CUT_GRACE, self.all_left()).await;
        }
    }

    fn enter(&self, stage: Stage) {
        // It never goes back.
        self.stage.fetch_max(stage as u8, Ordering::SeqCst);
        self.kick_all();
    }

    /// Has all connections look at what has changed.
    pub(crate) fn kick_all(&self) {
        for client in self.clients.lock().iter() {
            client.outbox.kick();
        }
    }

    /// Waits until nobody is connected.
    pub async fn all_left(&self) {
        self.fewer_than(1).await;
    }

    /// Waits until fewer clients than that are connected.
    pub async fn fewer_than(&self, count: usize) {
        self.until(|clients| clients.len() < count).await;
    }

    /// Has those look again who wait until clients have left.
    pub(crate) fn tell_left(&self) {
        self.left.notify_waiters();
    }

    /// Waits until none of those clients is left.
    async fn have_left(&self, which: impl Fn(&Client) -> bool) {
        self.until(|clients| !clients.iter().any(|client| which(client))).await;
    }

    /// Waits until so many clients have left that this holds.
    async fn until(&self, holds: impl Fn(&Clients) -> bool) {
        loop {
            let left = self.left.notified();
            if holds(&self.clients.lock()) {
                return;
            }
            left.await;
        }
    }

    /// Puts an export on offer.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for what cannot be, [`ErrorKind::InUse`] if there is one of that name.
    pub fn add_export(&self, export: Export) -> Result<(), Error> {
        self.config.check_export(&export)?;
        self.catalogue.add(export)
    }

    /// Names the export of clients who name none; without, they get the only one if there is but one.
    pub fn set_default_export(&self, name: Option<String>) {
        self.catalogue.set_default(name);
    }

    /// Takes an export from the offer. Its clients are asked to leave as in [`Server::shutdown`], nobody else's; what takes
    /// longer than `grace` is cut off: it gets no answer any more, but its connection ends only when the disk has done with
    /// its requests. `None` if there is no export of that name.
    pub async fn remove_export(&self, name: &str, grace: Duration) -> Option<RemovedExport> {
        // Who has found it before that looks again when it has said what it uses.
        let number = self.catalogue.remove(name)?;
        let uses = |client: &Client| client.export() == Some(number);
        self.give_flush_grace(grace, uses);
        self.retire(Stage::Draining, uses);
        if tokio::time::timeout(grace, self.have_left(uses)).await.is_err() {
            let late = self.late(uses);
            self.retire(Stage::Cut, uses);
            // A queue thread that has ended does not answer, nor does a disk that hangs.
            let cut = self.have_left(|client| uses(client) && !client.awaits_last_flush());
            let _ = tokio::time::timeout(CUT_GRACE, cut).await;
            let (clients, requests) = (self.cut_off(&late), self.in_flight(uses));
            // The end of all tells of all.
            if self.stage() == Stage::Serving && clients > 0 {
                tracing::warn!(
                    export = name,
                    clients,
                    ?grace,
                    requests,
                    "removal grace period expired; remaining clients of the export were disconnected, those with requests \
                     in the disk as soon as these have ended"
                );
            }
        }
        Some(RemovedExport { number })
    }

    /// Requests of the clients of an export that was removed which the disk has not ended yet.
    #[must_use]
    pub fn in_flight_of(&self, removed: RemovedExport) -> usize {
        self.in_flight(|client| client.export() == Some(removed.number))
    }

    /// What those clients have to flush, they may flush until they are cut off, at the latest.
    fn give_flush_grace(&self, grace: Duration, which: impl Fn(&Client) -> bool) {
        let grace = self.config.limits.flush_grace.min(longest_flush_grace(grace));
        for client in self.clients.lock().iter().filter(|client| which(client)) {
            client.set_flush_grace(grace);
        }
    }

    /// Requests of those clients that their disk has.
    fn in_flight(&self, which: impl Fn(&Client) -> bool) -> usize {
        let clients = self.clients.lock();
        let users = clients.iter().filter(|client| which(client));
        users.map(|client| client.at_disk.load(Ordering::Relaxed)).sum()
    }

    /// The end of those clients has come that far.
    fn retire(&self, stage: Stage, which: impl Fn(&Client) -> bool) {
        for client in self.clients.lock().iter().filter(|client| which(client)) {
            client.enter(stage);
        }
    }
}

/// An export that was removed, told from any other of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemovedExport {
    number: u64,
}

/// Errors of a connection that was in the queue, not of the socket (`accept(2)`, "Error handling").
fn left_in_the_queue(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
}

/// A client is in the list as long as this lives.
pub(crate) struct Registration {
    pub(crate) server: Arc<Server>,
    pub(crate) client: Arc<Client>,
}

impl Registration {
    /// The handshake is over: whether there is room for one more client of its export. Clients that are gone do not count,
    /// but a disk that has not done with too many of them gets no more.
    pub(crate) fn admit(&self, export: u64) -> Result<(), Close> {
        let limits = &self.server.config.limits;
        let mut clients = self.server.clients.lock();
        if clients.count(Group::Serving) >= limits.max_clients {
            return Err(Close::Full);
        }
        if let Some(host) = self.client.host {
            let most = limits.clients_of(host);
            if clients.count(Group::ServingOf(host)) >= most {
                return Err(Close::HostFull(most));
            }
            if clients.count(Group::LingeringOf(host, export)) >= most {
                return Err(Close::Abandoned);
            }
        }
        if clients.count(Group::LingeringAt(export)) >= limits.max_clients {
            return Err(Close::Abandoned);
        }
        clients.admit(&self.client, export);
        Ok(())
    }

    /// Nobody is served any more: what the disk has of the client is waited for.
    pub(crate) fn leave(&self) {
        if self.client.phase() == Phase::Serving {
            self.server.clients.lock().leave(&self.client);
        }
    }

    /// How far the end of this client, or of all, has come.
    pub(crate) fn stage(&self) -> Stage {
        self.server.stage().max(self.client.stage())
    }

    pub(crate) fn thread(&self) -> &QueueThread {
        &self.server.threads[self.client.thread]
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.thread().connections.fetch_sub(1, Ordering::Relaxed);
        let mut clients = self.server.clients.lock();
        clients.remove(&self.client);
        drop(clients);
        // One who is about to wait sees the list without it, or is told.
        self.server.tell_left();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flushes::CROSSING;

    /// Who has not flushed by then is refused, may flush yet, and takes a while to hang up.
    #[test]
    fn flushes_leave_time_in_which_clients_hear_of_the_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let server = Server::new(Config::default(), vec![runtime.handle().clone()]).unwrap();
        let client = Arc::new(Client::new(1, String::new(), None, 0));
        server.clients.lock().insert(&client);
        let most = server.config.limits.flush_grace;
        let second = Duration::from_secs(1);
        for (grace, expected) in [
            (60 * second, most),
            (5 * second, most),
            (4 * second, 2 * second),
            (second * 11 / 2, most),
            (second, second / 2),
            (Duration::ZERO, Duration::ZERO),
        ] {
            server.give_flush_grace(grace, |_| true);
            assert_eq!(client.flush_grace(), expected, "{grace:?}");
        }
        assert_eq!(longest_flush_grace(10 * second), CROSSING * 5);
    }
}
