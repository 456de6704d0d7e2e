//! A server whose time is the test's.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blockyard_blkmq::{Disk, OpenMode};
use blockyard_export_nbd::{Config, Export, HeaderStyle, Server};

use super::{Client, DEADLINE};

/// A server in virtual time, which moves only as the test says.
pub struct Paused {
    pub server: Arc<Server>,
}

impl Paused {
    /// Runs `test` with a server of that disk.
    pub fn run<T: Future<Output = ()>>(
        disk: &Arc<Disk>,
        configure: impl FnOnce(&mut Config),
        test: impl FnOnce(Self) -> T,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .event_interval(1)
            .build()
            .unwrap();
        let bdev = Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap());
        let mut config = Config { exports: vec![Export::new("disk", bdev)], ..Config::default() };
        configure(&mut config);
        let server = Server::new(config, vec![runtime.handle().clone()]).unwrap();
        runtime.block_on(async {
            // As long as something blocks, the clock does not move by itself.
            let (still, stop) = std::sync::mpsc::channel::<()>();
            let blocker = tokio::task::spawn_blocking(move || _ = stop.recv());
            test(Self { server }).await;
            drop(still);
            blocker.await.unwrap();
        });
    }

    /// A bare connection.
    pub fn connect(&self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(DEADLINE)).unwrap();
        self.server.serve(theirs.into());
        ours
    }

    /// A thread that does as the client which it is given.
    pub fn client<T: Send + 'static>(
        &self,
        hears: bool,
        does: impl FnOnce(Client) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let stream = Box::new(self.connect());
        std::thread::spawn(move || {
            let client = if hears {
                Client::open_hearing(stream)
            } else {
                Client::open(stream, "", HeaderStyle::Extended)
            };
            does(client.unwrap())
        })
    }

    pub fn requests(&self) -> u64 {
        self.server.clients().iter().map(|client| client.requests).sum()
    }

    /// Begins the end. Says how long it took, in virtual time.
    pub fn shut_down(&self, grace: Duration) -> tokio::task::JoinHandle<Duration> {
        let server = Arc::clone(&self.server);
        tokio::spawn(async move {
            let begun = tokio::time::Instant::now();
            server.shutdown(grace).await;
            begun.elapsed()
        })
    }

    pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < DEADLINE, "{what}");
            tokio::task::yield_now().await;
        }
    }
}
