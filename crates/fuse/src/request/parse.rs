//! From bytes to an operation.

use super::*;

/// What is left of a request behind its header.
struct Args<'a> {
    opcode: Opcode,
    reader: Reader<'a>,
    /// Bytes that lie elsewhere.
    elsewhere: usize,
}

impl<'a> Request<'a> {
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
        let mut reader = Reader::new(head);
        let Some(header) = InHeader::read(&mut reader) else {
            let error = Error::new("request", ErrorKind::Truncated("header"));
            return Err(Rejected { header: None, error });
        };
        let request = parse(header, reader, elsewhere, protocol);
        request.map_err(|error| Rejected { header: Some(header), error })
    }
}

fn parse<'a>(
    header: InHeader,
    mut reader: Reader<'a>,
    elsewhere: usize,
    protocol: &Protocol,
) -> Result<Request<'a>> {
    let opcode = Opcode::new(header.opcode).ok_or_else(|| {
        Error::new(format!("operation {}", header.opcode), ErrorKind::UnknownOpcode)
    })?;
    let bytes = (InHeader::LEN + reader.len() + elsewhere) as u64;
    if u64::from(header.len) != bytes {
        return Err(length(opcode, "length in bytes", header.len.into(), bytes));
    }
    if header.unique == 0 {
        let rule = "the unique of a request is not 0";
        return Err(Error::of(opcode, ErrorKind::Violation { rule, got: 0 }));
    }
    let mut extensions: &[u8] = &[];
    if header.total_extlen > 0 {
        let extlen = usize::from(header.total_extlen) * 8;
        let args = reader.len().checked_sub(extlen).filter(|_| takes_extensions(opcode));
        let Some(args) = args else {
            let got = header.total_extlen.into();
            return Err(length(opcode, "extensions in units of 8 bytes", got, 0));
        };
        let bytes = reader.take_rest();
        let (front, back) = bytes.split_at(args);
        reader = Reader::new(front);
        extensions = back;
    }
    let mut args = Args { opcode, reader, elsewhere };
    let operation = args.operation(protocol)?;
    if extensions.is_empty() && takes_extensions(opcode) && protocol.minor < 38 {
        // Before there was a length for them, what followed the names was a security context.
        extensions = args.reader.take_rest();
    }
    args.end()?;
    Ok(Request { header, operation, extensions })
}

fn length(opcode: Opcode, what: &'static str, got: u64, expected: u64) -> Error {
    Error::of(opcode, ErrorKind::Length { what, got, expected })
}

impl<'a> Args<'a> {
    fn operation(&mut self, protocol: &Protocol) -> Result<Operation<'a>> {
        Ok(match self.opcode {
            Opcode::Lookup => Operation::Lookup(self.name()?),
            Opcode::Forget => Operation::Forget { nlookup: self.value()? },
            Opcode::BatchForget => {
                let BatchForgetIn { count } = self.value()?;
                Operation::BatchForget(self.list(count)?)
            }
            Opcode::Getattr => Operation::Getattr(self.value()?),
            Opcode::Statx => Operation::Statx(self.value()?),
            Opcode::Setattr => Operation::Setattr(SetAttr(self.value()?)),
            Opcode::Readlink => Operation::Readlink,
            Opcode::Symlink => {
                Operation::Symlink { name: self.proper_name()?, target: self.string()? }
            }
            Opcode::Mknod => Operation::Mknod(self.value()?, self.proper_name()?),
            Opcode::Mkdir => Operation::Mkdir(self.value()?, self.proper_name()?),
            Opcode::Unlink => Operation::Unlink(self.proper_name()?),
            Opcode::Rmdir => Operation::Rmdir(self.proper_name()?),
            Opcode::Rename => {
                let newdir = self.value()?;
                Operation::Rename { newdir, from: self.proper_name()?, to: self.proper_name()? }
            }
            Opcode::Rename2 => {
                let to_dir = self.value()?;
                Operation::Rename2 { to_dir, from: self.proper_name()?, to: self.proper_name()? }
            }
            Opcode::Link => Operation::Link { oldnodeid: self.value()?, name: self.proper_name()? },
            Opcode::Open => Operation::Open(self.value()?),
            Opcode::Opendir => Operation::Opendir(self.value()?),
            Opcode::Read => Operation::Read(self.value()?),
            Opcode::Readdir => Operation::Readdir(self.value()?),
            Opcode::Readdirplus => Operation::Readdirplus(self.value()?),
            Opcode::Write => {
                let args: WriteIn = self.value()?;
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
                Operation::Getxattr { size, name: self.string()? }
            }
            Opcode::Listxattr => {
                let GetxattrIn { size } = self.value()?;
                Operation::Listxattr { size }
            }
            Opcode::Removexattr => Operation::Removexattr { name: self.string()? },
            Opcode::Init => Operation::Init(InitIn::parse(self.reader.take_rest())?),
            Opcode::Destroy => Operation::Destroy,
            Opcode::Getlk => Operation::Getlk(self.value()?),
            Opcode::Setlk => Operation::Setlk(self.value()?),
            Opcode::Setlkw => Operation::Setlkw(self.value()?),
            Opcode::Access => {
                let AccessIn { mask } = self.value()?;
                Operation::Access { mask }
            }
            Opcode::Create => Operation::Create(self.value()?, self.proper_name()?),
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
                Operation::Ioctl(args, self.data("bytes of data", args.in_size)?)
            }
            Opcode::Poll => Operation::Poll(self.value()?),
            Opcode::NotifyReply => {
                let args: NotifyRetrieveIn = self.value()?;
                Operation::NotifyReply(args, self.payload(args.size)?)
            }
            Opcode::Fallocate => Operation::Fallocate(self.value()?),
            Opcode::Lseek => Operation::Lseek(self.value()?),
            Opcode::CopyFileRange => Operation::CopyFileRange(self.value()?),
            Opcode::CopyFileRange64 => Operation::CopyFileRange64(self.value()?),
            Opcode::Setupmapping => Operation::Setupmapping(self.value()?),
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
        Error::of(self.opcode, kind)
    }

    fn value<T: Wire>(&mut self) -> Result<T> {
        let value = T::read(&mut self.reader);
        value.ok_or_else(|| self.error(ErrorKind::Truncated("arguments")))
    }

    fn string(&mut self) -> Result<&'a [u8]> {
        let string = self.reader.string();
        string.ok_or_else(|| self.error(ErrorKind::Truncated("name")))
    }

    fn name(&mut self) -> Result<Name<'a>> {
        let string = self.string()?;
        Name::new(string).map_err(|kind| self.error(kind))
    }

    /// A name that is not `.` or `..`: the kernel resolves those itself.
    fn proper_name(&mut self) -> Result<Name<'a>> {
        let name = self.name()?;
        if name.is_dots() {
            return Err(self.error(ErrorKind::Name("is that of a directory itself")));
        }
        Ok(name)
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
        match self.reader.len() + self.elsewhere {
            0 => Ok(()),
            left => Err(self.error(ErrorKind::Trailing(left))),
        }
    }
}
