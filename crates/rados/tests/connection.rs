//! A connection against a server of the test's own: what may come, what may not, and when.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]

use blockyard_rados::auth::{Credentials, CryptoKey, Identity, MonitorAuth, Random, ServiceAuth};
use blockyard_rados::encoding::{Encode, EntityAddr, EntityAddrs, EntityType, encoded};
use blockyard_rados::error::ErrorKind;
use blockyard_rados::features;
use blockyard_rados::msgr::{
    AuthBadMethod, AuthDone, AuthMethod, Authenticator, Banner, Config, Connection, ConnectionMode,
    Encoder, Event, Frame, Hello, Keepalive, Message, ServerIdent, Tag, Transmit,
};
use bytes::BufMut as _;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

fn peer() -> EntityAddr {
    EntityAddr::msgr2(([10, 0, 0, 1], 3300).into(), 0)
}

fn connection(now: Instant) -> Connection<MonitorAuth> {
    connection_by(now, &[ConnectionMode::SECURE, ConnectionMode::CRC])
}

fn connection_by(now: Instant, modes: &[ConnectionMode]) -> Connection<MonitorAuth> {
    let credentials = Credentials {
        identity: Identity::default(),
        key: Err(None),
        methods: vec![AuthMethod::CEPHX, AuthMethod::NONE],
    };
    let random = Random::new(|bytes| bytes.fill(1));
    let auth = MonitorAuth::new(credentials, modes.to_vec(), vec![EntityType::OSD], random);
    let config = Config {
        peer_kind: EntityType::MON,
        peer: peer(),
        own: None,
        nonce: 5,
        global_id: None,
        global_seq: 1,
        supported: features::SUPPORTED,
        handshake_timeout: 10 * SECOND,
        keepalive: Some(Keepalive { interval: 10 * SECOND, timeout: 20 * SECOND }),
    };
    Connection::new(config, auth, now)
}

fn bytes(frames: &[Frame]) -> Vec<u8> {
    let mut transmit = Transmit::default();
    frames.iter().for_each(|frame| Encoder::new().encode(frame, &mut transmit));
    let mut pieces = Vec::new();
    transmit.drain(&mut pieces);
    pieces.concat()
}

fn frame(tag: Tag, payload: &impl Encode) -> Frame {
    Frame::control(tag, encoded(payload))
}

fn hello(kind: EntityType) -> Frame {
    let receiver = EntityAddr::msgr2(([10, 0, 0, 9], 44_444).into(), 0);
    frame(Tag::HELLO, &Hello { kind, receiver })
}

fn done(mode: ConnectionMode) -> Frame {
    frame(Tag::AUTH_DONE, &AuthDone { global_id: 4107, mode, payload: vec![] })
}

fn signature() -> Frame {
    Frame::control(Tag::AUTH_SIGNATURE, vec![0; 32])
}

fn ident() -> ServerIdent {
    ServerIdent {
        addrs: EntityAddrs(vec![peer()]),
        global_id: 0,
        global_seq: 1,
        supported: u64::MAX,
        required: features::REQUIRED,
        flags: 1,
        cookie: 0,
    }
}

fn handshake() -> Vec<Frame> {
    vec![
        hello(EntityType::MON),
        done(ConnectionMode::CRC),
        signature(),
        frame(Tag::SERVER_IDENT, &ident()),
    ]
}

/// A connection that got a banner and frames.
fn after(frames: &[Frame], now: Instant) -> (Connection<MonitorAuth>, Result<(), ErrorKind>) {
    let mut connection = connection(now);
    let input = [Banner::OURS.encode(), bytes(frames)].concat();
    let result = connection.receive(now, &input).map_err(|error| error.kind().clone());
    (connection, result)
}

fn refused_after(mut frames: Vec<Frame>, last: Frame) -> ErrorKind {
    frames.push(last);
    let (mut connection, result) = after(&frames, Instant::now());
    let again = connection.receive(Instant::now(), b"").unwrap_err();
    assert_eq!(*again.kind(), ErrorKind::Reset, "a connection that failed stays so");
    assert_eq!(connection.deadline(), None);
    result.unwrap_err()
}

