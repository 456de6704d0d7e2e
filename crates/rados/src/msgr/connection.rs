//! A client's session, from the first byte to its end.

use super::banner::{BANNER_LEN, Banner};
use super::body::{Rest, Spares};
use super::codec::{Decoder, Encoder};
use super::control::{
    self, AuthBadMethod, AuthDone, AuthRequest, ClientIdent, ConnectionMode, Hello, ServerIdent,
};
use super::frame::{Frame, Tag};
use super::message::{MESSAGE_HEADER_LEN, Message};
use super::secure::ConnectionSecret;
use super::transmit::Transmit;
use crate::encoding::{AddrType, EntityAddr, EntityAddrs, EntityType, Utime};
use crate::error::{Error, ErrorKind, Result};
use crate::features;
use bytes::Bytes;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most bytes of a frame before the session is open.
pub const MAX_HANDSHAKE_FRAME: u64 = 64 << 10;
/// Most bytes of a message; larger ones are skipped. OSDs limit writes to 90 MiB; maps of large clusters have tens of MiB.
pub const MAX_MESSAGE: u64 = 256 << 20;
/// Most bytes of a whole handshake in one direction.
const MAX_HANDSHAKE: usize = 1 << 20;
/// Bytes of a signature.
const SIGNATURE_LEN: usize = 32;

/// What a way to authenticate sends first.
pub type Opening = AuthRequest;

/// What both ends know of each other when the client is authenticated.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    /// The key that signs the handshake; none with the method "none".
    pub session_key: Option<SessionKey>,
    /// The secret of an encrypted connection, if the peer gave one.
    pub connection: Option<ConnectionSecret>,
}

/// A key that signs; it does not print.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionKey(Vec<u8>);

impl SessionKey {
    /// A key of these bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl std::fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionKey")
    }
}

/// The client's side of a way to authenticate, which the connection carries.
pub trait Authenticator {
    /// Starts: what AUTH_REQUEST carries.
    ///
    /// # Errors
    /// If there is nothing to start with, such as a ticket.
    fn start(&mut self, now: Instant) -> Result<Opening>;

    /// Answers AUTH_REPLY_MORE.
    ///
    /// # Errors
    /// If the peer's message is malformed, or no answer is due.
    fn more(&mut self, now: Instant, payload: &[u8]) -> Result<Vec<u8>>;

    /// Takes AUTH_DONE.
    ///
    /// # Errors
    /// If the message is malformed, the key is wrong, or the peer cannot prove that it knows the secret.
    fn done(&mut self, now: Instant, done: &AuthDone) -> Result<Secrets>;

    /// The peer's signature of the handshake is right: what [`done`](Self::done) brought is the peer's.
    fn proved(&mut self) {}

    /// Takes AUTH_BAD_METHOD: another opening, if there is another way that the peer takes.
    ///
    /// # Errors
    /// The refusal, if there is none.
    fn refused(&mut self, now: Instant, refusal: &AuthBadMethod) -> Result<Opening>;
}

/// How an open session finds out that its peer is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// So long after the last byte came, the peer is asked.
    pub interval: Duration,
    /// So long after it was asked, or took the last byte that was sent, the session is over.
    pub timeout: Duration,
}

/// What is due is done this late at most by an owner who is not stalled. One who was stalled has not received what the
/// peer sent meanwhile.
const STALLED: Duration = Duration::from_secs(1);

/// What a connection is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the peer must be.
    pub peer_kind: EntityType,
    /// Where it is.
    pub peer: EntityAddr,
    /// The client's address; none if it is to be learnt from the peer, as a monitor's first connection does.
    pub own: Option<EntityAddr>,
    /// The number that tells this client from others at the same address; not 0.
    pub nonce: u32,
    /// The number that the monitor gave; none before.
    pub global_id: Option<u64>,
    /// The number of this connection of the client's, from 1 on.
    pub global_seq: u64,
    /// Features of messages that the client supports, usually [`features::SUPPORTED`]: peers encode for them.
    pub supported: u64,
    /// How long the handshake may take.
    pub handshake_timeout: Duration,
    /// How a peer that is gone is found out; none if the caller does that.
    pub keepalive: Option<Keepalive>,
}

