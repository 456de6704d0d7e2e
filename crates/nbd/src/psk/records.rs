//! TLS records between OpenSSL and a socket that does not block.

use std::io::{self, Read, Write};

/// Bytes that are received at a time: the longest TLS record and its header.
const RECEIVE: usize = (16 << 10) + 512;

/// The socket as OpenSSL sees it: memory, which is filled and emptied when the socket can.
#[derive(Debug)]
pub struct Records {
    input: Box<[u8]>,
    /// What of it was received and not taken yet: from here,
    taken: usize,
    /// to here.
    received: usize,
    output: Vec<u8>,
    /// Bytes of it that the socket has.
    sent: usize,
}

impl Default for Records {
    fn default() -> Self {
        let input = vec![0; RECEIVE].into_boxed_slice();
        Self { input, taken: 0, received: 0, output: Vec::new(), sent: 0 }
    }
}

impl Records {
    /// Bytes that wait for room in the socket.
    #[must_use]
    pub const fn unsent(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Receives once, after all was taken; says how many bytes, 0 at the end.
    ///
    /// # Errors
    /// What the socket says.
    pub fn receive(&mut self, mut socket: impl Read) -> io::Result<usize> {
        debug_assert_eq!(self.taken, self.received, "records that were not looked at");
        let len = socket.read(&mut self.input)?;
        (self.taken, self.received) = (0, len);
        Ok(len)
    }

    /// Sends what OpenSSL has written, as far as it goes.
    ///
    /// # Errors
    /// What the socket says; that it would block, too.
    pub fn send(&mut self, mut socket: impl Write) -> io::Result<()> {
        while self.unsent() > 0 {
            self.sent += socket.write(&self.output[self.sent..])?;
        }
        self.output.clear();
        self.sent = 0;
        Ok(())
    }
}

impl Read for Records {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.received {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let len = (&self.input[self.taken..self.received]).read(buf)?;
        self.taken += len;
        Ok(len)
    }
}

impl Write for Records {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.output.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
