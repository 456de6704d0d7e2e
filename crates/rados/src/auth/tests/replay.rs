//! The whole of captured streams: given the random numbers of the real client, this one sends the same bytes.

use crate::auth::cephx::Challenge;
use crate::auth::key::Usage;
use crate::auth::{Credentials, CryptoKey, Identity, MonitorAuth, Random, ServiceAuth};
use crate::encoding::{EntityAddr, EntityType, Reader};
use crate::error::{Blame, ErrorKind, Result};
use crate::features;
use crate::msgr::{
    AuthBadMethod, AuthDone, AuthMethod, AuthRequest, Authenticator, BANNER_LEN, ClientIdent,
    Config, Connection, ConnectionMode, Decoder, Event, Frame, Hello, Message, Opening, Secrets,
    Session, Tag,
};
use bytes::Bytes;
use std::time::{Duration, Instant};

const KEY: &str = "AQCz4gJrSu1bCxAAvZrvs1ZNw6jjMqeNBdBPUA==";
const MAX: u64 = 1 << 20;

/// A captured stream: who sent what, in order; true for the client.
struct Capture(Vec<(bool, &'static [u8])>);

impl Capture {
    fn new(mut bytes: &'static [u8]) -> Self {
        let mut records = Vec::new();
        while let [direction, a, b, c, d, rest @ ..] = bytes {
            let (record, others) = rest.split_at(u32::from_le_bytes([*a, *b, *c, *d]) as usize);
            records.push((*direction == 0, record));
            bytes = others;
        }
        Self(records)
    }

    fn sent_by(&self, client: bool) -> Vec<u8> {
        self.0
            .iter()
            .filter(|record| record.0 == client)
            .flat_map(|record| record.1)
            .copied()
            .collect()
    }

    /// The frames of the client's handshake, and, if the connection is encrypted, of what follows.
    fn client_frames(&self, secrets: Option<&Secrets>) -> Vec<Frame> {
        let bytes = self.sent_by(true);
        let (mut input, mut decoder) = (&bytes[BANNER_LEN..], Decoder::new(MAX));
        let mut frames = Vec::new();
        while !input.is_empty() {
            if let Some(Secrets { connection: Some(secret), .. }) = secrets
                && frames.len() == 3
            {
                decoder.secure_server(secret);
            }
            match decoder.decode(&mut input) {
                Ok(frame) => frames.extend(frame),
                Err(_) => break,
            }
        }
        frames
    }
}

fn payload<T: crate::encoding::Decode>(frames: &[Frame], tag: Tag) -> T {
    let frame = frames.iter().find(|frame| frame.tag == tag).unwrap();
    Reader::new("testing", &frame.segments[0]).get().unwrap()
}

/// A way to authenticate whose secrets can be looked at.
#[derive(Debug)]
struct Spy<A>(A, Option<Secrets>);

impl<A: Authenticator> Authenticator for Spy<A> {
    fn start(&mut self, now: Instant) -> Result<Opening> {
        self.0.start(now)
    }

    fn more(&mut self, now: Instant, payload: &[u8]) -> Result<Vec<u8>> {
        self.0.more(now, payload)
    }

    fn done(&mut self, now: Instant, done: &AuthDone) -> Result<Secrets> {
        let secrets = self.0.done(now, done)?;
        self.1 = Some(secrets.clone());
        Ok(secrets)
    }

    fn proved(&mut self) {
        self.0.proved();
    }

    fn refused(&mut self, now: Instant, refusal: &AuthBadMethod) -> Result<Opening> {
        self.0.refused(now, refusal)
    }
}

/// Random numbers that were drawn before, and then the same again.
fn drawn(numbers: &[u8]) -> Random {
    let mut numbers = numbers.to_vec();
    Random::new(move |bytes| {
        bytes.copy_from_slice(&numbers[..bytes.len()]);
        numbers.rotate_left(bytes.len());
    })
}

fn credentials(key: Option<&str>) -> Credentials {
    Credentials {
        identity: Identity::client("admin"),
        key: key.map(|key| CryptoKey::from_base64(key).unwrap()).ok_or(None),
        methods: vec![AuthMethod::CEPHX, AuthMethod::NONE],
    }
}

/// What came of a stream.
struct Replayed<A> {
    auth: A,
    secrets: Secrets,
    session: Session,
    sent: Vec<u8>,
    messages: Vec<Message>,
}

/// Runs a connection on the server's bytes, in pieces of `step` bytes, and sends the messages of the real client.
fn replay<A: Authenticator>(
    capture: &Capture,
    auth: A,
    config: Config,
    step: usize,
) -> Result<Replayed<A>> {
    let now = Instant::now();
    let mut connection = Connection::new(config, Spy(auth, None), now);
    let (mut sent, mut messages, mut session) = (Vec::new(), Vec::new(), None);
    let mut client_messages = None;
    for (client, bytes) in &capture.0 {
        if *client && session.is_some() {
            // Of the client's messages, those in this record.
            let queue = client_messages.get_or_insert_with(|| {
                let frames = capture.client_frames(connection.auth().1.as_ref());
                let messages = frames.into_iter().filter(|frame| frame.tag == Tag::MESSAGE);
                messages.collect::<Vec<_>>().into_iter()
            });
            let mut len = 0;
            while len < bytes.len() {
                let (message, _) = Message::from_frame(queue.next().unwrap())?;
                connection.send(message).unwrap();
                len += transmitted(&mut connection, &mut sent);
            }
        } else if !client {
            for piece in bytes.chunks(step) {
                connection.receive(now, piece)?;
                transmitted(&mut connection, &mut sent);
            }
        }
        while let Some(event) = connection.poll_event() {
            match event {
                Event::Open(open) => session = Some(open),
                Event::Message(message) => messages.push(message),
                Event::TooBig(message, bytes) => panic!("{message:?} has {bytes} bytes more"),
            }
        }
    }
    let Spy(auth, secrets) = connection.into_auth();
    Ok(Replayed { auth, secrets: secrets.unwrap(), session: session.unwrap(), sent, messages })
}

fn transmitted<A: Authenticator>(connection: &mut Connection<A>, sent: &mut Vec<u8>) -> usize {
    let mut pieces: Vec<Bytes> = Vec::new();
    connection.poll_transmit(&mut pieces);
    let before = sent.len();
    pieces.iter().for_each(|piece| sent.extend_from_slice(piece));
    sent.len() - before
}

fn config(peer_kind: EntityType, peer: EntityAddr) -> Config {
    Config {
        peer_kind,
        peer,
        own: None,
        nonce: 1,
        global_id: None,
        global_seq: 1,
        supported: features::SUPPORTED,
        handshake_timeout: Duration::from_secs(10),
        keepalive: None,
    }
}

/// The configuration of the real client, out of its HELLO and CLIENT_IDENT.
fn same_config(kind: EntityType, capture: &Capture, secrets: Option<&Secrets>) -> Config {
    let frames = capture.client_frames(secrets);
    let hello: Hello = payload(&frames, Tag::HELLO);
    let mut config = config(kind, hello.receiver);
    if frames.iter().any(|frame| frame.tag == Tag::CLIENT_IDENT) {
        let ident: ClientIdent = payload(&frames, Tag::CLIENT_IDENT);
        config.nonce = ident.addrs.0[0].nonce;
        config.global_id = u64::try_from(ident.global_id).ok();
        config.global_seq = ident.global_seq;
        config.supported = ident.supported;
    }
    config
}

/// A stream with a monitor.
fn monitor(
    capture: &Capture,
    key: Option<&str>,
    mode: ConnectionMode,
    step: usize,
) -> Result<Replayed<MonitorAuth>> {
    let frames = capture.client_frames(None);
    let answer = frames.iter().find(|frame| frame.tag.0 == 5).map(|frame| &frame.segments[0]);
    // u32 length, u16 request, u8 version, u64 challenge; in the end the mask of services
    let challenge = answer.map_or(&[0; 8][..], |answer| &answer[7..15]);
    let wanted = answer.map_or(0, |answer| answer[answer.len() - 4]);
    let kinds = [EntityType::MON, EntityType::OSD, EntityType::MGR];
    let services: Vec<_> = kinds.into_iter().filter(|kind| kind.0 & wanted != 0).collect();
    let auth = || {
        let random = drawn(challenge);
        let mut credentials = credentials(key);
        if key.is_none() {
            credentials.methods = vec![AuthMethod::NONE];
        }
        MonitorAuth::new(credentials, vec![mode], services.clone(), random)
    };
    // Once to learn how the connection is encrypted, which hides the rest of the configuration.
    let config = same_config(EntityType::MON, capture, None);
    let secrets = replay_handshake(capture, auth(), config)?;
    let config = same_config(EntityType::MON, capture, Some(&secrets));
    replay(capture, auth(), config, step)
}

fn replay_handshake<A: Authenticator>(
    capture: &Capture,
    auth: A,
    config: Config,
) -> Result<Secrets> {
    let mut connection = Connection::new(config, Spy(auth, None), Instant::now());
    for byte in capture.sent_by(false) {
        connection.receive(Instant::now(), &[byte])?;
        if connection.auth().1.is_some() {
            break;
        }
    }
    Ok(connection.into_auth().1.unwrap())
}

/// What of an authorizer is encrypted: behind a version, two numbers, and a ticket.
fn sealed(authorizer: &[u8]) -> &[u8] {
    let mut reader = Reader::new("testing", authorizer);
    reader.raw(1 + 8 + 4 + 1 + 8).unwrap();
    reader.bytes().unwrap();
    reader.bytes().unwrap()
}

/// A stream with an OSD, after one with a monitor. The real client's nonce is in its authorizer.
fn osd(
    capture: &Capture,
    monitor: &MonitorAuth,
    mode: ConnectionMode,
    step: usize,
) -> Result<Replayed<ServiceAuth>> {
    let now = Instant::now();
    let frames = capture.client_frames(None);
    let request: AuthRequest = payload(&frames, Tag::AUTH_REQUEST);
    let more = frames.iter().find(|frame| frame.tag.0 == 5).map(|frame| &frame.segments[0][4..]);
    let mut random = vec![0; 8];
    if let (Some(ticket), Some(more)) = (monitor.tickets().get(EntityType::OSD, now), more) {
        let (first, second) = (sealed(&request.payload), sealed(more));
        // CephXAuthorize starts as a challenge does: a version, a number.
        let nonce = ticket.session_key.open::<Challenge>(Usage::Authorize, first).unwrap().unwrap();
        random = nonce.0.to_le_bytes().to_vec();
        for part in [first, second] {
            random.extend(ticket.session_key.confounder(Usage::Authorize, part));
        }
    }
    let auth =
        || ServiceAuth::new(monitor, EntityType::OSD, vec![mode], drawn(&random), now).unwrap();
    let config = same_config(EntityType::OSD, capture, None);
    let secrets = replay_handshake(capture, auth(), config)?;
    let config = same_config(EntityType::OSD, capture, Some(&secrets));
    replay(capture, auth(), config, step)
}

macro_rules! capture {
    ($name:literal) => {
        Capture::new(include_bytes!(concat!("../../../testdata/streams/", $name, ".cap")))
    };
}

fn both_streams(mon: &Capture, osd_capture: &Capture, key: Option<&str>, mode: ConnectionMode) {
    for step in [1, 13, usize::MAX] {
        let with_monitor = monitor(mon, key, mode, step).unwrap();
        assert!(with_monitor.sent == mon.sent_by(true), "to the monitor, step {step}");
        assert_eq!(with_monitor.messages[0].kind, 4, "a monitor starts with its map");
        let with_osd = osd(osd_capture, &with_monitor.auth, mode, step).unwrap();
        assert!(with_osd.sent == osd_capture.sent_by(true), "to the OSD, step {step}");
        assert_eq!(with_osd.session.mode, mode);
        assert_eq!(with_osd.session.global_id, with_monitor.session.global_id);
        assert_eq!(with_osd.session.own.to_string(), with_monitor.session.own.to_string());
        let replies: Vec<_> = with_osd.messages.iter().map(|message| message.kind).collect();
        assert_eq!(replies, [43], "an OSD answers with MOSDOpReply");
        assert_eq!(with_osd.secrets.session_key.is_some(), key.is_some());
    }
}

#[test]
fn with_checksums_the_bytes_are_those_of_a_real_client() {
    both_streams(&capture!("crc-mon"), &capture!("crc-osd"), Some(KEY), ConnectionMode::CRC);
}

#[test]
fn encrypted_the_bytes_are_those_of_a_real_client() {
    both_streams(
        &capture!("secure-mon"),
        &capture!("secure-osd"),
        Some(KEY),
        ConnectionMode::SECURE,
    );
}

#[test]
fn without_keys_the_bytes_are_those_of_a_real_client() {
    both_streams(&capture!("none-mon"), &capture!("none-osd"), None, ConnectionMode::CRC);
}

/// Between a cluster of Ceph 20.2.4, with keys of type 2, and this very client, which the cluster let in.
#[test]
fn with_aes256k_a_cluster_of_ceph_20_is_met() {
    let key = "AgBW8QJrrnP6JyAAAtc4vHZNmSG+Bvc5vyCKQYe4ay33C8VN+Knx0Yl9ijQ=";
    let (mon, osd_capture) = (capture!("aes256k-mon"), capture!("aes256k-osd"));
    let with_monitor = monitor(&mon, Some(key), ConnectionMode::CRC, 17).unwrap();
    assert!(with_monitor.sent == mon.sent_by(true));
    let tickets = format!("{:?}", with_monitor.auth.tickets());
    assert_eq!(tickets.matches("CryptoKey(aes256k)").count(), 2, "{tickets}");
    let with_osd = osd(&osd_capture, &with_monitor.auth, ConnectionMode::CRC, 17).unwrap();
    assert!(with_osd.sent == osd_capture.sent_by(true));
    assert_eq!(with_osd.session.global_id, with_monitor.session.global_id);
}

#[test]
fn a_wrong_key_is_named_with_its_entity() {
    let wrong = "AQCz4gJrSu1bCxAAvZrvs1ZNw6jjMqeNBdBPUQ==";
    let error = monitor(&capture!("crc-mon"), Some(wrong), ConnectionMode::CRC, 100).err().unwrap();
    let entity = "client.admin".to_owned();
    assert_eq!(*error.kind(), ErrorKind::WrongKey { entity, what: "a ticket" });
    assert_eq!(error.blame(), Blame::User);
}

#[test]
fn an_answer_to_another_nonce_is_refused() {
    let monitor = monitor(&capture!("crc-mon"), Some(KEY), ConnectionMode::CRC, 100).unwrap().auth;
    let capture = capture!("crc-osd");
    let auth = ServiceAuth::new(
        &monitor,
        EntityType::OSD,
        vec![ConnectionMode::CRC],
        drawn(&[7; 8]),
        Instant::now(),
    );
    let config = same_config(EntityType::OSD, &capture, None);
    let error = replay_handshake(&capture, auth.unwrap(), config).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Impostor(_)), "{error}");
}

#[test]
fn tickets_end_and_are_renewed_before() {
    let mut auth = monitor(&capture!("crc-mon"), Some(KEY), ConnectionMode::CRC, 100).unwrap().auth;
    let hour = Duration::from_secs(3600);
    let now = Instant::now();
    assert!(auth.renewal(now).is_none());
    let renew = auth.renew_after().unwrap();
    assert!(renew > now + hour / 2 && renew < now + hour);
    auth.doubt(EntityType::OSD, now);
    assert!(auth.renewal(now).is_none(), "it is very new");
    let doubted = now + Duration::from_secs(60);
    auth.doubt(EntityType::OSD, doubted);
    assert!(auth.renew_after().unwrap() <= doubted);
    assert!(auth.renewal(doubted).is_some(), "an OSD does not take it");
    let request = auth.renewal(renew).unwrap();
    assert_eq!(
        request[..2],
        0x0200_u16.to_le_bytes(),
        "tickets of services, shown that of the session"
    );
    let new = |now| ServiceAuth::new(&auth, EntityType::OSD, vec![], drawn(&[1; 8]), now);
    assert!(new(renew).is_ok());
    let error = new(now + 2 * hour).unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::NoTicket("osd"));
}
