//! Hostile maps and OSDs: what monitors send of maps, and what an OSD sends, to a client with operations and a watch. Nothing
//! leads it round in circles, and what it keeps is bounded. The checksums of maps are made right here, as no fuzzer would
//! guess them.
//!
//! Records of a byte that says what it is, a u16 length, and as many bytes.
#![no_main]

use blockyard_rados::auth::{Credentials, Identity, MonitorAuth, Random, ServiceAuth};
use blockyard_rados::encoding::{AddrType, EntityAddr, EntityType, Fsid, ObjectLocator};
use blockyard_rados::mon::OsdMaps;
use blockyard_rados::msgr::{AuthMethod, ConnectionMode, Session, ceph_crc32c};
use blockyard_rados::objecter::{Addressed, Config, ConnectionId, Event, Objecter, ShareId};
use blockyard_rados::osd::{Op, OpFlags, OsdRequest};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Bytes of version, compatible version, length.
const HEADER: usize = 6;
const SEED: u32 = u32::MAX;
/// Most events of one map: one for each of its changes, and some for each operation.
const MAX_EVENTS: usize = 10_000;

/// A map with the checksum that belongs to it, if it has a place for one.
fn repaired(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut at = HEADER;
    for _ in 0..2 {
        let length = bytes.get(at + 2..at + HEADER)?;
        at = at
            .checked_add(HEADER)?
            .checked_add(u32::from_le_bytes(length.try_into().ok()?) as usize)?;
    }
    let (front, tail) = (bytes.get(..at)?, bytes.get(at + 4..)?);
    let crc = ceph_crc32c(ceph_crc32c(SEED, front), tail);
    Some([front, &crc.to_le_bytes(), tail].concat())
}

fn auth(now: Instant) -> ServiceAuth {
    let credentials = Credentials {
        identity: Identity::default(),
        key: Err(None),
        methods: vec![AuthMethod::NONE],
    };
    let random = || Random::new(|bytes| bytes.fill(3));
    let modes = vec![ConnectionMode::CRC];
    let mut auth = MonitorAuth::new(credentials, modes.clone(), vec![EntityType::OSD], random());
    let done = blockyard_rados::msgr::AuthDone { global_id: 1, mode: modes[0], payload: vec![] };
    use blockyard_rados::msgr::Authenticator as _;
    auth.start(now).expect("the method none");
    auth.done(now, &done).expect("the method none");
    auth.proved();
    ServiceAuth::new(&auth, EntityType::OSD, modes, random(), now).expect("no ticket is needed")
}

struct Client {
    objecter: Objecter,
    now: Instant,
    connections: Vec<ConnectionId>,
    usable: u32,
}

impl Client {
    /// Does what the machine says.
    fn obey(&mut self) {
        let own = EntityAddr { kind: AddrType::ANY, nonce: 1, socket: None };
        let session = Session { global_id: 1, own, mode: ConnectionMode::CRC, features: 0 };
        let mut events = 0;
        while let Some(event) = self.objecter.poll_event() {
            events += 1;
            assert!(events < MAX_EVENTS, "it has no end");
            match event {
                Event::Connect { connection, .. } => {
                    self.connections.push(connection);
                    self.objecter.connected(self.now, connection, auth(self.now), &session);
                }
                // A map that cannot be used may be given up for an older one, but for none before the last that could.
                Event::Map(epoch) => {
                    assert!(epoch >= self.usable, "a map leads back");
                    self.usable = epoch;
                }
                Event::Close(connection) => self.connections.retain(|&it| it != connection),
                _ => {}
            }
        }
        let mut out = Vec::new();
        while self.objecter.poll_transmit(&mut out).is_some() {
            out.clear();
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let now = Instant::now();
    let mut client = Client {
        objecter: Objecter::new(Config::default()),
        now,
        connections: Vec::new(),
        usable: 0,
    };
    let locator = ObjectLocator::new(1, "");
    for object in ["a", "b"] {
        let request = OsdRequest::new(locator.clone(), object, vec![Op::read(0, 10)]);
        client.objecter.submit(now, request, None).expect("there is room");
    }
    let watched = Addressed {
        locator: &locator,
        object: b"a",
        flags: OpFlags::empty(),
        share: ShareId::default(),
    };
    client.objecter.watch(now, &watched, None, None).expect("there is room");
    let mut rest = data;
    while let Some((&[kind, a, b], more)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_le_bytes([a, b])).min(more.len());
        let (record, others) = more.split_at(len);
        rest = others;
        let epoch = u32::from(kind >> 2);
        let Some(map) = repaired(record).filter(|_| kind & 3 < 2) else {
            if let Some(&connection) = client.connections.first() {
                client.objecter.receive(client.now, connection, record);
            }
            client.now += Duration::from_secs(u64::from(kind & 1) * 11);
            client.objecter.expire(client.now);
            client.obey();
            continue;
        };
        // The cluster's number, and the epoch: what a real one says, or what chance does.
        let fsid = map.get(2 * HEADER..2 * HEADER + 16).and_then(|fsid| fsid.try_into().ok());
        let said = map.get(2 * HEADER + 16..2 * HEADER + 20).and_then(|at| at.try_into().ok());
        let said = if epoch == 0 { said.map_or(0, u32::from_le_bytes) } else { epoch };
        let maps = BTreeMap::from([(said, map.into())]);
        let (changes, whole) =
            if kind & 1 == 1 { (maps, BTreeMap::new()) } else { (BTreeMap::new(), maps) };
        let maps =
            OsdMaps { fsid: Fsid(fsid.unwrap_or_default()), changes, whole, oldest: 0, newest: 0 };
        let _may_be_unusable = client.objecter.take_maps(client.now, &maps);
        client.obey();
    }
});