/// What the handshake brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The client's number in the cluster.
    pub global_id: u64,
    /// The client's address as the peer sees it.
    pub own: EntityAddr,
    /// How frames are protected.
    pub mode: ConnectionMode,
    /// Features of messages that both sides support.
    pub features: u64,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The session is open: messages may be sent.
    Open(Session),
    /// A message came.
    Message(Message),
    /// A message came that is over [`MAX_MESSAGE`]: its header, and how many bytes were not taken.
    TooBig(Message, u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Banner,
    Hello,
    Auth,
    Signature,
    Ident,
    Open,
    Failed,
}

/// A connection. Feed it with [`receive`](Self::receive), send what [`poll_transmit`](Self::poll_transmit) gives, look
/// at [`poll_event`](Self::poll_event), and call [`expire`](Self::expire) when [`deadline`](Self::deadline) has come.
/// After an error it is of no more use.
#[derive(Debug)]
pub struct Connection<A> {
    config: Config,
    auth: A,
    state: State,
    encoder: Encoder,
    decoder: Decoder,
    transmit: Transmit,
    events: VecDeque<Event>,
    /// The bytes of the handshake, either way, which are signed in its end.
    received: Vec<u8>,
    sent: Vec<u8>,
    secrets: Secrets,
    /// The ways to protect the connection that were offered.
    offered: Vec<ConnectionMode>,
    global_id: u64,
    mode: ConnectionMode,
    own: EntityAddr,
    out_seq: u64,
    in_seq: u64,
    started: Instant,
    last_receive: Instant,
    /// Since when the peer owes an answer; or when it showed that it lives by taking bytes.
    asked: Option<Instant>,
}

impl<A: Authenticator> Connection<A> {
    /// A connection whose stream was just opened.
    pub fn new(config: Config, auth: A, now: Instant) -> Self {
        let mut connection = Self {
            auth,
            state: State::Banner,
            encoder: Encoder::new(),
            decoder: Decoder::new(MAX_HANDSHAKE_FRAME),
            transmit: Transmit::default(),
            events: VecDeque::new(),
            received: Vec::new(),
            sent: Vec::new(),
            secrets: Secrets::default(),
            offered: Vec::new(),
            global_id: config.global_id.unwrap_or(0),
            mode: ConnectionMode::CRC,
            own: config.own.unwrap_or_default(),
            out_seq: 0,
            in_seq: 0,
            started: now,
            last_receive: now,
            asked: None,
            config,
        };
        let banner = Banner::OURS.encode();
        connection.sent.extend_from_slice(&banner);
        connection.transmit.copy(&banner);
        connection
    }

    /// Takes memory of large messages from those of other connections too.
    pub(crate) fn share(&mut self, spares: Arc<Spares>) {
        self.decoder.share(spares);
    }

    /// The way to authenticate, with what it learnt.
    pub const fn auth(&self) -> &A {
        &self.auth
    }

    /// The way to authenticate, to renew what it has.
    pub const fn auth_mut(&mut self) -> &mut A {
        &mut self.auth
    }

    /// Takes the way to authenticate out of a connection that is over.
    pub fn into_auth(self) -> A {
        self.auth
    }

    /// Takes bytes of the stream, however they are cut.
    ///
    /// # Errors
    /// A peer that is no Ceph daemon or another one, a broken stream, a refusal: the connection is over.
    pub fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<()> {
        if self.state == State::Failed {
            return Err(Error::new("using a connection that is over", ErrorKind::Reset));
        }
        let result = self.take(now, bytes);
        if result.is_err() {
            self.state = State::Failed;
        }
        result
    }

    /// Lends the body of a large message that comes, so that it is received where it will stay. It is to be
    /// [given back](Self::give_back) before anything else is received.
    pub fn lend(&mut self) -> Option<Rest> {
        if self.state == State::Open { self.decoder.lend() } else { None }
    }

    /// Takes a body back, with what came of it.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    ///
    /// # Panics
    /// If none was lent.
    pub fn give_back(&mut self, now: Instant, rest: Rest) -> Result<()> {
        self.decoder.give_back(rest);
        self.heard(now);
        self.receive(now, &[])
    }

