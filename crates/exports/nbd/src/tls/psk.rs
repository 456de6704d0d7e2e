//! TLS with pre-shared keys, by OpenSSL: rustls has none.

use std::io;
use std::path::Path;
use std::sync::Arc;

use blockyard_nbd::certificates::UsedFiles;
use blockyard_nbd::psk::{Keys, Records, SUITES};
use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::ssl::{
    self, ErrorCode, Ssl, SslContext, SslMethod, SslMode, SslOptions, SslRef, SslSessionCacheMode,
    SslStream, SslVersion,
};
use parking_lot::Mutex;
use socket2::Socket;

use super::psk_file;
use super::renewal::Setup;
use super::{Engine, Moved, SEND_BUFFER, Session};
use crate::error::{Error, ErrorKind};

/// Of TLS 1.2, the best first: those with forward secrecy, as GnuTLS, too, has them; then those without. None with DHE: a
/// client that knows no key could have the server raise large numbers to large powers.
const OLD_SUITES: &str = "ECDHE-PSK-CHACHA20-POLY1305:\
    ECDHE-PSK-AES256-CBC-SHA384:ECDHE-PSK-AES128-CBC-SHA256:\
    PSK-AES256-GCM-SHA384:PSK-AES128-GCM-SHA256:PSK-CHACHA20-POLY1305";

/// Sessions with the users of a file.
struct Psk {
    context: SslContext,
    /// Where a session keeps who it is with.
    peer: Index<Ssl, Peer>,
}

/// Whom a client says that it is.
struct Peer {
    user: String,
    known: bool,
}

pub(super) fn load(path: &Path) -> Result<Setup, Error> {
    let keys = psk_file::load(path)?;
    let psk = Psk::new(keys)
        .map_err(|err| Error::new(ErrorKind::Tls, "cannot set up TLS").caused_by(err))?;
    Ok(Setup { engine: Arc::new(psk), used: UsedFiles::default() })
}

/// Where sessions keep who they are with: one place for all, as it is never given back.
fn peer_index() -> Result<Index<Ssl, Peer>, ErrorStack> {
    static PEER: Mutex<Option<Index<Ssl, Peer>>> = Mutex::new(None);
    let mut peer = PEER.lock();
    match *peer {
        Some(index) => Ok(index),
        None => Ok(*peer.insert(Ssl::new_ex_index()?)),
    }
}

impl Psk {
    fn new(keys: Keys) -> Result<Self, ErrorStack> {
        let peer = peer_index()?;
        let mut context = SslContext::builder(SslMethod::tls_server())?;
        context.set_min_proto_version(Some(SslVersion::TLS1_2))?;
        context.set_ciphersuites(SUITES)?;
        context.set_cipher_list(OLD_SUITES)?;
        context.set_options(
            SslOptions::CIPHER_SERVER_PREFERENCE
                | SslOptions::NO_RENEGOTIATION
                | SslOptions::NO_TICKET,
        );
        context.set_mode(SslMode::RELEASE_BUFFERS);
        // Whoever comes again shows its key again.
        context.set_session_cache_mode(SslSessionCacheMode::OFF);
        context.set_num_tickets(0)?;
        let mut nobodys_key = [0; 32];
        openssl::rand::rand_bytes(&mut nobodys_key)?;
        context.set_psk_server_callback(move |session, user, room| {
            let user = user.unwrap_or_default();
            Ok(find_key(&keys, &nobodys_key, session, peer, user, room))
        });
        Ok(Self { context: context.build(), peer })
    }
}

/// Puts the key of a user into `room`; says how long it is. Who is unknown gets a key that nobody has: so it fails as
/// a wrong key does, and nobody learns who is known.
fn find_key(
    keys: &Keys,
    nobodys_key: &[u8],
    session: &mut SslRef,
    peer: Index<Ssl, Peer>,
    user: &[u8],
    room: &mut [u8],
) -> usize {
    let key = keys.get(user).filter(|key| key.len() <= room.len());
    let user = String::from_utf8_lossy(user).into_owned();
    session.set_ex_data(peer, Peer { user, known: key.is_some() });
    let key = key.map_or(nobodys_key, Vec::as_slice);
    room[..key.len()].copy_from_slice(key);
    key.len()
}

