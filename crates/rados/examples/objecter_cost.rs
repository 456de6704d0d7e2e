//! What an operation costs a client: 4 KiB reads, 32 at a time, from a server in the same process. Only what the client does
//! is in `client_turn`, so that its instructions can be counted:
//!
//! ```text
//! cargo build --release -p blockyard-rados --example objecter_cost
//! valgrind --tool=callgrind --toggle-collect='*client_turn*' target/release/examples/objecter_cost 20000
//! ```
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "this is a program for a terminal")]

#[path = "../tests/simulation/maps.rs"]
#[allow(dead_code, reason = "the test has more uses for it")]
mod maps;
#[path = "../tests/simulation/wire.rs"]
#[allow(dead_code, reason = "the test has more uses for it")]
mod wire;

use blockyard_rados::auth::{Credentials, Identity, MonitorAuth, Random};
use blockyard_rados::cluster::{Client, Config, Event, Peer};
use blockyard_rados::encoding::{EntityAddr, EntityType, ObjectLocator};
use blockyard_rados::features;
use blockyard_rados::mon;
use blockyard_rados::msgr::{AuthMethod, ConnectionMode};
use blockyard_rados::objecter::{self, ConnectionId};
use blockyard_rados::osd::{Op, OsdRequest};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

const DEPTH: u64 = 32;
const BLOCK: usize = 4096;
const OSDS: usize = 3;

fn client(now: Instant) -> Client {
    let identity = Identity::default();
    let credentials = Credentials { identity, key: Err(None), methods: vec![AuthMethod::NONE] };
    let modes = vec![ConnectionMode::CRC];
    let random = |bytes: &mut [u8]| bytes.fill(1);
    let auth =
        MonitorAuth::new(credentials, modes.clone(), vec![EntityType::OSD], Random::new(random));
    let monitors = vec![([10, 0, 1, 0], 3300).into()];
    let config = Config {
        mon: mon::Config { monitors, seed: 0, nonce: 7, supported: features::SUPPORTED },
        objecter: objecter::Config::default(),
        osd_modes: modes,
        random,
    };
    Client::new(config, auth, now).unwrap()
}

fn osd(number: usize) -> maps::OsdModel {
    let host = u8::try_from(number).unwrap();
    maps::OsdModel { up: true, addr: EntityAddr::msgr2(([10, 0, 2, host], 6800).into(), 1) }
}

/// What the client does for a turn: takes what came, ends what is done, sends as many reads as may be.
#[inline(never)]
fn client_turn(
    client: &mut Client,
    now: Instant,
    came: &[(ConnectionId, Vec<u8>)],
    sent: &mut Vec<(ConnectionId, Vec<Bytes>)>,
    left: &mut u64,
) -> Vec<Event> {
    for (connection, bytes) in came {
        client.receive(now, *connection, bytes);
    }
    let mut others = Vec::new();
    while let Some(event) = client.poll_event(now) {
        match event {
            Event::Completed(completion) => {
                assert_eq!(completion.result.unwrap().ops[0].data.len(), BLOCK);
            }
            other => others.push(other),
        }
    }
    if client.objecter().map().epoch() > 0 {
        while *left > 0 && (client.objecter().in_flight().0 as u64) < DEPTH {
            let locator = ObjectLocator::new(1, "");
            let object = format!("rbd_data.123456.{:016x}", *left % 100);
            let request = OsdRequest::new(locator, &object, vec![Op::read(0, BLOCK as u64)]);
            client.objecter_mut().submit(now, request, None).unwrap();
            *left -= 1;
        }
    }
    let mut out = Vec::new();
    while let Some(connection) = client.poll_transmit(&mut out) {
        sent.push((connection, std::mem::take(&mut out)));
    }
    others
}

fn main() {
    let reads: u64 = std::env::args().nth(1).map_or(100_000, |text| text.parse().unwrap());
    let now = Instant::now();
    let mut client = client(now);
    let pool = maps::PoolModel { pg_num: 64, ..maps::PoolModel::replicated() };
    let model = maps::MapModel {
        epoch: 5,
        modified: 0,
        blocklist: BTreeSet::new(),
        flags: 0,
        pools: BTreeMap::from([(1, pool)]),
        osds: (0..OSDS).map(osd).collect(),
        pg_temp: BTreeMap::new(),
        primary_temp: BTreeMap::new(),
        affinities: Vec::new(),
        crush: maps::crush(OSDS),
    };
    let mut servers: BTreeMap<ConnectionId, wire::Server> = BTreeMap::new();
    let (mut came, mut sent, mut left) = (Vec::new(), Vec::new(), reads);
    loop {
        let events = client_turn(&mut client, now, &came, &mut sent, &mut left);
        came.clear();
        let idle = events.is_empty() && sent.is_empty();
        for event in events {
            if let Event::Connect { connection, peer, addr } = event {
                let kind = match peer {
                    Peer::Monitor(_) => EntityType::MON,
                    Peer::Osd(_) => EntityType::OSD,
                };
                let nonce = u32::from(kind == EntityType::OSD);
                let server = wire::Server::new(kind, EntityAddr::msgr2(addr, nonce), 4100);
                servers.insert(connection, server);
                client.connected(now, connection);
            }
        }
        for (connection, pieces) in sent.drain(..) {
            let server = servers.get_mut(&connection).unwrap();
            for message in server.receive(&pieces.concat()) {
                match message.kind {
                    42 => {
                        let request = wire::WireRequest::parse(&message);
                        server.send(request.reply(5, 0, &[7; BLOCK], None));
                    }
                    15 if wire::wanted_osdmaps(&message) == Some(0) => {
                        let whole = BTreeMap::from([(5, model.whole())]);
                        server.send(wire::maps_message(maps::FSID, &BTreeMap::new(), &whole));
                    }
                    19 => server.send(wire::version_reply(&message, 5)),
                    _ => {}
                }
            }
        }
        for (&connection, server) in &mut servers {
            let bytes = server.drain();
            if !bytes.is_empty() {
                came.push((connection, bytes));
            }
        }
        if idle && came.is_empty() {
            break;
        }
    }
    assert_eq!(client.objecter().in_flight(), (0, 0));
    println!("{reads} reads of {BLOCK} bytes, {DEPTH} at a time");
}