    /// The peer took bytes that had to wait, and thus lives: a question may stand behind many of them.
    pub fn progressed(&mut self, now: Instant) {
        if let Some(asked) = &mut self.asked {
            *asked = now;
        }
    }

    const fn heard(&mut self, now: Instant) {
        self.last_receive = now;
        self.asked = None;
    }

    fn take(&mut self, now: Instant, mut input: &[u8]) -> Result<()> {
        if !input.is_empty() {
            self.heard(now);
        }
        if self.state == State::Banner && !self.take_banner(&mut input)? {
            return Ok(());
        }
        loop {
            let before = input;
            let frame = self.decoder.decode(&mut input)?;
            if matches!(self.state, State::Hello | State::Auth) {
                self.received.extend_from_slice(&before[..before.len() - input.len()]);
                self.check_handshake()?;
            }
            let Some(frame) = frame else { return Ok(()) };
            self.take_frame(now, frame)?;
        }
    }

    fn check_handshake(&self) -> Result<()> {
        let got = self.received.len();
        if got > MAX_HANDSHAKE {
            let (got, limit) = (got as u64, MAX_HANDSHAKE as u64);
            return Err(Error::too_big("authenticating", "bytes of a handshake", got, limit));
        }
        Ok(())
    }

    /// Takes the banner, and says hello when it is whole.
    fn take_banner(&mut self, input: &mut &[u8]) -> Result<bool> {
        let (taken, rest) = input.split_at((BANNER_LEN - self.received.len()).min(input.len()));
        self.received.extend_from_slice(taken);
        *input = rest;
        let Some((banner, _)) = Banner::parse(&self.received)? else { return Ok(false) };
        banner.check()?;
        self.state = State::Hello;
        let hello = Hello { kind: EntityType::CLIENT, receiver: self.config.peer };
        self.send_handshake(&control::frame(Tag::HELLO, &hello));
        Ok(true)
    }

    fn send_frame(&mut self, frame: &Frame) {
        self.encoder.encode(frame, &mut self.transmit);
    }

    /// Sends a frame that is signed in the end of the handshake.
    fn send_handshake(&mut self, frame: &Frame) {
        let mut copy = Transmit::default();
        self.encoder.encode(frame, &mut copy);
        let mut pieces = Vec::new();
        copy.drain(&mut pieces);
        for piece in pieces {
            self.sent.extend_from_slice(&piece);
            self.transmit.push(piece);
        }
    }

    fn take_frame(&mut self, now: Instant, frame: Frame) -> Result<()> {
        match (self.state, frame.tag) {
            (State::Hello, Tag::HELLO) => self.take_hello(now, &frame),
            (State::Auth, Tag::AUTH_REPLY_MORE) => {
                let payload: control::Payload = control::payload("authenticating", &frame)?;
                let answer = control::Payload(self.auth.more(now, &payload.0)?);
                self.send_handshake(&control::frame(Tag::AUTH_REQUEST_MORE, &answer));
                Ok(())
            }
            (State::Auth, Tag::AUTH_BAD_METHOD) => {
                let refusal = control::payload("authenticating", &frame)?;
                let opening = self.auth.refused(now, &refusal)?;
                self.send_opening(opening);
                Ok(())
            }
            (State::Auth, Tag::AUTH_DONE) => self.take_auth_done(now, &frame),
            (State::Signature, Tag::AUTH_SIGNATURE) => self.take_signature(&frame),
            (State::Ident, Tag::SERVER_IDENT) => self.take_server_ident(&frame),
            (State::Ident, Tag::IDENT_MISSING_FEATURES) => {
                let features = control::payload("opening a session", &frame)?;
                let problem = "the peer requires features that this side lacks";
                let kind = ErrorKind::Features { problem, features };
                Err(Error::new("opening a session", kind))
            }
            (State::Open, Tag::MESSAGE) => self.take_message(frame),
            (State::Ident | State::Open, Tag::KEEPALIVE2) => {
                let stamp = control::payload("answering a keepalive", &frame)?;
                self.send_frame(&control::keepalive(Tag::KEEPALIVE2_ACK, stamp));
                Ok(())
            }
            // That bytes came is all that counts; acknowledgements are for sessions that are not lossy.
            (State::Open, Tag::KEEPALIVE2_ACK | Tag::ACK) => Ok(()),
            (_, Tag::SESSION_RESET) => Err(Error::new("receiving", ErrorKind::Reset)),
            (state, tag) => {
                let doing = match state {
                    State::Hello => "greeting",
                    State::Auth | State::Signature => "authenticating",
                    State::Ident => "opening a session",
                    _ => "receiving",
                };
                Err(Error::violation(
                    doing,
                    "a frame of this kind does not belong here",
                    tag.0.into(),
                ))
            }
        }
    }

