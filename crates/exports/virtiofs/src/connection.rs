//! What was agreed upon with a guest, from its INIT to its DESTROY, its next INIT, or its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blockyard_fs::{Answers, FileSystem, greet, put};
use blockyard_fuse::wire::Opcode;
use blockyard_fuse::{Errno, Operation, Protocol, Reply, Request};
use parking_lot::Mutex;

use crate::exchange::Exchange;

/// Pages of a guest, as far as lengths are told in pages: its driver counts in its own, which are no smaller.
const PAGE_BYTES: u32 = 4096;
/// Bytes of the longest READ: that of a guest with pages of 64 KiB.
const MAX_READ_BYTES: u32 = 16 << 20;

/// One guest at a time: one that begins anew, as after a reboot, is another.
pub struct Connection {
    fs: Arc<dyn FileSystem>,
    agreed: Mutex<Option<Protocol>>,
    /// How often that has changed.
    changes: AtomicU64,
}

impl Connection {
    /// With nobody yet.
    #[must_use]
    pub fn new(fs: Arc<dyn FileSystem>) -> Self {
        Self { fs, agreed: Mutex::new(None), changes: AtomicU64::new(0) }
    }

    /// The guest is gone, with all that it knew.
    pub(crate) fn reset(&self) {
        self.agree(None);
    }

    fn agree(&self, protocol: Option<Protocol>) {
        let mut agreed = self.agreed.lock();
        // Nobody asks for files of the guest before, nor keeps any open.
        self.fs.reset();
        *agreed = protocol;
        self.changes.fetch_add(1, Ordering::Release);
    }

    fn begin(&self, head: &[u8], answer: &mut Vec<u8>) -> Result<(), Errno> {
        let request = Request::parse(head, 0, &Protocol::NONE);
        let request = request.map_err(|rejected| rejected.error.errno())?;
        let Operation::Init(client) = request.operation else { return Err(Errno::EIO) };
        let unique = request.header.unique;
        match greet(self.fs.flags(), unique, &client, PAGE_BYTES, answer) {
            Ok(protocol) => {
                let agreed = protocol.map(|mut protocol| {
                    protocol.limits.max_read = MAX_READ_BYTES;
                    protocol
                });
                self.agree(agreed);
            }
            Err(err) => tracing::warn!(error = %err, "INIT of the guest refused"),
        }
        Ok(())
    }
}

/// The guest of a connection, as one thread that serves it knows it.
pub struct Guest {
    /// What [`Connection::changes`] was.
    known: u64,
    answers: Option<Answers>,
    answer: Vec<u8>,
}

impl Default for Guest {
    fn default() -> Self {
        Self { known: u64::MAX, answers: None, answer: Vec::new() }
    }
}

impl Guest {
    /// Carries a request out, and answers it; says how many bytes were written to the guest.
    pub fn answer(&mut self, connection: &Connection, exchange: &Exchange) -> usize {
        match Opcode::new(exchange.opcode()) {
            Some(Opcode::Init) => {
                self.answer.clear();
                let begun = connection.begin(exchange.head(), &mut self.answer);
                return match begun {
                    Ok(()) => put(exchange.room(), &self.answer),
                    Err(errno) => self.refuse(exchange, errno),
                };
            }
            Some(Opcode::Destroy) => connection.reset(),
            _ => {}
        }
        let changes = connection.changes.load(Ordering::Acquire);
        if self.known != changes {
            self.known = changes;
            self.answers = connection.agreed.lock().map(Answers::new);
        }
        match &mut self.answers {
            Some(answers) => exchange.carry_out(answers, &*connection.fs),
            // After DESTROY as before INIT.
            None => self.refuse(exchange, Errno::EIO),
        }
    }

    /// Answers with an error what is not even looked at.
    fn refuse(&mut self, exchange: &Exchange, errno: Errno) -> usize {
        let header = Request::header(exchange.head());
        let waits = |opcode| Opcode::new(opcode).is_none_or(Opcode::waits);
        let Some(header) = header.filter(|header| header.unique != 0 && waits(header.opcode))
        else {
            return 0;
        };
        let is_end = Opcode::new(header.opcode) == Some(Opcode::Destroy);
        let reply = if is_end { Reply::Empty } else { Reply::Error(errno) };
        self.answer.clear();
        reply.encode(header.unique, &mut self.answer);
        put(exchange.room(), &self.answer)
    }
}
