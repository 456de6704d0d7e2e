//! Replies: from what the server answers to bytes, and back.

use crate::error::{Errno, Error, ErrorKind, Message, Result};
use crate::init::InitOut;
use crate::request::{Operation, Payload};
use crate::wire::*;
use crate::{ROOT_ID, UNIQUE_INTERRUPT};

/// The most areas that an ioctl may ask for (`FUSE_IOCTL_MAX_IOV`).
const IOCTL_MAX_IOV: u64 = 256;
/// Files end here, for Linux.
const OFFSET_MAX: u64 = i64::MAX.cast_unsigned();
/// Bytes of the answer to an INIT (`fuse_init_out`).
const INIT_OUT_LEN: u64 = 64;

/// What a server answers.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reply<'a> {
    /// It failed.
    Error(Errno),
    /// Done.
    Empty,
    /// A node, found or made.
    Entry(EntryOut),
    /// Attributes.
    Attr(AttrOut),
    /// Attributes as of statx(2).
    Statx(StatxOut),
    /// Bytes: of a file, a directory, a link, an extended attribute or a list of their names.
    Data(Payload<'a>),
    /// An open file or directory.
    Open(OpenOut),
    /// A file, made and opened.
    Created(EntryOut, OpenOut),
    /// Bytes written or copied.
    Written(u32),
    /// The file system.
    Statfs(Kstatfs),
    /// Bytes of an extended attribute or a list of their names.
    XattrSize(u32),
    /// The lock that stands in the way, or `F_UNLCK`.
    Lock(FileLock),
    /// A block of the device.
    Block(u64),
    /// What an ioctl returns, with its data, or the areas that it wants.
    Ioctl(IoctlOut, &'a [u8]),
    /// What there is of what was asked about.
    Poll(u32),
    /// A position.
    Offset(u64),
    /// Bytes copied (7.45).
    Copied(u64),
    /// The session begins.
    Init(InitOut),
}

/// What kind of reply an operation has, for whoever waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    opcode: Opcode,
    /// The most that the answer may count, or the most bytes of it that have no fixed length.
    most: u64,
    /// Whether the node that it names may be the root.
    may_be_root: bool,
}

impl Expected {
    /// That of `operation`; `None` if nobody waits for one.
    #[must_use]
    pub fn of(operation: &Operation<'_>) -> Option<Self> {
        /// The longest target of a symbolic link, less the NUL (`PATH_MAX`).
        const LINK_MAX: u64 = 4095;
        let most = match operation {
            Operation::Read(args) | Operation::Readdir(args) | Operation::Readdirplus(args) => {
                args.size.into()
            }
            Operation::Write(_, payload) => payload.len() as u64,
            Operation::CopyFileRange(args) | Operation::CopyFileRange64(args) => args.len,
            Operation::Getxattr { size, .. } | Operation::Listxattr { size } => (*size).into(),
            Operation::Ioctl(args, _) => args.out_size.into(),
            Operation::Readlink => LINK_MAX,
            Operation::Lseek(_) => OFFSET_MAX,
            Operation::Init(_) => INIT_OUT_LEN,
            _ => 0,
        };
        let opcode = operation.opcode();
        let may_be_root = matches!(operation, Operation::LookupDot | Operation::LookupParent);
        opcode.waits().then_some(Self { opcode, most, may_be_root })
    }
}

/// What a message of a server is the answer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// To the request with this `unique`: [`Reply::parse`] says what.
    Request(u64),
    /// To an INTERRUPT of the request with this `unique`.
    Interrupt(u64, Interrupted),
    /// To nothing: it is a [`Notification`](crate::Notification).
    Notification,
}

/// What a server says of an INTERRUPT, if anything. Nobody waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// It knows none: it need not be sent any.
    Unsupported,
    /// It has not seen the request yet: it is to be sent another.
    Again,
    /// Anything else, which means nothing.
    Done,
}

