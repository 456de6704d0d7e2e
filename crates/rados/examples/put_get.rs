//! Writes an object to a cluster, and reads it back: configuration and arguments as Ceph's own programs take them.
//!
//! ```text
//! CEPH_CONF=/etc/ceph/ceph.conf cargo run -p blockyard-rados --example put_get -- --pool rbd --mode secure
//! rados -p rbd get blockyard-example -
//! ```
//!
//! With `--stay 60` it stays for a minute first, and tells of maps and tickets as they come.
#![allow(clippy::print_stdout, reason = "this is a program for a terminal")]

use blockyard_rados::auth::{Credentials, Keyring, MonitorAuth, Random, ServiceAuth};
use blockyard_rados::conf::{Arguments, ConfFile, Settings, Surroundings, mon_hosts};
use blockyard_rados::encoding::{EntityType, ObjectLocator, PgShard};
use blockyard_rados::features;
use blockyard_rados::maps::{Incremental, OsdMap, Placer};
use blockyard_rados::mon::{self, Answer, MonClient, Request};
use blockyard_rados::msgr::{self, AuthMethod, Config, Connection, ConnectionMode, Session};
use blockyard_rados::osd::{Op, OsdRequest, Reply, Target};
use bytes::Bytes;
use std::error::Error;
use std::fs;
use std::io::Read;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const OBJECT: &str = "blockyard-example";
const NONCE: u32 = 4711;

fn random() -> Random {
    Random::new(|bytes| {
        let filled = fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(bytes));
        assert!(filled.is_ok(), "there is no chance to be had: {filled:?}");
    })
}

fn settings() -> Result<Settings> {
    let ceph_args = std::env::var("CEPH_ARGS").unwrap_or_default();
    let mut words: Vec<String> = ceph_args.split_whitespace().map(str::to_owned).collect();
    words.extend(std::env::args().skip(1));
    let arguments = Arguments::parse(&words)?;
    let home = std::env::var("HOME").unwrap_or_default();
    let surroundings = Surroundings { host: String::new(), home, pid: std::process::id() };
    let settings = Settings::new(&arguments, surroundings);
    let conf = std::env::var("CEPH_CONF").ok();
    for path in settings.files(&arguments, conf.as_deref()) {
        if let Ok(text) = fs::read_to_string(&path) {
            return Ok(settings.with_file(ConfFile::parse(&text)?));
        }
    }
    Ok(settings)
}

fn credentials(settings: &Settings) -> Result<Credentials> {
    let mut key = None;
    for path in settings.keyrings() {
        if let Ok(text) = fs::read_to_string(&path) {
            key = Keyring::parse(&text)?.get(settings.identity()).cloned();
            break;
        }
    }
    let methods = vec![AuthMethod::CEPHX, AuthMethod::NONE];
    Ok(Credentials { identity: settings.identity().clone(), key, methods })
}

/// The monitors, and what they told.
struct Cluster {
    client: MonClient,
    stream: Option<TcpStream>,
    session: Option<Session>,
    map: OsdMap,
}

impl Cluster {
    /// A cluster of which nothing is known yet but where its monitors are.
    fn new(settings: &Settings, mode: ConnectionMode) -> Result<Self> {
        let hosts = mon_hosts(&settings.get("mon host").unwrap_or_default())?;
        let monitors = hosts.iter().filter_map(|host| host.socket()).collect();
        let services = vec![EntityType::OSD];
        let auth = MonitorAuth::new(credentials(settings)?, vec![mode], services, random());
        let config = mon::Config { monitors, nonce: NONCE, supported: features::SUPPORTED };
        let mut client = MonClient::new(config, auth, Instant::now())?;
        client.subscribe("osdmap", 0, false);
        client.ask(Request::GetVersion("osdmap".into())).map_err(|_| "too much is asked")?;
        Ok(Self { client, stream: None, session: None, map: OsdMap::default() })
    }

    /// Does what the state machine says, and carries bytes between it and a monitor, once.
    async fn step(&mut self, until: Instant) -> Result<()> {
        while let Some(event) = self.client.poll_event() {
            self.obey(event).await?;
        }
        let mut out = Vec::new();
        if self.client.poll_transmit(&mut out)
            && let Some(stream) = &mut self.stream
        {
            stream.write_all(&out.concat()).await?;
        }
        let deadline = self.client.deadline().ok_or("the monitors refuse")?.min(until);
        let mut buffer = vec![0; 1 << 16];
        let read = match &mut self.stream {
            Some(stream) => {
                tokio::time::timeout_at(deadline.into(), stream.read(&mut buffer)).await.ok()
            }
            None => {
                tokio::time::sleep_until(deadline.into()).await;
                None
            }
        };
        let now = Instant::now();
        match read {
            None => self.client.expire(now)?,
            Some(Ok(0) | Err(_)) => {
                self.stream = None;
                self.client.failed(now);
            }
            Some(Ok(read)) => self.client.receive(now, &buffer[..read])?,
        }
        Ok(())
    }

    async fn obey(&mut self, event: mon::Event) -> Result<()> {
        match event {
            mon::Event::Connect(address) => match TcpStream::connect(address).await {
                Ok(open) => {
                    self.stream = Some(open);
                    self.client.connected(Instant::now());
                }
                Err(_) => self.client.failed(Instant::now()),
            },
            mon::Event::Open(open) => self.session = Some(open),
            mon::Event::OsdMaps(maps) => {
                take_maps(&mut self.map, &maps)?;
                println!("map {} of {}", self.map.epoch(), self.map.fsid());
            }
            mon::Event::Failed(address, error) => println!("monitor {address}: {error}"),
            mon::Event::Answer(_, Answer::Version { newest, .. }) => {
                println!("the newest map has epoch {newest}");
            }
            mon::Event::Renewed => println!("the tickets are new"),
            mon::Event::Answer(..) | mon::Event::MonMap(_) => {}
        }
        Ok(())
    }

