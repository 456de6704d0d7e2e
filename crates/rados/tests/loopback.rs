//! A client with its sockets, and daemons of the test's own on loopback: what a real cluster cannot be made to do.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]

#[path = "simulation/maps.rs"]
#[allow(dead_code, reason = "the simulation has more uses for it")]
mod maps;
#[path = "simulation/wire.rs"]
#[allow(dead_code, reason = "the simulation has more uses for it")]
mod wire;

use blockyard_rados::auth::{Credentials, Identity};
use blockyard_rados::encoding::{EntityAddr, EntityType};
use blockyard_rados::msgr::{AuthMethod, ConnectionMode, Message};
use blockyard_rados::net::{Cluster, Config};
use blockyard_rados::osd::OpCode;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Nothing in these tests takes longer: what does hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// What the daemons do, and what was asked of them.
struct Daemons {
    monitor: SocketAddr,
    map: Mutex<maps::MapModel>,
    /// What monitors say that the newest epoch is, if it is not the map's.
    newest: Mutex<Option<u32>>,
    /// No map that is sent can be used.
    spoils_maps: Mutex<bool>,
    /// Operations that came to the OSD: their codes, and the kind of watch operations.
    asked: UnboundedSender<(OpCode, u8)>,
}

fn addr(socket: SocketAddr) -> EntityAddr {
    EntityAddr::msgr2(socket, 1)
}

impl Daemons {
    /// One monitor and one OSD.
    async fn start() -> (Arc<Self>, UnboundedReceiver<(OpCode, u8)>) {
        let monitor = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let osd = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pool = maps::PoolModel { size: 1, ..maps::PoolModel::replicated() };
        let map = maps::MapModel {
            epoch: 5,
            modified: 0,
            blocklist: BTreeSet::default(),
            flags: 0,
            pools: BTreeMap::from([(1, pool)]),
            osds: vec![maps::OsdModel { up: true, addr: addr(osd.local_addr().unwrap()) }],
            pg_temp: BTreeMap::new(),
            primary_temp: BTreeMap::new(),
            affinities: Vec::new(),
            crush: maps::crush(1),
        };
        let (asked, heard) = unbounded_channel();
        let daemons = Arc::new(Self {
            monitor: monitor.local_addr().unwrap(),
            map: Mutex::new(map),
            newest: Mutex::default(),
            spoils_maps: Mutex::default(),
            asked,
        });
        for (listener, kind) in [(monitor, EntityType::MON), (osd, EntityType::OSD)] {
            let daemons = Arc::clone(&daemons);
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let here = stream.local_addr().unwrap();
                    let nonce = u32::from(kind == EntityType::OSD);
                    let server = wire::Server::new(kind, EntityAddr::msgr2(here, nonce), 4100);
                    tokio::spawn(Arc::clone(&daemons).serve(stream, server));
                }
            });
        }
        (daemons, heard)
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream, mut server: wire::Server) {
        let mut buffer = vec![0; 65536];
        loop {
            if stream.write_all(&server.drain()).await.is_err() {
                return;
            }
            let Ok(count @ 1..) = stream.read(&mut buffer).await else { return };
            for message in server.receive(&buffer[..count]) {
                self.answer(&mut server, &message);
            }
        }
    }

    fn answer(&self, server: &mut wire::Server, message: &Message) {
        let map = self.map.lock().unwrap();
        match message.kind {
            15 if wire::wanted_osdmaps(message).is_some() => {
                let mut whole = map.whole();
                if *self.spoils_maps.lock().unwrap() {
                    whole.truncate(whole.len() - 1);
                }
                let epoch = self.newest.lock().unwrap().unwrap_or(map.epoch);
                let whole = BTreeMap::from([(epoch, whole)]);
                server.send(wire::maps_message(maps::FSID, &BTreeMap::new(), &whole));
            }
            19 => {
                let newest = self.newest.lock().unwrap().unwrap_or(map.epoch);
                server.send(wire::version_reply(message, newest));
            }
            42 => {
                let request = wire::WireRequest::parse(message);
                let op = &request.ops[0];
                let _the_test_has_ended = self.asked.send((op.code, op.args[16]));
                server.send(request.reply(map.epoch, 0, &[], None));
            }
            _ => {}
        }
    }

    async fn connect(&self) -> Cluster {
        let credentials = Credentials {
            identity: Identity::default(),
            key: Err(None),
            methods: vec![AuthMethod::NONE],
        };
        let mut config = Config::new(credentials, vec![self.monitor]);
        config.monitor_modes = vec![ConnectionMode::CRC];
        config.osd_modes = vec![ConnectionMode::CRC];
        config.monitor_timeout = Some(Duration::from_secs(1));
        Cluster::connect(config).await.unwrap()
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bounded = async { tokio::time::timeout(LIMIT, test).await };
    runtime.block_on(bounded).unwrap_or_else(|_| panic!("no end after {LIMIT:?}"));
}

/// The program goes on, and nobody holds anything of the cluster: its OSD has to hear of it all the same.
#[test]
fn a_watch_that_is_the_last_of_its_cluster_is_ended() {
    run(async {
        let (daemons, mut heard) = Daemons::start().await;
        let watch = daemons.connect().await.pool_by_id(1).watch("a", None).await.unwrap();
        assert_eq!(heard.recv().await, Some((OpCode::WATCH, 3)));
        drop(watch);
        assert_eq!(heard.recv().await, Some((OpCode::WATCH, 0)), "its end");
    });
}

/// Monitors answer, and the map that they speak of does not come, or is of no use.
#[test]
fn who_waits_for_a_map_waits_no_longer_than_for_a_monitor() {
    run(async {
        let (daemons, _heard) = Daemons::start().await;
        let cluster = daemons.connect().await;
        assert_eq!(cluster.newest_map().await.unwrap(), 5);
        *daemons.newest.lock().unwrap() = Some(6);
        *daemons.spoils_maps.lock().unwrap() = true;
        let error = cluster.newest_map().await.unwrap_err();
        assert!(error.to_string().contains("no answer in time"), "{error}");
        // What is asked for from here on comes, and cannot be used.
        cluster.set_barrier(6);
        while !cluster.newest_map().await.unwrap_err().to_string().contains("cannot use") {}
        daemons.map.lock().unwrap().epoch = 6;
        *daemons.spoils_maps.lock().unwrap() = false;
        while cluster.newest_map().await.is_err() {}
        assert_eq!(cluster.epoch(), 6);
    });
}

/// An operation that waits for its turn has a deadline too, and so has a notification.
#[test]
fn an_operation_waits_for_its_turn_until_its_deadline() {
    run(async {
        let (daemons, mut heard) = Daemons::start().await;
        let cluster = daemons.connect().await;
        // Nothing is sent before an epoch that never comes.
        cluster.set_barrier(100);
        let pool = cluster.pool_by_id(1);
        let first = pool.clone();
        let blocked = tokio::spawn(async move { first.write("a", 0, vec![0; 200 << 20]).await });
        tokio::task::yield_now().await;
        let short = pool.with_timeout(Some(Duration::from_millis(200)));
        let said = |error: blockyard_rados::Error| error.to_string();
        let write = said(short.write("a", 0, Bytes::from_static(b"x")).await.unwrap_err());
        assert!(write.contains("waiting for operations before"), "{write}");
        let notify = said(short.notify("a", b"x", Duration::from_secs(1)).await.unwrap_err());
        assert!(notify.contains("waiting for operations before"), "{notify}");
        assert!(heard.try_recv().is_err());
        blocked.abort();
    });
}
