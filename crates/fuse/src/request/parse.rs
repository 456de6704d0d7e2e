//! From bytes to an operation.

use super::*;
use crate::error::Message;
use crate::init::Limits;

/// Files end here, for Linux.
const OFFSET_MAX: u64 = i64::MAX.cast_unsigned();

/// How much of a request to have before it is parsed: all of it, but for the data of a WRITE and a NOTIFY_REPLY, which
/// may stay elsewhere.
#[must_use]
pub fn head_len(header: &InHeader) -> usize {
    let len = usize::try_from(header.len).unwrap_or(usize::MAX);
    match Opcode::new(header.opcode) {
        Some(Opcode::Write | Opcode::NotifyReply) => len.min(DATA_AT),
        _ => len,
    }
}

/// What is left of a request behind its header.
struct Args<'a> {
    opcode: Opcode,
    /// The first argument, if it lies apart from the others.
    first: Reader<'a>,
    reader: Reader<'a>,
    /// Bytes that lie elsewhere.
    elsewhere: usize,
    limits: Limits,
}

impl<'a> Request<'a> {
    /// The header of a request whose first bytes these are, as it says itself; `None` if that is cut short.
    #[must_use]
    pub fn header(head: &[u8]) -> Option<InHeader> {
        InHeader::read(&mut Reader::new(head))
    }

    /// Parses a request whose first bytes are `head`, and of which `elsewhere` more bytes lie elsewhere: only the data
    /// of a WRITE or a NOTIFY_REPLY may.
    ///
    /// # Errors
    /// What is wrong with it, and its header as far as that is there.
    pub fn parse(
        head: &'a [u8],
        elsewhere: usize,
        protocol: &Protocol,
    ) -> std::result::Result<Self, Rejected> {
        let (header, rest) = head.split_at_checked(InHeader::LEN).unwrap_or((head, &[]));
        Self::from_parts(header, &[], rest, elsewhere, protocol)
    }

    /// Parses a request that lies in parts, as the kernel puts it into a ring ([`uring`](crate::uring)): its header, the
    /// first argument, whose length is what the others leave of the header's, and all that follows that; `elsewhere` as
    /// of [`Request::parse`].
    ///
    /// # Errors
    /// As of [`Request::parse`].
    pub fn from_parts(
        header: &[u8],
        first_arg: &'a [u8],
        rest: &'a [u8],
        elsewhere: usize,
        protocol: &Protocol,
    ) -> std::result::Result<Self, Rejected> {
        let Some(header) = InHeader::read(&mut Reader::new(header)) else {
            let error = Error::new(Message::Request(None), ErrorKind::Truncated("header"));
            return Err(Rejected { header: None, error });
        };
        let request = parse(header, first_arg, rest, elsewhere, protocol);
        request.map_err(|error| Rejected { header: Some(header), error })
    }
}

fn parse<'a>(
    header: InHeader,
    first_arg: &'a [u8],
    rest: &'a [u8],
    elsewhere: usize,
    protocol: &Protocol,
) -> Result<Request<'a>> {
    let opcode = Opcode::new(header.opcode).ok_or_else(|| {
        Error::new(Message::Request(Some(header.opcode)), ErrorKind::UnknownOpcode)
    })?;
    let bytes = (InHeader::LEN + first_arg.len() + rest.len() + elsewhere) as u64;
    if u64::from(header.len) != bytes {
        return Err(length(opcode, "length in bytes", header.len.into(), bytes));
    }
    let most = protocol.longest(opcode);
    if bytes > most {
        return Err(length(opcode, "length in bytes", bytes, most));
    }
    // What answers a notification names that, not itself.
    if header.unique == 0 && opcode != Opcode::NotifyReply {
        let rule = "the unique of a request is not 0";
        return Err(Error::new(opcode, ErrorKind::Violation { rule, got: 0 }));
    }
    let (may_contexts, may_groups) = protocol.extensions();
    let may = takes_extensions(opcode) && (may_contexts || may_groups);
    let (front, mut extensions): (&[u8], &[u8]) =
        if header.total_extlen > 0 && (protocol.has_extension_length() || !may) {
            let extlen = usize::from(header.total_extlen) * 8;
            let args = rest.len().checked_sub(extlen).filter(|_| may);
            let parts = args.and_then(|args| rest.split_at_checked(args));
            let got = header.total_extlen.into();
            parts.ok_or_else(|| length(opcode, "extensions in units of 8 bytes", got, 0))?
        } else {
            (rest, &[])
        };
    let mut args = Args {
        opcode,
        first: Reader::new(first_arg),
        reader: Reader::new(front),
        elsewhere,
        limits: protocol.limits,
    };
    let operation = args.operation(protocol)?;
    if may && !protocol.has_extension_length() {
        // Before there was a length for them, what followed the names was a security context.
        extensions = args.reader.take_rest();
    }
    args.end()?;
    Ok(Request { header, operation, extensions })
}

