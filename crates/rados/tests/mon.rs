//! The monitors' client, against monitors of the test's own, and against what a real one sent.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]

use blockyard_rados::auth::{Credentials, Identity, MonitorAuth, Random};
use blockyard_rados::encoding::{
    Encode, EntityAddr, EntityAddrs, EntityType, Reader, Writer, encoded,
};
use blockyard_rados::error::ErrorKind;
use blockyard_rados::features;
use blockyard_rados::maps::OsdMap;
use blockyard_rados::mon::{Answer, Config, Event, MonClient, OsdMaps, PoolOp, Request};
use blockyard_rados::msgr::{
    AuthBadMethod, AuthDone, AuthMethod, BANNER_LEN, Banner, ConnectionMode, Decoder, Encoder,
    Frame, Hello, Message, ServerIdent, Tag, Transmit,
};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const CAPTURE: &[u8] = include_bytes!("../testdata/streams/crc-mon.cap");

/// The messages that a real monitor sent.
fn captured() -> Vec<Message> {
    let mut reader = Reader::new("reading test data", CAPTURE);
    let mut bytes = Vec::new();
    while !reader.is_empty() {
        let from_server = reader.u8().unwrap() == 1;
        let record = reader.bytes().unwrap();
        if from_server {
            bytes.extend_from_slice(record);
        }
    }
    frames(&bytes[BANNER_LEN..])
        .into_iter()
        .filter(|frame| frame.tag == Tag::MESSAGE)
        .map(|frame| Message::from_frame(frame).unwrap().0)
        .collect()
}

fn frames(mut bytes: &[u8]) -> Vec<Frame> {
    let mut decoder = Decoder::new(1 << 20);
    std::iter::from_fn(|| decoder.decode(&mut bytes).unwrap()).collect()
}

fn client(now: Instant) -> MonClient {
    client_of(now, 0)
}

fn client_of(now: Instant, seed: u64) -> MonClient {
    let monitors = [1, 2, 3].map(|host| SocketAddr::from(([10, 0, 0, host], 3300))).to_vec();
    let credentials = Credentials {
        identity: Identity::default(),
        key: Err(None),
        methods: vec![AuthMethod::NONE],
    };
    let random = Random::new(|bytes| bytes.fill(1));
    let auth =
        MonitorAuth::new(credentials, vec![ConnectionMode::CRC], vec![EntityType::OSD], random);
    let config = Config { monitors, seed, nonce: 7, supported: features::SUPPORTED };
    MonClient::new(config, auth, now).unwrap()
}

fn bytes(frames: &[Frame]) -> Vec<u8> {
    let (mut transmit, mut pieces) = (Transmit::default(), Vec::new());
    frames.iter().for_each(|frame| Encoder::new().encode(frame, &mut transmit));
    transmit.drain(&mut pieces);
    pieces.concat()
}

fn frame(tag: Tag, payload: &impl Encode) -> Frame {
    Frame::control(tag, encoded(payload))
}

fn greeting() -> Frame {
    let receiver = EntityAddr::msgr2(([10, 0, 0, 9], 40_000).into(), 0);
    frame(Tag::HELLO, &Hello { kind: EntityType::MON, receiver })
}

/// All that a monitor sends until a session is open.
fn handshake() -> Vec<u8> {
    let done = AuthDone { global_id: 4711, mode: ConnectionMode::CRC, payload: vec![] };
    let ident = ServerIdent {
        addrs: EntityAddrs::default(),
        global_id: 0,
        global_seq: 1,
        supported: u64::MAX,
        required: 0,
        flags: 1,
        cookie: 0,
    };
    let signature = Frame::control(Tag::AUTH_SIGNATURE, vec![0; 32]);
    let frames =
        [greeting(), frame(Tag::AUTH_DONE, &done), signature, frame(Tag::SERVER_IDENT, &ident)];
    [Banner::OURS.encode(), bytes(&frames)].concat()
}

