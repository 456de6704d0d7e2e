//! Replies: from what the server answers to bytes, and back.

use crate::error::{Error, ErrorKind, Result};
use crate::init::InitOut;
use crate::request::{Operation, Payload};
use crate::wire::*;

/// Errnos end before this one: the kernel has others above it for itself.
const ERRNO_END: i32 = 512;

/// What a server answers.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reply<'a> {
    /// It failed, with this errno: positive, below 512.
    Error(i32),
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
    /// The most bytes of it that have no fixed length.
    size: u32,
}

impl Expected {
    /// That of `operation`; `None` if it has no reply.
    #[must_use]
    pub fn of(operation: &Operation<'_>) -> Option<Self> {
        /// The longest target of a symbolic link, less the NUL (`PATH_MAX`).
        const LINK_MAX: u32 = 4095;
        let size = match operation {
            Operation::Read(args) | Operation::Readdir(args) | Operation::Readdirplus(args) => {
                args.size
            }
            Operation::Write(args, _) => args.size,
            Operation::CopyFileRange(args) => u32::try_from(args.len).unwrap_or(u32::MAX),
            Operation::Getxattr { size, .. } | Operation::Listxattr { size } => *size,
            Operation::Ioctl(args, _) => args.out_size,
            Operation::Readlink => LINK_MAX,
            _ => 0,
        };
        let opcode = operation.opcode();
        opcode.has_reply().then_some(Self { opcode, size })
    }
}

impl<'a> Reply<'a> {
    /// Appends the reply to the request `unique`, but for data that lie elsewhere.
    ///
    /// # Panics
    /// An [`Reply::Error`] that is none: 0, negative, or 512 and more.
    pub fn encode(&self, unique: u64, out: &mut Vec<u8>) {
        let start = out.len();
        let error = match *self {
            Self::Error(errno) => {
                assert!((1..ERRNO_END).contains(&errno), "{errno} is no errno");
                -errno
            }
            _ => 0,
        };
        OutHeader { len: 0, error, unique }.write(out);
        self.write_body(out);
        let elsewhere = if let Self::Data(payload) = self { payload.elsewhere } else { 0 };
        let len = u32::try_from(out.len() - start + elsewhere).unwrap_or(u32::MAX);
        if let Some(place) = out.get_mut(start..start + size_of::<u32>()) {
            place.copy_from_slice(&len.to_le_bytes());
        }
    }