#[test]
fn a_session_opens_with_what_was_learnt() {
    let now = Instant::now();
    let (mut connection, result) = after(&handshake(), now);
    result.unwrap();
    let Some(Event::Open(session)) = connection.poll_event() else { panic!("not open") };
    assert_eq!(session.global_id, 4107);
    assert_eq!(session.own.to_string(), "any:10.0.0.9:0/5");
    assert_eq!(session.features, features::SUPPORTED);
    assert_eq!(connection.poll_event(), None);
    let message = Message::new(41, 4, 3, vec![1, 2, 3]);
    connection.receive(now, &bytes(&[message.clone().into_frame(1, 0)])).unwrap();
    let Some(Event::Message(got)) = connection.poll_event() else { panic!("no message") };
    assert_eq!((got.kind, got.front, got.priority), (41, message.front, 127));
}

#[test]
fn a_message_is_given_back_until_the_session_is_open() {
    let mut connection = connection(Instant::now());
    let message = Message::new(15, 3, 1, vec![]);
    assert_eq!(connection.send(message.clone()), Err(message.clone()));
    let mut opened = after(&handshake(), Instant::now()).0;
    assert_eq!(opened.send(message), Ok(()));
}

#[test]
fn what_does_not_belong_here_ends_the_connection() {
    let is_violation = |kind| matches!(kind, ErrorKind::Violation { .. });
    assert!(is_violation(refused_after(vec![], hello(EntityType::OSD))), "another daemon");
    assert!(is_violation(refused_after(vec![], done(ConnectionMode::CRC))), "no greeting");
    assert!(is_violation(refused_after(handshake(), hello(EntityType::MON))), "greets twice");
    assert!(
        is_violation(refused_after(handshake()[..1].into(), done(ConnectionMode::SECURE))),
        "no secret"
    );
    assert!(is_violation(refused_after(handshake(), Frame::control(Tag(21), vec![]))), "unknown");
    assert!(
        is_violation(refused_after(handshake(), Frame::control(Tag::MESSAGE, vec![0; 40]))),
        "short"
    );
    let mut twice = handshake();
    twice.push(Message::new(4, 1, 1, vec![]).into_frame(1, 0));
    assert!(is_violation(refused_after(twice, Message::new(4, 1, 1, vec![]).into_frame(1, 0))));
    let forged = Frame::control(Tag::AUTH_SIGNATURE, vec![1; 32]);
    assert!(matches!(refused_after(handshake()[..2].into(), forged), ErrorKind::Impostor(_)));
    let reset = Frame::control(Tag::SESSION_RESET, vec![1]);
    assert_eq!(refused_after(handshake(), reset), ErrorKind::Reset);
}

#[test]
fn a_peer_does_not_choose_what_was_not_offered() {
    let now = Instant::now();
    let frames = [Banner::OURS.encode(), bytes(&handshake())].concat();
    let mut open = connection_by(now, &[ConnectionMode::CRC]);
    open.receive(now, &frames).unwrap();
    let error = connection_by(now, &[ConnectionMode::SECURE]).receive(now, &frames).unwrap_err();
    assert!(error.to_string().contains("offered"), "{error}");
}

/// Whoever has not signed the handshake is nobody whose word counts.
#[test]
fn a_number_is_taken_over_with_the_signature() {
    let now = Instant::now();
    let (connection, _) = after(&handshake()[..2], now);
    assert_eq!(connection.auth().global_id(), 0);
    let (connection, _) = after(&handshake()[..3], now);
    assert_eq!(connection.auth().global_id(), 4107);
}