impl Engine for Psk {
    fn session(&self) -> io::Result<Box<dyn Session>> {
        let mut session = Ssl::new(&self.context)?;
        session.set_accept_state();
        let stream = SslStream::new(session, Records::default())?;
        Ok(Box::new(PskSession { stream, peer: self.peer, moved: Moved::default() }))
    }
}

struct PskSession {
    stream: SslStream<Records>,
    peer: Index<Ssl, Peer>,
    moved: Moved,
}

impl PskSession {
    /// Why it ends, after the alert that tells the client.
    fn broken(&mut self, socket: &Socket, err: &ssl::Error) -> io::Error {
        let _ = self.stream.get_mut().send(socket);
        invalid(reason(err))
    }

    /// Receives records, after all others were taken. Says whether there may be more of them.
    fn receive(&mut self, socket: &Socket) -> io::Result<bool> {
        let records = self.stream.get_mut();
        // Answers to what is no data, which this client makes the server give and does not take.
        if records.unsent() > 2 * SEND_BUFFER {
            return Err(invalid("the client does not read key updates".into()));
        }
        let received = records.receive(socket)?;
        self.moved.received |= received > 0;
        Ok(received > 0)
    }

    fn send(&mut self, socket: &Socket) -> io::Result<()> {
        let records = self.stream.get_mut();
        let before = records.unsent();
        let sent = records.send(socket);
        self.moved.sent |= records.unsent() < before;
        sent
    }
}

impl Session for PskSession {
    fn wants_write(&self) -> bool {
        self.stream.get_ref().unsent() > 0
    }

    fn shake(&mut self, socket: &Socket) -> io::Result<()> {
        loop {
            let shaken = self.stream.do_handshake();
            let Err(err) = shaken else { return self.flush(socket) };
            if err.code() != ErrorCode::WANT_READ {
                let broken = self.broken(socket, &err);
                return Err(match self.stream.ssl().ex_data(self.peer) {
                    Some(Peer { user, known: false }) => invalid(format!("no user {user:?}")),
                    Some(Peer { user, .. }) => {
                        invalid(format!("wrong key of user {user:?}: {broken}"))
                    }
                    None => broken,
                });
            }
            self.flush(socket)?;
            if !self.receive(socket)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn read(&mut self, socket: &Socket, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.ssl_read(buf) {
                Ok(len) => return Ok(len),
                Err(err) if err.code() == ErrorCode::ZERO_RETURN => return Ok(0),
                Err(err) if err.code() != ErrorCode::WANT_READ => {
                    return Err(self.broken(socket, &err));
                }
                Err(_) => {}
            }
            // As with certificates: a client may leave without a goodbye.
            if !self.receive(socket)? {
                return Ok(0);
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() || self.stream.get_ref().unsent() >= SEND_BUFFER {
            return Ok(0);
        }
        self.stream.ssl_write(bytes).map_err(|err| invalid(reason(&err)))
    }

    fn flush(&mut self, socket: &Socket) -> io::Result<()> {
        self.send(socket)
    }

    fn take_moved(&mut self) -> Moved {
        std::mem::take(&mut self.moved)
    }

    fn close(&mut self, socket: &Socket) {
        // Whoever has left does not hear it.
        let _ = self.stream.shutdown();
        let _ = self.flush(socket);
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// What OpenSSL says, without its places in its source.
fn reason(err: &ssl::Error) -> String {
    let first = err.ssl_error().and_then(|stack| stack.errors().first());
    first.and_then(|error| error.reason()).map_or_else(|| err.to_string(), str::to_owned)
}