impl Answered {
    /// What the message with this header answers.
    #[must_use]
    pub const fn of(header: &OutHeader) -> Self {
        const UNSUPPORTED: i32 = -Errno::ENOSYS.raw();
        const AGAIN: i32 = -Errno::EAGAIN.raw();
        match header.unique {
            0 => Self::Notification,
            unique if unique & UNIQUE_INTERRUPT != 0 => {
                let interrupted = match header.error {
                    UNSUPPORTED => Interrupted::Unsupported,
                    AGAIN => Interrupted::Again,
                    _ => Interrupted::Done,
                };
                Self::Interrupt(unique & !UNIQUE_INTERRUPT, interrupted)
            }
            unique => Self::Request(unique),
        }
    }
}

impl<'a> Reply<'a> {
    /// Appends the reply to the request `unique`, but for data that lie elsewhere.
    pub fn encode(&self, unique: u64, out: &mut Vec<u8>) {
        let start = out.len();
        self.out_header(unique, 0).write(out);
        self.encode_body(out);
        let body = out.len() - start - OutHeader::LEN;
        let len = self.out_header(unique, body).len;
        if let Some(place) = out.get_mut(start..start + size_of::<u32>()) {
            place.copy_from_slice(&len.to_le_bytes());
        }
    }

    /// The header of the reply to the request `unique`, whose body has `body` bytes beside those that lie elsewhere.
    #[must_use]
    pub fn out_header(&self, unique: u64, body: usize) -> OutHeader {
        let error = if let Self::Error(errno) = self { -errno.raw() } else { 0 };
        let elsewhere = if let Self::Data(payload) = self { payload.elsewhere } else { 0 };
        let len = u32::try_from(OutHeader::LEN + body + elsewhere).unwrap_or(u32::MAX);
        OutHeader { len, error, unique }
    }

    /// Appends what stands behind the header, but for data that lie elsewhere.
    pub fn encode_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::Error(_) | Self::Empty => {}
            Self::Entry(entry) => entry.write(out),
            Self::Attr(attr) => attr.write(out),
            Self::Statx(statx) => statx.write(out),
            Self::Data(payload) => out.extend_from_slice(payload.here),
            Self::Open(open) => open.write(out),
            Self::Created(entry, open) => {
                entry.write(out);
                open.write(out);
            }
            Self::Written(size) => WriteOut { size: *size }.write(out),
            Self::Statfs(statfs) => statfs.write(out),
            Self::XattrSize(size) => GetxattrOut { size: *size }.write(out),
            Self::Lock(lock) => lock.write(out),
            Self::Block(number) | Self::Offset(number) | Self::Copied(number) => number.write(out),
            Self::Ioctl(args, data) => {
                args.write(out);
                out.extend_from_slice(data);
            }
            Self::Poll(revents) => PollOut { revents: *revents }.write(out),
            Self::Init(init) => init.write(out),
        }
    }

    /// The header of what a server has sent, of which `elsewhere` bytes lie elsewhere. [`Answered::of`] says what to.
    ///
    /// # Errors
    /// It is cut short, its length is not its own, or its error is none.
    pub fn header(bytes: &[u8], elsewhere: usize) -> Result<OutHeader> {
        let error = |kind| Error::new(Message::Reply(None), kind);
        let header = OutHeader::read(&mut Reader::new(bytes))
            .ok_or_else(|| error(ErrorKind::Truncated("header")))?;
        let there = (bytes.len() + elsewhere) as u64;
        if u64::from(header.len) != there {
            let got = header.len.into();
            return Err(error(ErrorKind::Length { what: "length in bytes", got, expected: there }));
        }
        let is_error = header.error > -Errno::END && header.error <= 0;
        if header.unique != 0 && !is_error {
            let rule = "the error of a reply is from -511 to 0";
            let got = u64::from(header.error.cast_unsigned());
            return Err(error(ErrorKind::Violation { rule, got }));
        }
        Ok(header)
    }

    /// Parses the reply to what expects this, all of it, of which `elsewhere` bytes of data lie elsewhere.
    ///
    /// # Errors
    /// As of [`Reply::header`], and a reply that is none to such a request.
    pub fn parse(expected: Expected, bytes: &'a [u8], elsewhere: usize) -> Result<Self> {
        let header = Self::header(bytes, elsewhere)?;
        if Answered::of(&header) != Answered::Request(header.unique) {
            let (rule, got) = ("a reply names its request", header.unique);
            return Err(Error::new(Message::Reply(None), ErrorKind::Violation { rule, got }));
        }
        let mut reader = Reader::new(bytes.get(OutHeader::LEN..).unwrap_or(&[]));
        let mut body = Body { expected, reader: &mut reader, elsewhere };
        let reply = if header.error == 0 {
            body.reply()?
        } else {
            Self::Error(Errno::from_raw(-header.error))
        };
        match body.reader.len() + body.elsewhere {
            0 => Ok(reply),
            left => Err(body.error(ErrorKind::Trailing(left))),
        }
    }
}