    /// Steps until a session is open and a map is there.
    async fn meet(&mut self) -> Result<Session> {
        loop {
            self.step(Instant::now() + Duration::from_secs(1)).await?;
            if let Some(session) = self.session.clone().filter(|_| self.map.epoch() > 0) {
                return Ok(session);
            }
        }
    }
}

fn take_maps(map: &mut OsdMap, maps: &mon::OsdMaps) -> Result<()> {
    if let Some((_, whole)) = maps.whole.last_key_value() {
        *map = OsdMap::decode(whole)?;
    }
    for (_, change) in maps.changes.range(map.epoch() + 1..) {
        map.apply(&Incremental::decode(change)?)?;
    }
    Ok(())
}

/// A session with one OSD, one request at a time.
struct Osd {
    stream: TcpStream,
    connection: Connection<ServiceAuth>,
    last_tid: u64,
}

impl Osd {
    async fn open(
        cluster: &Cluster,
        session: &Session,
        osd: i32,
        mode: ConnectionMode,
    ) -> Result<Self> {
        let peer = cluster.map.addrs(osd).and_then(|addrs| addrs.msgr2()).ok_or("no address")?;
        let auth = cluster.client.auth().ok_or("the monitors refuse")?;
        let now = Instant::now();
        let auth = ServiceAuth::new(auth, EntityType::OSD, vec![mode], random(), now)?;
        let config = Config {
            peer_kind: EntityType::OSD,
            peer,
            own: Some(session.own),
            nonce: NONCE,
            global_id: Some(session.global_id),
            global_seq: 2,
            supported: features::SUPPORTED,
            handshake_timeout: Duration::from_secs(10),
            keepalive: None,
        };
        let stream = TcpStream::connect(peer.socket.ok_or("no address")?).await?;
        let mut osd = Self { stream, connection: Connection::new(config, auth, now), last_tid: 0 };
        match osd.next().await? {
            msgr::Event::Open(session) => println!("{peer}: mode {:?}", session.mode),
            msgr::Event::Message(message) => return Err(format!("message {}", message.kind).into()),
        }
        Ok(osd)
    }

    async fn next(&mut self) -> Result<msgr::Event> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            if let Some(event) = self.connection.poll_event() {
                return Ok(event);
            }
            let mut out = Vec::new();
            if self.connection.poll_transmit(&mut out) {
                self.stream.write_all(&out.concat()).await?;
            }
            let read = self.stream.read(&mut buffer).await?;
            if read == 0 {
                return Err("the OSD hung up".into());
            }
            self.connection.receive(Instant::now(), &buffer[..read])?;
        }
    }

    async fn ask(&mut self, request: &OsdRequest, target: Target) -> Result<Reply> {
        self.last_tid += 1;
        let message = request.message(self.last_tid, target, 0, features::SUPPORTED);
        self.connection.send(message).map_err(|_| "the session is not open")?;
        loop {
            match self.next().await? {
                msgr::Event::Message(message) if message.kind == 43 => {
                    return Ok(Reply::parse(&message)?);
                }
                event => println!("passed over: {event:?}"),
            }
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let settings = settings()?;
    let mode = match settings.get("mode").as_deref() {
        Some("secure") => ConnectionMode::SECURE,
        _ => ConnectionMode::CRC,
    };
    let mut cluster = Cluster::new(&settings, mode)?;
    let session = cluster.meet().await?;
    println!("client.{}, mode {:?}", session.global_id, session.mode);
    let stay = settings.get("stay").unwrap_or_default().parse().unwrap_or(0);
    let until = Instant::now() + Duration::from_secs(stay);
    while Instant::now() < until {
        cluster.step(until).await?;
    }
    let pool_name = settings.get("pool").unwrap_or_else(|| "rbd".to_owned());
    let pool = cluster.map.pool_named(&pool_name).ok_or("there is no such pool")?;
    let locator = ObjectLocator::new(pool, &settings.get("namespace").unwrap_or_default());
    let (hash, pg) = cluster.map.object_group(&locator, OBJECT)?;
    let placed = Placer::new(&cluster.map)?.place(&cluster.map, pg);
    let primary = placed.primary.ok_or("the group is not served")?;
    let shard = placed.shard(&cluster.map.pools()[&pool], primary);
    println!("{OBJECT} -> {pg} -> {:?}, primary {primary}", placed.acting);

    let mut osd = Osd::open(&cluster, &session, primary, mode).await?;
    let target = Target { pg: PgShard { pg, shard }, hash, epoch: cluster.map.epoch() };
    let data: Bytes = format!("written by process {}\n", std::process::id()).repeat(50_000).into();
    for (op, what) in
        [(Op::write_full(data.clone()), "write"), (Op::stat(), "stat"), (Op::read(0, 0), "read")]
    {
        let begin = Instant::now();
        let request = OsdRequest::new(locator.clone(), OBJECT, vec![op]);
        let reply = osd.ask(&request, target).await?;
        println!(
            "{what}: {} in {:?}, version {}",
            reply.result,
            begin.elapsed(),
            reply.user_version
        );
        if reply.result < 0 {
            return Err(format!("{what} failed").into());
        }
        if what == "read" && reply.ops[0].data != data {
            return Err("what was read is not what was written".into());
        }
    }
    println!("{} bytes came back as they were", data.len());
    Ok(())
}