    fn write_body(&self, out: &mut Vec<u8>) {
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

    /// The header of what a server has sent, of which `elsewhere` bytes lie elsewhere: whose request it answers. One
    /// with the `unique` 0 is a notification.
    ///
    /// # Errors
    /// It is cut short, its length is not its own, or its error is none.
    pub fn header(bytes: &[u8], elsewhere: usize) -> Result<OutHeader> {
        let error = |kind| Error::new("reply", kind);
        let header = OutHeader::read(&mut Reader::new(bytes))
            .ok_or_else(|| error(ErrorKind::Truncated("header")))?;
        let there = (bytes.len() + elsewhere) as u64;
        if u64::from(header.len) != there {
            let got = header.len.into();
            return Err(error(ErrorKind::Length { what: "length in bytes", got, expected: there }));
        }
        let is_error = header.error > -ERRNO_END && header.error <= 0;
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
        if header.unique == 0 {
            let rule = "a reply names its request";
            return Err(Error::new("reply", ErrorKind::Violation { rule, got: 0 }));
        }
        let mut reader = Reader::new(bytes.get(OutHeader::LEN..).unwrap_or(&[]));
        let mut body = Body { expected, reader: &mut reader, elsewhere };
        let reply = if header.error == 0 { body.reply()? } else { Self::Error(-header.error) };
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
            Opcode::Lookup | Opcode::Symlink | Opcode::Mknod | Opcode::Mkdir | Opcode::Link => {
                Reply::Entry(self.value()?)
            }
            Opcode::Getattr | Opcode::Setattr => Reply::Attr(self.value()?),
            Opcode::Statx => Reply::Statx(self.value()?),
            Opcode::Readlink | Opcode::Read | Opcode::Readdir | Opcode::Readdirplus => {
                self.data()?
            }
            Opcode::Getxattr | Opcode::Listxattr if self.expected.size > 0 => self.data()?,
            Opcode::Getxattr | Opcode::Listxattr => {
                let GetxattrOut { size } = self.value()?;
                Reply::XattrSize(size)
            }
            Opcode::Open | Opcode::Opendir => Reply::Open(self.value()?),
            Opcode::Create | Opcode::Tmpfile => Reply::Created(self.value()?, self.value()?),
            Opcode::Write | Opcode::CopyFileRange => {
                let WriteOut { size } = self.value()?;
                self.at_most("bytes written", size.into())?;
                Reply::Written(size)
            }
            Opcode::Statfs => Reply::Statfs(self.value()?),
            Opcode::Getlk => Reply::Lock(self.value()?),
            Opcode::Bmap => Reply::Block(self.value()?),
            Opcode::Ioctl => {
                let out = self.value()?;
                Reply::Ioctl(out, self.reader.take_rest())
            }
            Opcode::Poll => {
                let PollOut { revents } = self.value()?;
                Reply::Poll(revents)
            }
            Opcode::Lseek => Reply::Offset(self.value()?),
            Opcode::CopyFileRange64 => Reply::Copied(self.value()?),
            Opcode::Init => Reply::Init(InitOut::parse(self.reader.take_rest())?),
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
        Error::new(format!("reply to {:?}", self.expected.opcode), kind)
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

    /// No server answers with more than it was asked for.
    fn at_most(&self, what: &'static str, got: u64) -> Result<()> {
        let expected = self.expected.size.into();
        if got > expected {
            return Err(self.error(ErrorKind::Length { what, got, expected }));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Name;
    use crate::wire::Opcode;

    fn round_trip(operation: &Operation<'_>, reply: Reply<'_>) {
        let expected = Expected::of(operation).unwrap();
        let mut bytes = Vec::new();
        reply.encode(77, &mut bytes);
        assert_eq!(Reply::header(&bytes, 0).unwrap().unique, 77);
        assert_eq!(Reply::parse(expected, &bytes, 0).unwrap(), reply, "{operation:?}");
        let is_open_ended = matches!(reply, Reply::Data(_) | Reply::Ioctl(..) | Reply::Init(_));
        for len in 0..bytes.len() {
            assert!(Reply::parse(expected, &bytes[..len], 0).is_err(), "{operation:?} at {len}");
            if len >= 16 && !is_open_ended && reply != Reply::Empty {
                let mut cut = bytes[..len].to_vec();
                cut[..4].copy_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
                assert!(Reply::parse(expected, &cut, 0).is_err(), "{operation:?} at {len}");
            }
        }
        // Any operation may fail.
        let mut bytes = Vec::new();
        Reply::Error(28).encode(77, &mut bytes);
        assert_eq!(bytes.len(), 16);
        assert_eq!(Reply::parse(expected, &bytes, 0).unwrap(), Reply::Error(28));
        bytes.push(0);
        bytes[0] += 1;
        assert!(Reply::parse(expected, &bytes, 0).is_err(), "an error is a header only");
    }

    #[test]
    fn every_kind_of_reply_comes_back_as_it_went() {
        let attr = Attr { ino: 1, size: 2, mode: 0o100_644, nlink: 1, ..Attr::default() };
        let entry =
            EntryOut { nodeid: 9, generation: 1, entry_valid: 2, attr, ..EntryOut::default() };
        let open = OpenOut { fh: 5, open_flags: FopenFlags::KEEP_CACHE, backing_id: -1 };
        let name = Name::new(b"x").unwrap();
        let read = ReadIn { size: 10, ..ReadIn::default() };
        let data = Reply::Data(Payload { here: b"0123456789", elsewhere: 0 });
        round_trip(&Operation::Lookup(name), Reply::Entry(entry));
        round_trip(
            &Operation::Getattr(GetattrIn::default()),
            Reply::Attr(AttrOut { attr, ..AttrOut::default() }),
        );
        let stat = Statx { mask: 0x7ff, btime: SxTime { sec: -1, nsec: 5 }, ..Statx::default() };
        round_trip(
            &Operation::Statx(StatxIn::default()),
            Reply::Statx(StatxOut { stat, ..StatxOut::default() }),
        );
        round_trip(&Operation::Read(read), data);
        round_trip(&Operation::Readlink, data);
        round_trip(&Operation::Getxattr { size: 10, name: b"a" }, data);
        round_trip(&Operation::Getxattr { size: 0, name: b"a" }, Reply::XattrSize(3));
        round_trip(&Operation::Open(OpenIn::default()), Reply::Open(open));
        round_trip(&Operation::Create(CreateIn::default(), name), Reply::Created(entry, open));
        let write = WriteIn { size: 8, ..WriteIn::default() };
        round_trip(
            &Operation::Write(write, Payload { here: b"", elsewhere: 8 }),
            Reply::Written(8),
        );
        round_trip(
            &Operation::Statfs,
            Reply::Statfs(Kstatfs { blocks: 3, namelen: 255, ..Kstatfs::default() }),
        );
        let lock = FileLock { start: 1, end: 2, kind: 2, pid: 3 };
        round_trip(&Operation::Getlk(LkIn::default()), Reply::Lock(lock));
        round_trip(&Operation::Bmap(BmapIn::default()), Reply::Block(6));
        let ioctl = IoctlIn { out_size: 3, ..IoctlIn::default() };
        round_trip(&Operation::Ioctl(ioctl, b""), Reply::Ioctl(IoctlOut::default(), b"abc"));
        round_trip(&Operation::Poll(PollIn::default()), Reply::Poll(1));
        round_trip(&Operation::Lseek(LseekIn::default()), Reply::Offset(1 << 40));
        round_trip(&Operation::CopyFileRange64(CopyFileRangeIn::default()), Reply::Copied(1 << 40));
        round_trip(&Operation::Destroy, Reply::Empty);
        let init = InitOut { major: 7, minor: 45, max_write: 4096, ..InitOut::default() };
        round_trip(
            &Operation::Init(crate::init::InitIn::new(0, InitFlags::empty())),
            Reply::Init(init),
        );
    }

    #[test]
    fn an_entry_is_laid_out_as_in_the_header() {
        // struct fuse_out_header, struct fuse_entry_out, struct fuse_attr; offsets by offsetof().
        let attr = Attr {
            ino: 0x0a,
            size: 0x0b,
            mtimensec: 0x0c,
            mode: 0x0d,
            rdev: 0x0e,
            flags: AttrFlags::SUBMOUNT,
            ..Attr::default()
        };
        let entry =
            EntryOut { nodeid: 1, entry_valid: 2, attr_valid_nsec: 3, attr, ..EntryOut::default() };
        let mut bytes = Vec::new();
        Reply::Entry(entry).encode(0x0102, &mut bytes);
        assert_eq!(bytes.len(), 144);
        assert_eq!(bytes[..16], [144, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        let set: Vec<_> =
            bytes.iter().enumerate().skip(16).filter(|(_, byte)| **byte != 0).collect();
        let at = |offset: usize| 16 + offset;
        let expected = [
            (at(0), &1),
            (at(16), &2),
            (at(36), &3),
            (at(40), &0x0a),
            (at(48), &0x0b),
            (at(40 + 52), &0x0c),
            (at(40 + 60), &0x0d),
            (at(40 + 76), &0x0e),
            (at(40 + 84), &1),
        ];
        assert_eq!(set, expected);
    }

    #[test]
    fn more_than_was_asked_for_is_refused() {
        let read = Expected::of(&Operation::Read(ReadIn { size: 4, ..ReadIn::default() })).unwrap();
        let mut bytes = Vec::new();
        Reply::Data(Payload { here: b"12345", elsewhere: 0 }).encode(1, &mut bytes);
        let error = Reply::parse(read, &bytes, 0).unwrap_err();
        assert_eq!(error.to_string(), "reply to Read: its data in bytes is 5 where 4 is right");
        let payload = Payload { here: b"", elsewhere: 4 };
        let mut bytes = Vec::new();
        Reply::Data(payload).encode(1, &mut bytes);
        assert_eq!((bytes.len(), bytes[0]), (16, 20));
        assert_eq!(Reply::parse(read, &bytes, 4).unwrap(), Reply::Data(payload));
        assert!(Reply::parse(read, &bytes, 3).is_err());
        let args = WriteIn { size: 4, ..WriteIn::default() };
        let write = Operation::Write(args, Payload { here: b"1234", elsewhere: 0 });
        let mut bytes = Vec::new();
        Reply::Written(5).encode(1, &mut bytes);
        assert!(Reply::parse(Expected::of(&write).unwrap(), &bytes, 0).is_err());
    }

    #[test]
    fn errors_that_are_none_are_refused() {
        let mut bytes = Vec::new();
        Reply::Error(511).encode(1, &mut bytes);
        assert!(Reply::header(&bytes, 0).is_ok());
        for error in [-512i32, 1, i32::MIN] {
            bytes[4..8].copy_from_slice(&error.to_le_bytes());
            assert!(Reply::header(&bytes, 0).is_err(), "{error}");
        }
    }

    #[test]
    fn a_notification_is_no_reply() {
        let statfs = Expected::of(&Operation::Statfs).unwrap();
        let mut bytes = Vec::new();
        Reply::Error(5).encode(1, &mut bytes);
        bytes[4..16].fill(0);
        bytes[4] = 6;
        assert!(Reply::header(&bytes, 0).is_ok());
        assert!(Reply::parse(statfs, &bytes, 0).is_err());
    }

    #[test]
    fn what_has_no_reply_expects_none() {
        assert!(Expected::of(&Operation::Forget { nlookup: 1 }).is_none());
        assert!(Expected::of(&Operation::Interrupt { unique: 1 }).is_none());
        assert!(Opcode::ALL.iter().filter(|opcode| !opcode.has_reply()).count() == 4);
    }
}
