//! TLS with pre-shared keys, by OpenSSL: rustls has none.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use blockyard_nbd::psk::{self, MAX_FILE, Records, SUITES};
use blockyard_nbd::uri::Uri;
use openssl::error::ErrorStack;
use openssl::ssl::{
    self, ErrorCode, Ssl, SslContext, SslMethod, SslMode, SslSessionCacheMode, SslStream,
    SslVerifyMode, SslVersion,
};

use super::{RECORD_LEN, SEND_BUFFER, Session};
use crate::error::{Error, ErrorKind};
use crate::outbox::Unsent;
use crate::socket::Plain;

/// Of TLS 1.2: with forward secrecy, as GnuTLS and OpenSSL have them too. None with DHE: a server could have us raise large
/// numbers of its choice to large powers before it has shown that it knows the key.
const OLD_SUITES: &str = "ECDHE-PSK-CHACHA20-POLY1305:\
    ECDHE-PSK-AES256-CBC-SHA384:ECDHE-PSK-AES128-CBC-SHA256";

/// What sessions with a server are made from: the user and the key.
#[derive(Clone, Debug)]
pub(crate) struct Setup(SslContext);

impl Setup {
    /// Reads the key of the user that the URI names, or else of who runs this.
    pub(super) fn load(uri: &Uri, file: &Path) -> Result<Self, Error> {
        let bad = |problem: String| {
            let path = file.display();
            let what = format!("invalid file of pre-shared keys {path}: {problem}");
            Error::new(ErrorKind::Tls, what)
        };
        let user = uri.user.clone().or_else(|| std::env::var("USER").ok()).ok_or_else(|| {
            let what = "TLS with pre-shared keys needs a user: nbds://USER@...";
            Error::new(ErrorKind::Config, what)
        })?;
        let text = read(file).map_err(|err| bad("cannot read the file".into()).caused_by(err))?;
        let mut keys = psk::parse(&text).map_err(|wrong| bad(wrong.to_string()))?;
        let key = keys.remove(user.as_bytes()).ok_or_else(|| {
            bad(format!("no user {user:?}; create a key: psktool -u USER -p FILE"))
        })?;
        let context = context(user, key)
            .map_err(|err| Error::new(ErrorKind::Tls, "cannot set up TLS").caused_by(err))?;
        Ok(Self(context))
    }

    pub(super) fn session(&self) -> Result<Box<dyn Session>, Error> {
        let made = Ssl::new(&self.0).and_then(|mut session| {
            session.set_connect_state();
            SslStream::new(session, Records::default())
        });
        let stream =
            made.map_err(|err| Error::new(ErrorKind::Tls, "cannot set up TLS").caused_by(err))?;
        Ok(Box::new(Keyed { stream, record: vec![0; RECORD_LEN] }))
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut text)?;
    Ok(text)
}

fn context(user: String, key: Vec<u8>) -> Result<SslContext, ErrorStack> {
    let mut context = SslContext::builder(SslMethod::tls_client())?;
    context.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    context.set_ciphersuites(SUITES)?;
    context.set_cipher_list(OLD_SUITES)?;
    // Nobody's certificate is trusted: a server that has not the key may not get by with one.
    context.set_verify(SslVerifyMode::PEER);
    context.set_mode(SslMode::RELEASE_BUFFERS);
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    context.set_psk_client_callback(move |_session, _hint, user_room, key_room| {
        let (Some(user_room), Some(key_room)) =
            (user_room.get_mut(..=user.len()), key_room.get_mut(..key.len()))
        else {
            // There is no key then.
            return Ok(0);
        };
        user_room[..user.len()].copy_from_slice(user.as_bytes());
        user_room[user.len()] = 0;
        key_room.copy_from_slice(&key);
        Ok(key.len())
    });
    Ok(context.build())
}

struct Keyed {
    stream: SslStream<Records>,
    record: Vec<u8>,
}

impl Keyed {
    /// Why it ends, after the alert that tells the server.
    fn broken(&mut self, socket: &mut Plain<'_>, err: &ssl::Error) -> io::Error {
        let _ = self.stream.get_mut().send(socket);
        let first = err.ssl_error().and_then(|stack| stack.errors().first());
        let reason = first.and_then(|error| error.reason());
        io::Error::new(
            io::ErrorKind::InvalidData,
            reason.map_or_else(|| err.to_string(), str::to_owned),
        )
    }

