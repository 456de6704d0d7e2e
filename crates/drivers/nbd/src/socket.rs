//! A connected socket: it does not block, and it may speak TLS.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use blockyard_nbd::wire::HeaderStyle;
use blockyard_sys::net::{IoVecs, Watch};
use socket2::{SockRef, TcpKeepalive};
use tokio::sync::Notify;

use crate::commands;
use crate::connect::Target;
use crate::job::Job;
use crate::link::Link;
use crate::sources::{Sources, Step};
use crate::tls::Session;

/// What the kernel buffers for a socket, each way, if it lets us.
const SOCKET_BUFFER: usize = 1 << 20;
/// An idle peer is probed after so long, so that one that has rebooted says so (with a reset).
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Sets a socket up for NBD. What a kind of socket has not is left out.
pub(crate) fn prepare(fd: BorrowedFd<'_>, given_up_after: Option<Duration>) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    socket.set_nonblocking(true)?;
    // Wishes: a socket works without.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(given_up_after);
    Ok(())
}

/// Ends a connection so that nothing more of it leaves this host (`SO_LINGER` with 0 seconds: a reset). The
/// descriptor is closed by its owner, which this makes do it at once.
pub(crate) fn abort(fd: BorrowedFd<'_>) {
    let socket = SockRef::from(&fd);
    // Both fail only where there is no connection any more.
    let _ = socket.set_linger(Some(Duration::ZERO));
    let _ = socket.shutdown(Shutdown::Both);
}

/// Sends nothing more, and tells the peer.
fn half_close(fd: BorrowedFd<'_>) {
    // Fails only where there is no connection any more.
    let _ = SockRef::from(&fd).shutdown(Shutdown::Write);
}

/// A socket, and how the task that waits for it is woken.
pub(crate) struct Socket {
    pub(crate) fd: Watch,
    /// There is something to send that the socket had no room for; or the connection was given up.
    pub(crate) kick: Notify,
}

/// The data path of a socket.
pub(crate) struct Channel {
    pub(crate) socket: Arc<Socket>,
    pub(crate) tls: Option<Box<dyn Session>>,
    /// What it sends of files.
    pub(crate) sources: Sources,
    /// The server at its other end, which may not be the disk's any more.
    pub(crate) target: Arc<Target>,
}

impl Channel {
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd.as_fd()
    }

    /// Receives what there is; says how many bytes came, 0 at the end.
    pub(crate) fn receive<J: Job>(
        &mut self,
        vecs: &mut IoVecs,
        link: &mut Link<J>,
    ) -> io::Result<usize> {
        let (places, bytes) = link.room();
        let fd = self.socket.fd.as_fd();
        if let Some(tls) = &mut self.tls {
            return tls.read(Plain(fd), bytes);
        }
        let mut scatter = vecs.scatter();
        for place in places {
            if scatter.is_full() {
                return scatter.receive(fd);
            }
            scatter.push_segment(place);
        }
        if !scatter.is_full() {
            scatter.push(bytes);
        }
        scatter.receive(fd)
    }

    /// Sends what waits on the connection, as far as it goes without waiting.
    pub(crate) fn send<J: Job>(&mut self, vecs: &mut IoVecs, link: &mut Link<J>) -> io::Result<()> {
        let fd = self.socket.fd.as_fd();
        if let Some(tls) = &mut self.tls {
            return tls.send(Plain(fd), &mut link.messages());
        }
        while link.has_unsent() {
            let (outbox, slots) = link.outbox();
            if let Some((cookie, range)) = outbox.next_range() {
                let step = self.sources.send(cookie, &range, &self.socket);
                link.awaits_source(self.sources.is_reading());
                match step? {
                    Step::Sent(bytes) => link.sent(bytes),
                    Step::Read(read) => link.source_was_read(read),
                }
                continue;
            }
            let mut gather = vecs.gather();
            outbox.fill(slots, &mut gather);
            let sent = gather.send(fd)?;
            if sent == 0 {
                // Or a message whose payload is gone would keep this thread for ever.
                return Err(io::ErrorKind::WriteZero.into());
            }
            link.sent(sent);
        }
        Ok(())
    }

    /// Says goodbye on a connection that was never used.
    pub(crate) fn leave(mut self, style: HeaderStyle) {
        let fd = self.socket.fd.as_fd();
        if let Some(head) = commands::goodbye(style) {
            // There is room in a socket by which nothing was sent, and a server that has left needs no goodbye.
            let _ = match &mut self.tls {
                Some(tls) => tls.write(Plain(fd), &head),
                None => Plain(fd).write(&head),
            };
        }
        self.close();
    }

    /// Ends a connection that both sides are through with.
    pub(crate) fn close(&mut self) {
        let fd = self.socket.fd.as_fd();
        if let Some(tls) = &mut self.tls {
            tls.close(Plain(fd));
        }
        half_close(fd);
    }
}

/// A socket as TLS wants it.
pub(crate) struct Plain<'a>(pub(crate) BorrowedFd<'a>);

impl Read for Plain<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*SockRef::from(&self.0)).read(buf)
    }
}

impl Write for Plain<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        (&*SockRef::from(&self.0)).write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