    fn take_hello(&mut self, now: Instant, frame: &Frame) -> Result<()> {
        let hello: Hello = control::payload("greeting", frame)?;
        if hello.kind != self.config.peer_kind {
            let rule = "the peer is a daemon of another kind than the one that was called";
            return Err(Error::violation("greeting", rule, hello.kind.0.into()));
        }
        if self.config.own.is_none() {
            let mut socket = hello.receiver.socket;
            if let Some(socket) = &mut socket {
                socket.set_port(0);
            }
            self.own = EntityAddr { kind: AddrType::ANY, nonce: self.config.nonce, socket };
        }
        self.state = State::Auth;
        let opening = self.auth.start(now)?;
        self.send_opening(opening);
        Ok(())
    }

    fn send_opening(&mut self, opening: Opening) {
        self.send_handshake(&control::frame(Tag::AUTH_REQUEST, &opening));
        self.offered = opening.modes;
    }

    fn take_auth_done(&mut self, now: Instant, frame: &Frame) -> Result<()> {
        let done: AuthDone = control::payload("authenticating", frame)?;
        if !self.offered.contains(&done.mode) {
            let rule = "a connection is protected in a way that was offered";
            return Err(Error::violation("authenticating", rule, done.mode.0.into()));
        }
        self.secrets = self.auth.done(now, &done)?;
        self.mode = done.mode;
        self.global_id = done.global_id;
        match (done.mode, &self.secrets.connection) {
            (ConnectionMode::CRC, _) => {}
            (ConnectionMode::SECURE, Some(secret)) => {
                self.encoder.secure(secret);
                self.decoder.secure(secret);
            }
            (mode, _) => {
                let rule = "a connection is protected by checksums, or by encryption with a secret";
                return Err(Error::violation("authenticating", rule, mode.0.into()));
            }
        }
        self.state = State::Signature;
        let signature = self.signature(&self.received);
        self.send_frame(&Frame::control(Tag::AUTH_SIGNATURE, signature.to_vec()));
        Ok(())
    }

    /// The code over what was received, which the peer sent; zeroes if there is no key.
    fn signature(&self, bytes: &[u8]) -> [u8; SIGNATURE_LEN] {
        match self.mac() {
            Some(mac) => mac.chain_update(bytes).finalize().into_bytes().into(),
            None => [0; SIGNATURE_LEN],
        }
    }

    fn mac(&self) -> Option<Hmac<Sha256>> {
        let key = self.secrets.session_key.as_ref()?;
        Hmac::<Sha256>::new_from_slice(&key.0).ok()
    }

    fn take_signature(&mut self, frame: &Frame) -> Result<()> {
        let signature = &frame.segments[0][..];
        let right = match self.mac() {
            Some(mac) => mac.chain_update(&self.sent).verify_slice(signature).is_ok(),
            None => signature == [0; SIGNATURE_LEN],
        };
        if !right {
            let kind = ErrorKind::Impostor("wrong signature of the handshake");
            return Err(Error::new("authenticating", kind));
        }
        self.auth.proved();
        self.received = Vec::new();
        self.sent = Vec::new();
        self.state = State::Ident;
        let ident = ClientIdent {
            addrs: EntityAddrs(vec![self.own]),
            target: self.config.peer,
            global_id: self.config.global_id.map_or(-1, u64::cast_signed),
            global_seq: self.config.global_seq,
            supported: self.config.supported,
            required: features::REQUIRED,
            flags: ClientIdent::LOSSY,
            cookie: 0,
        };
        self.send_frame(&control::frame(Tag::CLIENT_IDENT, &ident));
        Ok(())
    }