    /// Receives records, after all others were taken; none at the end.
    fn receive(&mut self, socket: &mut Plain<'_>) -> io::Result<usize> {
        let records = self.stream.get_mut();
        // Answers to what is no data, which this server makes us give and does not take.
        if records.unsent() > 2 * SEND_BUFFER {
            let what = "the server does not read key updates";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        records.receive(socket)
    }

    fn encrypt(&mut self, socket: &mut Plain<'_>, len: usize) -> io::Result<usize> {
        match self.stream.ssl_write(&self.record[..len]) {
            Ok(taken) => Ok(taken),
            Err(err) => Err(self.broken(socket, &err)),
        }
    }
}

impl Session for Keyed {
    fn shake(&mut self, mut socket: Plain<'_>) -> io::Result<()> {
        loop {
            let shaken = self.stream.do_handshake();
            let Err(err) = shaken else { return self.stream.get_mut().send(&mut socket) };
            if err.code() != ErrorCode::WANT_READ {
                return Err(self.broken(&mut socket, &err));
            }
            self.stream.get_mut().send(&mut socket)?;
            if self.receive(&mut socket)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn wants_write(&self) -> bool {
        self.stream.get_ref().unsent() > 0
    }

    fn read(&mut self, mut socket: Plain<'_>, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.ssl_read(buf) {
                Ok(len) => return Ok(len),
                Err(err) if err.code() == ErrorCode::ZERO_RETURN => return Ok(0),
                Err(err) if err.code() != ErrorCode::WANT_READ => {
                    return Err(self.broken(&mut socket, &err));
                }
                Err(_) => {}
            }
            // As with certificates: every message says how long it is, so that none can be cut short unseen.
            if self.receive(&mut socket)? == 0 {
                return Ok(0);
            }
        }
    }

    fn write(&mut self, mut socket: Plain<'_>, bytes: &[u8]) -> io::Result<usize> {
        self.stream.get_mut().send(&mut socket)?;
        let len = bytes.len().min(self.record.len());
        self.record[..len].copy_from_slice(&bytes[..len]);
        let taken = self.encrypt(&mut socket, len)?;
        match self.stream.get_mut().send(&mut socket) {
            Err(err) if err.kind() != io::ErrorKind::WouldBlock => Err(err),
            _ => Ok(taken),
        }
    }

    fn send(&mut self, mut socket: Plain<'_>, unsent: &mut dyn Unsent) -> io::Result<()> {
        loop {
            self.stream.get_mut().send(&mut socket)?;
            let len = unsent.copy_to(&mut self.record);
            if len == 0 {
                return Ok(());
            }
            let taken = self.encrypt(&mut socket, len)?;
            unsent.advance(taken);
        }
    }

    fn close(&mut self, mut socket: Plain<'_>) {
        // Whoever has left does not hear it.
        let _ = self.stream.shutdown();
        let _ = self.stream.get_mut().send(&mut socket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cipher suites of the first message (RFC 5246, section 7.4.1.2).
    fn offered() -> Vec<u16> {
        let mut session = Ssl::new(&context("alice".into(), vec![7; 32]).unwrap()).unwrap();
        session.set_connect_state();
        let mut stream = SslStream::new(session, Records::default()).unwrap();
        assert_eq!(stream.do_handshake().unwrap_err().code(), ErrorCode::WANT_READ);
        let mut hello = Vec::new();
        stream.get_mut().send(&mut hello).unwrap();
        // Behind the headers of record and handshake, version and random bytes: the session, then the suites.
        let rest = &hello[5 + 4 + 2 + 32..];
        let rest = &rest[1 + usize::from(rest[0])..];
        let len = usize::from(u16::from_be_bytes([rest[0], rest[1]]));
        rest[2..2 + len].chunks(2).map(|suite| u16::from_be_bytes([suite[0], suite[1]])).collect()
    }

    #[test]
    fn nothing_is_offered_that_takes_a_servers_large_numbers() {
        let offered = offered();
        // RFC 5487 and RFC 7905: DHE_PSK.
        for suite in [0x00aa, 0x00ab, 0x00b2, 0x00b3, 0xccad] {
            assert!(!offered.contains(&suite), "{suite:#x} in {offered:x?}");
        }
        // RFC 7905 and RFC 5489: what a server without TLS 1.3 takes, GnuTLS for one.
        assert!(offered.contains(&0xccac) && offered.contains(&0xc037), "{offered:x?}");
    }
}