/// A monitor that is asked in vain changes nothing about the sessions with OSDs: the client has a key, and the cluster wants
/// none.
#[test]
fn an_attempt_does_not_change_how_services_are_met() {
    let now = Instant::now();
    let key = CryptoKey::from_base64("AQCz4gJrSu1bCxAAvZrvs1ZNw6jjMqeNBdBPUA==").unwrap();
    let credentials = Credentials {
        identity: Identity::default(),
        key: Ok(key),
        methods: vec![AuthMethod::CEPHX, AuthMethod::NONE],
    };
    let modes = vec![ConnectionMode::CRC];
    let random = || Random::new(|bytes| bytes.fill(1));
    let mut auth = MonitorAuth::new(credentials, modes.clone(), vec![EntityType::OSD], random());
    auth.start(now).unwrap();
    let wants_none = AuthBadMethod {
        method: AuthMethod::CEPHX,
        result: -95,
        methods: vec![AuthMethod::NONE],
        modes: modes.clone(),
    };
    auth.refused(now, &wants_none).unwrap();
    auth.done(now, &AuthDone { global_id: 1, mode: modes[0], payload: vec![] }).unwrap();
    auth.proved();
    auth.start(now).unwrap();
    assert!(auth.refused(now, &AuthBadMethod { result: -16, ..wants_none }).is_err());
    let osd = ServiceAuth::new(&auth, EntityType::OSD, modes, random(), now);
    assert_eq!(osd.unwrap().start(now).unwrap().method, AuthMethod::NONE);
}

#[test]
fn features_must_fit_both_ways() {
    let future = 1 << 63;
    for (required, supported, missing) in [(future, u64::MAX, future), (0, 0, features::REQUIRED)] {
        let last = frame(Tag::SERVER_IDENT, &ServerIdent { required, supported, ..ident() });
        let ErrorKind::Features { features, .. } = refused_after(handshake()[..3].into(), last)
        else {
            panic!("taken")
        };
        assert_eq!(features, missing);
    }
    let last = frame(Tag::IDENT_MISSING_FEATURES, &future);
    let error = refused_after(handshake()[..3].into(), last);
    assert!(matches!(error, ErrorKind::Features { features, .. } if features == future));
}

#[test]
fn a_refusal_says_what_the_cluster_wants() {
    let refusal = AuthBadMethod {
        method: AuthMethod::NONE,
        result: -95,
        methods: vec![AuthMethod::CEPHX],
        modes: vec![ConnectionMode::CRC],
    };
    let last = frame(Tag::AUTH_BAD_METHOD, &refusal);
    let kind = refused_after(handshake()[..1].into(), last);
    let ErrorKind::BadParameter { problem, text } = kind else { panic!("{kind:?}") };
    assert!(problem.contains("no key"), "{problem}");
    assert_eq!(text, "client.admin");
    let other = AuthBadMethod { methods: vec![AuthMethod(4)], ..refusal };
    let kind = refused_after(handshake()[..1].into(), frame(Tag::AUTH_BAD_METHOD, &other));
    let reason = "the cluster does not take none, but method 4".to_owned();
    assert_eq!(kind, ErrorKind::Refused { reason, errno: 95 });
}

/// It is no key that is wrong.
#[test]
fn a_refusal_of_all_modes_says_so() {
    let refusal = AuthBadMethod {
        method: AuthMethod::NONE,
        result: -95,
        methods: vec![AuthMethod::NONE, AuthMethod::CEPHX],
        modes: vec![ConnectionMode(4)],
    };
    let kind = refused_after(handshake()[..1].into(), frame(Tag::AUTH_BAD_METHOD, &refusal));
    let reason =
        "connection modes do not match: offered mode 4, wanted secure, crc (ms_mon_client_mode)";
    assert_eq!(kind, ErrorKind::Refused { reason: reason.to_owned(), errno: 95 });
}

#[test]
fn a_handshake_has_a_deadline() {
    let now = Instant::now();
    let (mut connection, _) = after(&handshake()[..2], now);
    assert_eq!(connection.deadline(), Some(now + 10 * SECOND));
    connection.expire(now + 9 * SECOND).unwrap();
    let error = connection.expire(now + 10 * SECOND).unwrap_err();
    assert_eq!(error.to_string(), "authenticating: no answer in time");
}