    fn take_server_ident(&mut self, frame: &Frame) -> Result<()> {
        let ident: ServerIdent = control::payload("opening a session", frame)?;
        let lacking = [
            (
                ident.required & !self.config.supported,
                "the peer requires features that this side lacks",
            ),
            (
                features::REQUIRED & !ident.supported,
                "the peer lacks features that this side requires",
            ),
        ];
        for (features, problem) in lacking {
            if features != 0 {
                let kind = ErrorKind::Features { problem, features };
                return Err(Error::new("opening a session", kind));
            }
        }
        self.state = State::Open;
        self.decoder.skip_beyond(MAX_MESSAGE + MESSAGE_HEADER_LEN as u64);
        self.events.push_back(Event::Open(Session {
            global_id: self.global_id,
            own: self.own,
            mode: self.mode,
            features: ident.supported & self.config.supported,
        }));
        Ok(())
    }

    fn take_message(&mut self, frame: Frame) -> Result<()> {
        let left_out = frame.left_out;
        let (message, seq) = Message::from_frame(frame)?;
        if seq <= self.in_seq {
            return Err(Error::violation("receiving", "messages of a session are numbered", seq));
        }
        self.in_seq = seq;
        self.events.push_back(match left_out {
            0 => Event::Message(message),
            bytes => Event::TooBig(message, bytes),
        });
        Ok(())
    }

    /// Sends a message; gives it back if the session is not open. What was sent counts only when it is answered.
    ///
    /// # Errors
    /// The message.
    pub fn send(&mut self, message: Message) -> std::result::Result<(), Message> {
        if self.state != State::Open {
            return Err(message);
        }
        self.out_seq += 1;
        let frame = message.into_frame(self.out_seq, self.in_seq);
        self.send_frame(&frame);
        Ok(())
    }

    /// Whether messages may be sent.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Whether there are bytes to be sent.
    pub fn has_output(&self) -> bool {
        !self.transmit.is_empty()
    }

    /// How many bytes there are to be sent.
    pub const fn queued(&self) -> usize {
        self.transmit.len()
    }

    /// Moves the bytes that are to be sent to the end of `out`, in order; whether there were any.
    pub fn poll_transmit(&mut self, out: &mut Vec<Bytes>) -> bool {
        self.transmit.drain(out)
    }

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`expire`](Self::expire) is to be called, if no bytes come before.
    pub fn deadline(&self) -> Option<Instant> {
        match (self.state, self.config.keepalive) {
            (State::Failed, _) | (State::Open, None) => None,
            (State::Open, Some(keepalive)) => {
                let silent = self.last_receive + keepalive.interval;
                Some(self.asked.map_or(silent, |asked| asked + keepalive.timeout))
            }
            _ => Some(self.started + self.config.handshake_timeout),
        }
    }

    /// Does what is due: asks a silent peer, or gives it up.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`]: the connection is over.
    pub fn expire(&mut self, now: Instant) -> Result<()> {
        let Some(deadline) = self.deadline().filter(|&deadline| deadline <= now) else {
            return Ok(());
        };
        if self.state == State::Open && self.asked.is_some() && now > deadline + STALLED {
            self.asked = Some(now);
            return Ok(());
        }
        if self.state == State::Open && self.asked.is_none() {
            self.asked = Some(now);
            self.decoder.forget_spares();
            let stamp = Utime::from(now.saturating_duration_since(self.started));
            self.send_frame(&control::keepalive(Tag::KEEPALIVE2, stamp));
            return Ok(());
        }
        let doing = match self.state {
            State::Banner => "waiting for the banner",
            State::Hello => "greeting",
            State::Auth | State::Signature => "authenticating",
            State::Ident => "opening a session",
            State::Open | State::Failed => "waiting for a sign of life",
        };
        self.state = State::Failed;
        Err(Error::new(doing, ErrorKind::TimedOut))
    }
}