fn length(opcode: Opcode, what: &'static str, got: u64, expected: u64) -> Error {
    Error::new(opcode, ErrorKind::Length { what, got, expected })
}

impl<'a> Args<'a> {
    fn operation(&mut self, protocol: &Protocol) -> Result<Operation<'a>> {
        Ok(match self.opcode {
            Opcode::Lookup => self.lookup(protocol)?,
            Opcode::Forget => Operation::Forget { nlookup: self.value()? },
            Opcode::BatchForget => {
                let BatchForgetIn { count } = self.value()?;
                Operation::BatchForget(self.list(count)?)
            }
            Opcode::Getattr => Operation::Getattr(self.value()?),
            Opcode::Statx => Operation::Statx(self.value()?),
            Opcode::Setattr => {
                let set = SetAttr(self.value()?);
                self.range(set.size().unwrap_or(0), 0)?;
                Operation::Setattr(set)
            }
            Opcode::Readlink => Operation::Readlink,
            Opcode::Symlink => Operation::Symlink { name: self.name()?, target: self.string()? },
            Opcode::Mknod => Operation::Mknod(self.value()?, self.name()?),
            Opcode::Mkdir => Operation::Mkdir(self.value()?, self.name()?),
            Opcode::Unlink => Operation::Unlink(self.name()?),
            Opcode::Rmdir => Operation::Rmdir(self.name()?),
            Opcode::Rename => {
                let newdir = self.value()?;
                Operation::Rename { newdir, from: self.name()?, to: self.name()? }
            }
            Opcode::Rename2 => {
                let to_dir = self.value()?;
                Operation::Rename2 { to_dir, from: self.name()?, to: self.name()? }
            }
            Opcode::Link => Operation::Link { oldnodeid: self.value()?, name: self.name()? },
            Opcode::Open => Operation::Open(self.value()?),
            Opcode::Opendir => Operation::Opendir(self.value()?),
            Opcode::Read => {
                let args = self.read()?;
                self.range(args.offset, args.size.into())?;
                Operation::Read(args)
            }
            Opcode::Readdir => Operation::Readdir(self.read()?),
            Opcode::Readdirplus => Operation::Readdirplus(self.read()?),
            Opcode::Write => {
                let args: WriteIn = self.value()?;
                self.range(args.offset, args.size.into())?;
                Operation::Write(args, self.payload(args.size)?)
            }
            Opcode::Statfs => Operation::Statfs,
            Opcode::Release => Operation::Release(self.value()?),
            Opcode::Releasedir => Operation::Releasedir(self.value()?),
            Opcode::Fsync => Operation::Fsync(self.value()?),
            Opcode::Fsyncdir => Operation::Fsyncdir(self.value()?),
            Opcode::Flush => Operation::Flush(self.value()?),
            Opcode::Setxattr => self.setxattr(protocol)?,
            Opcode::Getxattr => {
                let GetxattrIn { size } = self.value()?;
                Operation::Getxattr { size: size.min(XATTR_SIZE_MAX), name: self.string()? }
            }
            Opcode::Listxattr => {
                let GetxattrIn { size } = self.value()?;
                Operation::Listxattr { size: size.min(XATTR_SIZE_MAX) }
            }
            Opcode::Removexattr => Operation::Removexattr { name: self.string()? },
            Opcode::Init => {
                let apart = self.first.take_rest();
                let args = if apart.is_empty() { self.reader.take_rest() } else { apart };
                Operation::Init(InitIn::parse(args)?)
            }
            Opcode::Destroy => Operation::Destroy,
            Opcode::Getlk => Operation::Getlk(self.value()?),
            Opcode::Setlk => Operation::Setlk(self.value()?),
            Opcode::Setlkw => Operation::Setlkw(self.value()?),
            Opcode::Access => {
                let AccessIn { mask } = self.value()?;
                Operation::Access { mask }
            }
            Opcode::Create => Operation::Create(self.value()?, self.name()?),
            Opcode::Tmpfile => {
                let args = self.value()?;
                // The kernel sends "/" for the name that there is not.
                self.string()?;
                Operation::Tmpfile(args)
            }
            Opcode::Interrupt => Operation::Interrupt { unique: self.value()? },
            Opcode::Bmap => Operation::Bmap(self.value()?),
            Opcode::Ioctl => {
                let args: IoctlIn = self.value()?;
                let args = IoctlIn { out_size: args.out_size.min(self.limits.max_read), ..args };
                Operation::Ioctl(args, self.data("bytes of data", args.in_size)?)
            }
            Opcode::Poll => Operation::Poll(self.value()?),
            Opcode::NotifyReply => {
                let args: NotifyRetrieveIn = self.value()?;
                self.range(args.offset, args.size.into())?;
                Operation::NotifyReply(args, self.payload(args.size)?)
            }
            Opcode::Fallocate => {
                let args: FallocateIn = self.value()?;
                self.range(args.offset, args.length)?;
                Operation::Fallocate(args)
            }
            Opcode::Lseek => Operation::Lseek(self.value()?),
            Opcode::CopyFileRange => Operation::CopyFileRange(self.copy()?),
            Opcode::CopyFileRange64 => Operation::CopyFileRange64(self.copy()?),
            Opcode::Setupmapping => {
                let args: SetupmappingIn = self.value()?;
                self.range(args.foffset, args.len)?;
                self.range(args.moffset, args.len)?;
                Operation::Setupmapping(args)
            }
            Opcode::Removemapping => {
                let count: u32 = self.value()?;
                Operation::Removemapping(self.list(count)?)
            }
            Opcode::Syncfs => {
                let _padding: u64 = self.value()?;
                Operation::Syncfs
            }
        })
    }

    fn error(&self, kind: ErrorKind) -> Error {
        Error::new(self.opcode, kind)
    }

    fn value<T: Wire>(&mut self) -> Result<T> {
        let apart = self.first.len() > 0;
        let value = T::read(if apart { &mut self.first } else { &mut self.reader });
        value.ok_or_else(|| self.error(ErrorKind::Truncated("arguments")))
    }

    fn string(&mut self) -> Result<CBytes<'a>> {
        let string = self.reader.string();
        string.ok_or_else(|| self.error(ErrorKind::Truncated("name")))
    }

    /// A name that is not `.` or `..`: the kernel resolves those itself.
    fn name(&mut self) -> Result<Name<'a>> {
        let name = Name::new(self.string()?.bytes()).map_err(|kind| self.error(kind))?;
        if name.is_dots() {
            return Err(self.error(ErrorKind::Name("is that of a directory itself")));
        }
        Ok(name)
    }

    fn lookup(&mut self, protocol: &Protocol) -> Result<Operation<'a>> {
        if protocol.flags.contains(InitFlags::EXPORT_SUPPORT) {
            let mut ahead = self.reader;
            let dots = match ahead.string().map(CBytes::bytes) {
                Some(b".") => Some(Operation::LookupDot),
                Some(b"..") => Some(Operation::LookupParent),
                _ => None,
            };
            if let Some(dots) = dots {
                self.reader = ahead;
                return Ok(dots);
            }
        }
        self.name().map(Operation::Lookup)
    }

    /// Of what reads, and is answered with as much as there is: no more than a request has pages for.
    fn read(&mut self) -> Result<ReadIn> {
        let args: ReadIn = self.value()?;
        Ok(ReadIn { size: args.size.min(self.limits.max_read), ..args })
    }

    fn copy(&mut self) -> Result<CopyFileRangeIn> {
        let args: CopyFileRangeIn = self.value()?;
        self.range(args.off_in, args.len)?;
        self.range(args.off_out, args.len)?;
        Ok(args)
    }

    /// A range of a file, within what a file may have.
    fn range(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset.checked_add(len).filter(|end| *end <= OFFSET_MAX);
        let rule = "a range ends before 2^63";
        end.map(drop).ok_or_else(|| self.error(ErrorKind::Violation { rule, got: offset }))
    }

    fn data(&mut self, what: &'static str, len: u32) -> Result<&'a [u8]> {
        let there = self.reader.len() as u64;
        let bytes = usize::try_from(len).ok().and_then(|len| self.reader.bytes(len));
        bytes.ok_or_else(|| length(self.opcode, what, len.into(), there))
    }

    /// All that is left, here and elsewhere.
    fn payload(&mut self, size: u32) -> Result<Payload<'a>> {
        let elsewhere = std::mem::take(&mut self.elsewhere);
        let payload = Payload { here: self.reader.take_rest(), elsewhere };
        let there = payload.len() as u64;
        if u64::from(size) != there {
            return Err(length(self.opcode, "bytes of data", size.into(), there));
        }
        Ok(payload)
    }

    fn list<T: Wire>(&mut self, count: u32) -> Result<List<'a, T>> {
        let most = self.reader.len() / T::LEN;
        let len = usize::try_from(count).ok().filter(|&count| count <= most);
        let bytes = len.and_then(|count| self.reader.bytes(count * T::LEN));
        let list = bytes.and_then(List::new);
        list.ok_or_else(|| length(self.opcode, "count", count.into(), most as u64))
    }

    fn setxattr(&mut self, protocol: &Protocol) -> Result<Operation<'a>> {
        let args = if protocol.flags.contains(InitFlags::SETXATTR_EXT) {
            self.value()?
        } else {
            SetxattrIn { size: self.value()?, flags: self.value()?, ..SetxattrIn::default() }
        };
        let name = self.string()?;
        Ok(Operation::Setxattr { args, name, value: self.data("bytes of the value", args.size)? })
    }

    fn end(&self) -> Result<()> {
        match self.first.len() + self.reader.len() + self.elsewhere {
            0 => Ok(()),
            left => Err(self.error(ErrorKind::Trailing(left))),
        }
    }
}