#[test]
fn a_silent_peer_is_asked_and_then_given_up() {
    let now = Instant::now();
    let (mut connection, _) = after(&handshake(), now);
    connection.poll_transmit(&mut Vec::new());
    assert_eq!(connection.deadline(), Some(now + 10 * SECOND));
    connection.expire(now + 10 * SECOND).unwrap();
    let mut sent = Vec::new();
    assert!(connection.poll_transmit(&mut sent));
    assert_eq!(sent[0][0], Tag::KEEPALIVE2.0);
    let answer = Frame::control(Tag::KEEPALIVE2_ACK, sent[0][32..40].to_vec());
    connection.receive(now + 11 * SECOND, &bytes(&[answer])).unwrap();
    assert_eq!(connection.deadline(), Some(now + 21 * SECOND));
    connection.expire(now + 21 * SECOND).unwrap();
    assert_eq!(connection.deadline(), Some(now + 41 * SECOND));
    let error = connection.expire(now + 41 * SECOND).unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::TimedOut);
}

/// A question may stand behind many bytes, which the peer takes one by one.
#[test]
fn a_peer_that_takes_what_is_sent_lives() {
    let now = Instant::now();
    let (mut connection, _) = after(&handshake(), now);
    connection.expire(now + 10 * SECOND).unwrap();
    for second in (20..200).step_by(10) {
        connection.progressed(now + second * SECOND);
        connection.expire(now + (second + 9) * SECOND).unwrap();
    }
    assert_eq!(connection.deadline(), Some(now + 210 * SECOND));
    let error = connection.expire(now + 210 * SECOND).unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::TimedOut);
}

/// Whoever was stalled has not received what the peer sent meanwhile: also the answer to a question of before.
#[test]
fn a_session_outlives_a_stall_of_its_owner() {
    let now = Instant::now();
    for asked in [false, true] {
        let (mut connection, _) = after(&handshake(), now);
        if asked {
            connection.expire(now + 10 * SECOND).unwrap();
        }
        connection.expire(now + 50 * SECOND).unwrap();
        assert_eq!(connection.deadline(), Some(now + 70 * SECOND));
        let answer = Frame::control(Tag::KEEPALIVE2_ACK, vec![0; 8]);
        connection.receive(now + 51 * SECOND, &bytes(&[answer])).unwrap();
        assert_eq!(connection.deadline(), Some(now + 61 * SECOND));
    }
}

#[test]
fn a_peer_that_asks_is_answered() {
    let now = Instant::now();
    let (mut connection, _) = after(&handshake(), now);
    connection.poll_transmit(&mut Vec::new());
    let stamp = vec![1, 2, 3, 4, 5, 6, 7, 8];
    connection.receive(now, &bytes(&[Frame::control(Tag::KEEPALIVE2, stamp.clone())])).unwrap();
    let mut sent = Vec::new();
    connection.poll_transmit(&mut sent);
    assert_eq!(sent.concat(), bytes(&[Frame::control(Tag::KEEPALIVE2_ACK, stamp)]));
}

#[test]
fn a_large_message_is_received_where_it_stays() {
    let now = Instant::now();
    let (mut connection, _) = after(&handshake(), now);
    connection.poll_event();
    assert!(connection.lend().is_none(), "nothing comes");
    let data: Vec<u8> = (0..=250).cycle().take(200_000).collect();
    let message = Message { data: data.clone().into(), ..Message::new(43, 8, 8, vec![1; 20]) };
    let bytes = bytes(&[message.into_frame(1, 0)]);
    let (begin, mut input) = bytes.split_at(1000);
    connection.receive(now, begin).unwrap();
    let mut seconds = 0;
    while let Some(mut rest) = connection.lend() {
        let (piece, others) = input.split_at(rest.room().remaining_mut().min(90_000));
        rest.room().put_slice(piece);
        input = others;
        seconds += 5;
        connection.give_back(now + seconds * SECOND, rest).unwrap();
        let silent_at = now + (seconds + 10) * SECOND;
        assert_eq!(connection.deadline(), Some(silent_at), "what comes is a sign of life");
    }
    connection.receive(now, input).unwrap();
    let Some(Event::Message(got)) = connection.poll_event() else { panic!("no message") };
    assert!(got.data == data && seconds == 15);
}