fn connect(client: &mut MonClient) -> SocketAddr {
    match client.poll_event() {
        Some(Event::Connect(address)) => address,
        other => panic!("{other:?}"),
    }
}

fn open(client: &mut MonClient, now: Instant) {
    client.connected(now);
    client.receive(now, &handshake()).unwrap();
    assert!(matches!(client.poll_event(), Some(Event::Open(session)) if session.global_id == 4711));
}

/// The messages that the client sent, behind its handshake.
fn sent(client: &mut MonClient, skip: usize) -> Vec<Message> {
    let mut pieces = Vec::new();
    client.poll_transmit(&mut pieces);
    let frames = frames(&pieces.concat()[skip..]).into_iter();
    let messages = frames.filter(|frame| frame.tag == Tag::MESSAGE);
    messages.map(|frame| Message::from_frame(frame).unwrap().0).collect()
}

fn give(client: &mut MonClient, seq: u64, message: Message) {
    client.receive(Instant::now(), &bytes(&[message.into_frame(seq, 0)])).unwrap();
}

#[test]
fn the_maps_of_a_real_monitor_are_read() {
    let now = Instant::now();
    let mut client = client(now);
    connect(&mut client);
    open(&mut client, now);
    client.subscribe("osdmap", 0, false);
    sent(&mut client, BANNER_LEN);
    for (seq, message) in (1..).zip(captured()) {
        give(&mut client, seq, message);
    }
    let mut maps = OsdMaps::default();
    let mut monitors = Vec::new();
    while let Some(event) = client.poll_event() {
        match event {
            Event::MonMap(map) => monitors.push(map),
            Event::OsdMaps(got) => maps = got,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(monitors[0].monitors[0].name, "a");
    assert_eq!(
        monitors[0].monitors[0].addrs.to_string(),
        "[v2:127.0.0.1:3300/0,v1:127.0.0.1:6789/0]"
    );
    assert_eq!((maps.last(), maps.newest), (16, 16));
    let map = OsdMap::decode(&maps.whole[&16]).unwrap();
    assert_eq!((map.epoch(), map.fsid()), (16, monitors[0].fsid));
    // After a break it asks for what follows.
    client.failed(now, None);
    let Some(Event::Failed(..)) = client.poll_event() else { panic!("not told") };
    client.expire(client.deadline().unwrap()).unwrap();
    assert_eq!(connect(&mut client).to_string(), "127.0.0.1:3300", "the monitors of the map");
    open(&mut client, now);
    let mut expected = Writer::new();
    expected.u32(2);
    for (what, start) in [("monmap", 2), ("osdmap", 17)] {
        expected.string(what);
        expected.u64(start);
        expected.u8(0);
    }
    expected.string("");
    let subscribe = &sent(&mut client, BANNER_LEN)[0];
    assert_eq!((subscribe.kind, &subscribe.front[..]), (15, expected.as_slice()));
}

#[test]
fn monitors_are_tried_in_turn_with_more_patience_each_round() {
    let mut now = Instant::now();
    let mut client = client(now);
    let (mut waits, mut tried) = (Vec::new(), Vec::new());
    for _ in 0..9 {
        let address = connect(&mut client);
        tried.push(address);
        let deadline = client.deadline().unwrap();
        waits.push((deadline - now).as_secs());
        now = deadline;
        client.expire(now).unwrap();
        let Some(Event::Failed(failed, error)) = client.poll_event() else { panic!("not told") };
        assert_eq!((failed, error.kind()), (address, &ErrorKind::TimedOut));
        now = client.deadline().unwrap();
        client.expire(now).unwrap();
    }
    assert_eq!(waits, [3, 3, 3, 6, 6, 6, 12, 12, 12]);
    let first: BTreeSet<_> = tried[..3].iter().collect();
    assert!(first.len() == 3 && tried[..3] == tried[3..6] && tried[..3] == tried[6..], "{tried:?}");
}

/// If all clients began with the first monitor, it would have all of them.
#[test]
fn monitors_are_tried_in_an_order_of_chance() {
    let now = Instant::now();
    let firsts: Vec<_> = (0..30).map(|seed| connect(&mut client_of(now, seed))).collect();
    for host in 1..=3 {
        let times = firsts.iter().filter(|it| it.to_string() == format!("10.0.0.{host}:3300"));
        assert!(times.count() >= 4, "{firsts:?}");
    }
}

#[test]
fn what_was_asked_is_asked_again_and_answered_once() {
    let now = Instant::now();
    let mut client = client(now);
    let version = client.ask(Request::GetVersion("osdmap".into())).unwrap();
    let command = r#"{"prefix": "osd dump"}"#.to_owned();
    let command = client.ask(Request::Command { command, input: vec![1, 2].into() }).unwrap();
    let pool = client.ask(Request::Pool { pool: 3, op: PoolOp::CreateUnmanagedSnapshot }).unwrap();
    for _ in 0..2 {
        connect(&mut client);
        open(&mut client, now);
        let messages = sent(&mut client, BANNER_LEN);
        assert_eq!(
            messages.iter().map(|message| message.kind).collect::<Vec<_>>(),
            [15, 19, 50, 49]
        );
        assert_eq!(messages[2].data, [1, 2][..]);
        client.failed(now, None);
        client.poll_event();
        client.expire(now + Duration::from_secs(1)).unwrap();
    }
    connect(&mut client);
    open(&mut client, now);
    let answer = |tid: u64, kind, fill: &dyn Fn(&mut Writer)| {
        let mut writer = Writer::new();
        fill(&mut writer);
        Message { tid, ..Message::new(kind, 1, 1, writer.into_bytes()) }
    };
    let numbers = answer(0, 20, &|w| [version, 56, 1].iter().for_each(|&number| w.u64(number)));
    give(&mut client, 1, numbers.clone());
    give(&mut client, 2, numbers);
    let got = Answer::Version { newest: 56, oldest: 1 };
    assert_eq!(client.poll_event(), Some(Event::Answer(version, got)));
    let ack = answer(command, 51, &|w| {
        w.raw(&[0; 18]);
        w.i32(-22);
        w.string("no");
        w.u32(0);
    });
    give(&mut client, 3, Message { data: vec![9].into(), ..ack });
    let got = Answer::Command { errno: 22, status: "no".into(), output: vec![9].into() };
    assert_eq!(client.poll_event(), Some(Event::Answer(command, got)));
    let reply = answer(pool, 48, &|w| {
        w.raw(&[0; 18 + 16]);
        w.i32(0);
        w.u32(57);
        w.bool(true);
        w.bytes(&[4, 0, 0, 0, 0, 0, 0, 0]);
    });
    give(&mut client, 4, reply);
    let data = vec![4, 0, 0, 0, 0, 0, 0, 0].into();
    assert_eq!(
        client.poll_event(),
        Some(Event::Answer(pool, Answer::Pool { errno: 0, epoch: 57, data }))
    );
    assert_eq!(client.poll_event(), None);
}

#[test]
fn a_refusal_is_final_and_garbage_is_not() {
    let now = Instant::now();
    let mut client = client(now);
    connect(&mut client);
    client.connected(now);
    client.receive(now, b"HTTP/1.1 400 Bad Request").unwrap();
    assert!(matches!(client.poll_event(), Some(Event::Failed(..))), "another one is tried");
    client.expire(now + Duration::from_secs(1)).unwrap();
    connect(&mut client);
    client.connected(now);
    let refusal = AuthBadMethod {
        method: AuthMethod::NONE,
        result: -13,
        methods: vec![AuthMethod::CEPHX],
        modes: vec![ConnectionMode::CRC],
    };
    let frames = bytes(&[greeting(), frame(Tag::AUTH_BAD_METHOD, &refusal)]);
    let error = client.receive(now, &[Banner::OURS.encode(), frames].concat()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Refused { errno: 13, .. }), "{error}");
    assert_eq!(client.deadline(), None);
}

/// A monitor that refuses, and how.
fn refuse(client: &mut MonClient, now: Instant, errno: i32) -> Result<(), blockyard_rados::Error> {
    connect(client);
    client.connected(now);
    let refusal = AuthBadMethod {
        method: AuthMethod::NONE,
        result: -errno,
        methods: vec![AuthMethod::NONE],
        modes: vec![ConnectionMode::CRC],
    };
    let frames = bytes(&[greeting(), frame(Tag::AUTH_BAD_METHOD, &refusal)]);
    client.receive(now, &[Banner::OURS.encode(), frames].concat())
}

/// Waits until the next monitor is due: for how long.
fn pause(client: &mut MonClient, now: &mut Instant) -> Duration {
    let due = client.deadline().unwrap();
    let pause = due - std::mem::replace(now, due);
    client.expire(due).unwrap();
    pause
}

#[test]
fn a_monitor_without_a_quorum_says_nothing_of_keys() {
    const EBUSY: i32 = 16;
    let mut now = Instant::now();
    let mut client = client(now);
    refuse(&mut client, now, EBUSY).unwrap();
    let Some(Event::Failed(_, error)) = client.poll_event() else { panic!("not told") };
    assert!(error.to_string().contains("EBUSY") && !error.to_string().contains("key"), "{error}");
    pause(&mut client, &mut now);
    connect(&mut client);
    open(&mut client, now);
}

/// Keys are changed and changed back, and clocks set: whoever was in once keeps trying.
#[test]
fn no_refusal_is_final_for_one_who_was_in() {
    const EACCES: i32 = 13;
    let mut now = Instant::now();
    let mut client = client(now);
    let question = client.ask(Request::GetVersion("osdmap".into())).unwrap();
    for _ in 0..2 {
        connect(&mut client);
        open(&mut client, now);
        sent(&mut client, BANNER_LEN);
        // No new tickets.
        let mut reply = Writer::new();
        reply.u32(2);
        reply.i32(-EACCES);
        reply.u64(4711);
        reply.u32(0);
        reply.u32(0);
        let reply = Message::new(18, 1, 1, reply.into_bytes()).into_frame(1, 0);
        client.receive(now, &bytes(&[reply])).unwrap();
        assert!(matches!(client.poll_event(), Some(Event::Failed(..))));
        pause(&mut client, &mut now);
        refuse(&mut client, now, EACCES).unwrap();
        assert!(matches!(client.poll_event(), Some(Event::Failed(..))));
        pause(&mut client, &mut now);
    }
    connect(&mut client);
    open(&mut client, now);
    let asked = sent(&mut client, BANNER_LEN);
    assert_eq!((asked[1].kind, question), (19, 1), "what was asked waits");
}

#[test]
fn monitors_whose_sessions_break_at_once_are_not_tried_in_a_hot_loop() {
    let mut now = Instant::now();
    let mut client = client(now);
    let mut pauses = Vec::new();
    for _ in 0..12 {
        connect(&mut client);
        open(&mut client, now);
        // Maps that are cut.
        let maps = Message::new(41, 4, 3, vec![1, 2, 3]).into_frame(1, 0);
        client.receive(now, &bytes(&[maps])).unwrap();
        assert!(matches!(client.poll_event(), Some(Event::Failed(..))));
        pauses.push(pause(&mut client, &mut now));
    }
    assert!(pauses.is_sorted() && pauses[0] < Duration::from_secs(1), "{pauses:?}");
    assert!(pauses[11] >= Duration::from_secs(3), "{pauses:?}");
    connect(&mut client);
    open(&mut client, now);
    now += Duration::from_secs(60);
    client.failed(now, None);
    client.poll_event();
    assert_eq!(pause(&mut client, &mut now), pauses[0], "one that lasted");
}