/// What is left of a reply behind its header.
struct Body<'r, 'a> {
    expected: Expected,
    reader: &'r mut Reader<'a>,
    elsewhere: usize,
}

impl<'a> Body<'_, 'a> {
    fn reply(&mut self) -> Result<Reply<'a>> {
        Ok(match self.expected.opcode {
            Opcode::Lookup => Reply::Entry(self.found()?),
            Opcode::Symlink | Opcode::Mknod | Opcode::Mkdir | Opcode::Link => {
                Reply::Entry(self.made()?)
            }
            Opcode::Getattr | Opcode::Setattr => {
                let out: AttrOut = self.value()?;
                self.attributes(out.attr.mode, out.attr.size)?;
                Reply::Attr(out)
            }
            Opcode::Statx => {
                let out: StatxOut = self.value()?;
                self.attributes(out.stat.mode.into(), out.stat.size)?;
                Reply::Statx(out)
            }
            Opcode::Readlink | Opcode::Read | Opcode::Readdir | Opcode::Readdirplus => {
                self.data()?
            }
            Opcode::Getxattr | Opcode::Listxattr if self.expected.most > 0 => self.data()?,
            Opcode::Getxattr | Opcode::Listxattr => {
                let GetxattrOut { size } = self.value()?;
                Reply::XattrSize(size)
            }
            Opcode::Open | Opcode::Opendir => Reply::Open(self.value()?),
            Opcode::Create | Opcode::Tmpfile => Reply::Created(self.made()?, self.value()?),
            Opcode::Write | Opcode::CopyFileRange => {
                let WriteOut { size } = self.value()?;
                self.at_most("bytes written", size.into())?;
                Reply::Written(size)
            }
            Opcode::Statfs => Reply::Statfs(self.value()?),
            Opcode::Getlk => Reply::Lock(self.lock()?),
            Opcode::Bmap => Reply::Block(self.value()?),
            Opcode::Ioctl => {
                let out = self.value()?;
                let data = self.reader.take_rest();
                self.ioctl(&out, data.len() as u64)?;
                Reply::Ioctl(out, data)
            }
            Opcode::Poll => {
                let PollOut { revents } = self.value()?;
                Reply::Poll(revents)
            }
            Opcode::Lseek => {
                let offset = self.value()?;
                self.at_most("offset", offset)?;
                Reply::Offset(offset)
            }
            Opcode::CopyFileRange64 => {
                let copied = self.value()?;
                self.at_most("bytes copied", copied)?;
                Reply::Copied(copied)
            }
            Opcode::Init => {
                let bytes = self.reader.take_rest();
                self.at_most("length in bytes", bytes.len() as u64)?;
                Reply::Init(InitOut::parse(bytes)?)
            }
            Opcode::Unlink
            | Opcode::Rmdir
            | Opcode::Rename
            | Opcode::Rename2
            | Opcode::Release
            | Opcode::Releasedir
            | Opcode::Fsync
            | Opcode::Fsyncdir
            | Opcode::Flush
            | Opcode::Setxattr
            | Opcode::Removexattr
            | Opcode::Setlk
            | Opcode::Setlkw
            | Opcode::Access
            | Opcode::Destroy
            | Opcode::Fallocate
            | Opcode::Setupmapping
            | Opcode::Removemapping
            | Opcode::Syncfs => Reply::Empty,
            Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt | Opcode::NotifyReply => {
                unreachable!("`Expected` is made of operations that have a reply")
            }
        })
    }

    fn error(&self, kind: ErrorKind) -> Error {
        Error::new(Message::Reply(Some(self.expected.opcode)), kind)
    }

    fn violation(&self, rule: &'static str, got: u64) -> Error {
        self.error(ErrorKind::Violation { rule, got })
    }

    fn value<T: Wire>(&mut self) -> Result<T> {
        T::read(self.reader).ok_or_else(|| self.error(ErrorKind::Truncated("answer")))
    }

    fn data(&mut self) -> Result<Reply<'a>> {
        let elsewhere = std::mem::take(&mut self.elsewhere);
        let payload = Payload { here: self.reader.take_rest(), elsewhere };
        self.at_most("data in bytes", payload.len() as u64)?;
        Ok(Reply::Data(payload))
    }

    /// What a name stands for, which may be nothing.
    fn found(&mut self) -> Result<EntryOut> {
        let entry: EntryOut = self.value()?;
        if entry.nodeid == ROOT_ID && !self.expected.may_be_root {
            return Err(self.violation("the root has no name", entry.nodeid));
        }
        if entry.nodeid != 0 {
            self.attributes(entry.attr.mode, entry.attr.size)?;
        }
        Ok(entry)
    }

    /// What was made.
    fn made(&mut self) -> Result<EntryOut> {
        let entry: EntryOut = self.value()?;
        if matches!(entry.nodeid, 0 | ROOT_ID) {
            return Err(self.violation("what was made is a node, and not the root", entry.nodeid));
        }
        self.attributes(entry.attr.mode, entry.attr.size)?;
        Ok(entry)
    }

    fn attributes(&self, mode: u32, size: u64) -> Result<()> {
        /// `S_IFMT`, and what stands in it: FIFO, character device, directory, block device, file, link, socket.
        const S_IFMT: u32 = 0o170_000;
        const KINDS: [u32; 7] =
            [0o010_000, 0o020_000, 0o040_000, 0o060_000, 0o100_000, 0o120_000, 0o140_000];
        if !KINDS.contains(&(mode & S_IFMT)) {
            return Err(self.violation("a mode says what kind of file it is", mode.into()));
        }
        if size > OFFSET_MAX {
            return Err(self.violation("a size is less than 2^63", size));
        }
        Ok(())
    }

    fn lock(&mut self) -> Result<FileLock> {
        const F_UNLCK: u32 = 2;
        let lock: FileLock = self.value()?;
        if lock.kind > F_UNLCK {
            return Err(self.violation("a lock is F_RDLCK, F_WRLCK or F_UNLCK", lock.kind.into()));
        }
        let is_range = lock.start <= lock.end && lock.end <= OFFSET_MAX;
        if lock.kind != F_UNLCK && !is_range {
            return Err(self.violation("a lock ends behind its start", lock.end));
        }
        Ok(lock)
    }

    fn ioctl(&self, out: &IoctlOut, bytes: u64) -> Result<()> {
        self.at_most("data in bytes", bytes)?;
        if out.flags.contains(IoctlFlags::RETRY) {
            let areas = u64::from(out.in_iovs) + u64::from(out.out_iovs);
            if areas > IOCTL_MAX_IOV {
                return Err(self.violation("an ioctl asks for at most 256 areas", areas));
            }
            let expected = areas * IoctlIovec::LEN as u64;
            if bytes != expected {
                let what = "list of areas in bytes";
                return Err(self.error(ErrorKind::Length { what, got: bytes, expected }));
            }
        }
        Ok(())
    }

    /// No server answers with more than it was asked for.
    fn at_most(&self, what: &'static str, got: u64) -> Result<()> {
        let expected = self.expected.most;
        if got > expected {
            return Err(self.error(ErrorKind::Length { what, got, expected }));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
