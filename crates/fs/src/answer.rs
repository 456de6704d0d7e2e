//! From a request to its answer: bytes in, bytes out.

use blockyard_buf::{Segment, total_len};
use blockyard_fuse::dirent::Entries;
use blockyard_fuse::wire::{GetattrFlags, OutHeader, ReadIn, Wire};
use blockyard_fuse::{Errno, Name, Operation, Payload, Protocol, Rejected, Reply, Request};
use smallvec::SmallVec;

use crate::filesystem::{FileSystem, Outcome, Who};

/// Where the data of an answer begin.
const HEAD: usize = OutHeader::LEN;

/// Answers requests one after the other, in memory of its own.
pub struct Answers {
    protocol: Protocol,
    /// A header, and data of an answer behind it: as long as the longest so far.
    room: Vec<u8>,
    /// Answers of a fixed form, and lists.
    answer: Vec<u8>,
    scratch: Vec<u8>,
}

impl Answers {
    /// For a connection that agreed on `protocol`.
    #[must_use]
    pub const fn new(protocol: Protocol) -> Self {
        Self { protocol, room: Vec::new(), answer: Vec::new(), scratch: Vec::new() }
    }

    /// The answer to a message, whole; `None` if nobody waits for one.
    pub fn answer(&mut self, fs: &dyn FileSystem, message: &[u8]) -> Option<&[u8]> {
        let protocol = self.protocol;
        match Request::parse(message, 0, &protocol) {
            Ok(request) => self.carry_out(fs, &request),
            Err(rejected) => self.rejected(&rejected),
        }
    }

    /// Answers a request whose data, if any, lie elsewhere, and so does the place for its answer: as a guest's requests do. Says
    /// how many bytes the answer has, at most those of `room`; `None` if nobody waits for one.
    ///
    /// Data go from and to where they lie, and are not copied. Where there is no room for the answer, that is an error; where
    /// there is none for that, nothing is written.
    pub fn answer_in_place(
        &mut self,
        fs: &dyn FileSystem,
        head: &[u8],
        data: &[Segment],
        room: &[Segment],
    ) -> Option<usize> {
        let protocol = self.protocol;
        let mut request = match Request::parse(head, total_len(data), &protocol) {
            Ok(request) => request,
            Err(rejected) => return self.rejected(&rejected).map(|bytes| put(room, bytes)),
        };
        // What there is no room for need not be found.
        if let Operation::Readdir(args) | Operation::Readdirplus(args) = &mut request.operation {
            let most = total_len(room).saturating_sub(HEAD);
            args.size = args.size.min(u32::try_from(most).unwrap_or(u32::MAX));
        }
        let unique = request.header.unique;
        let answer = match &request.operation {
            Operation::Read(args) => return Some(self.read_in_place(fs, unique, args, room)),
            Operation::Write(args, payload) if payload.here.is_empty() => {
                self.reply(unique, fs.write_segments(args, data).map(Reply::Written))
            }
            Operation::NotifyReply(..) => return None,
            // A part of it here and a part elsewhere is nobody's way to ask.
            _ if !data.is_empty() => self.reply(unique, Err(Errno::EIO)),
            _ => self.carry_out(fs, &request)?,
        };
        let wanted = answer.len();
        if wanted <= total_len(room) {
            return Some(put(room, answer));
        }
        tracing::debug!(wanted, "request has too little room for its reply");
        Some(put(room, self.reply(unique, Err(Errno::EIO))))
    }

    fn read_in_place(
        &mut self,
        fs: &dyn FileSystem,
        unique: u64,
        args: &ReadIn,
        room: &[Segment],
    ) -> usize {
        let size = usize::try_from(args.size).unwrap_or(usize::MAX);
        let done = match Behind::head(room, size) {
            Some(place) => fs.read_segments(args, place.segments()).map(|len| len.min(size)),
            // What is short is the end of the file.
            None => Err(Errno::EIO),
        };
        match done {
            Ok(len) => {
                head(unique, len, &mut self.scratch);
                put(room, &self.scratch) + len
            }
            Err(errno) => put(room, self.reply(unique, Err(errno))),
        }
    }

    fn rejected(&mut self, rejected: &Rejected) -> Option<&[u8]> {
        tracing::debug!(%rejected, "unknown FUSE request rejected");
        let unique = rejected.header.filter(|_| rejected.wants_reply())?.unique;
        Some(self.reply(unique, Ok(Reply::Error(rejected.error.errno()))))
    }

    fn carry_out(&mut self, fs: &dyn FileSystem, request: &Request<'_>) -> Option<&[u8]> {
        let (unique, node) = (request.header.unique, request.header.nodeid);
        match &request.operation {
            Operation::Forget { nlookup } => {
                fs.forget(node, *nlookup);
                None
            }
            Operation::BatchForget(list) => {
                list.iter().for_each(|one| fs.forget(one.nodeid, one.nlookup));
                None
            }
            Operation::NotifyReply(..) => None,
            // That there are none is told once.
            Operation::Interrupt { .. } => Some(self.reply(unique, Err(Errno::ENOSYS))),
            Operation::Read(args) => Some(self.data(unique, args.size, |into| fs.read(args, into))),
            Operation::Getxattr { size, name } => {
                Some(self.sized(unique, *size, |into| fs.getxattr(node, name.bytes(), into)))
            }
            Operation::Listxattr { size } => {
                Some(self.sized(unique, *size, |into| fs.listxattr(node, into)))
            }
            Operation::Readdir(args) => Some(self.list(unique, |out| {
                fs.readdir(node, args, false, &mut Entries::new(out, args.size))
            })),
            Operation::Readdirplus(args) => Some(self.list(unique, |out| {
                fs.readdir(node, args, true, &mut Entries::plus(out, args.size))
            })),
            Operation::Readlink => Some(self.list(unique, |out| fs.readlink(node, out))),
            operation => {
                let who = Who::of(&request.header);
                Some(self.reply(unique, names(fs, who, node, operation)))
            }
        }
    }

    fn reply(&mut self, unique: u64, reply: Outcome<Reply<'_>>) -> &[u8] {
        self.answer.clear();
        reply.unwrap_or_else(Reply::Error).encode(unique, &mut self.answer);
        &self.answer
    }

    /// Data of at most `size` bytes.
    fn data(
        &mut self,
        unique: u64,
        size: u32,
        read: impl FnOnce(&mut [u8]) -> Outcome<usize>,
    ) -> &[u8] {
        // What is asked for was cut to what the connection agreed on.
        let end = HEAD + size as usize;
        if self.room.len() < end {
            self.room.resize(end, 0);
        }
        let done = self.room.get_mut(HEAD..end).ok_or(Errno::EINVAL).and_then(read);
        match done {
            Ok(len) => {
                let end = end.min(HEAD + len);
                head(unique, end - HEAD, &mut self.scratch);
                let (message, head) = (self.room.get_mut(..end), &self.scratch);
                message.map_or(&[], |message| headed(message, head))
            }
            Err(errno) => self.reply(unique, Err(errno)),
        }
    }

    /// Data, or only their size if there is no room for any.
    fn sized(
        &mut self,
        unique: u64,
        size: u32,
        read: impl FnOnce(&mut [u8]) -> Outcome<usize>,
    ) -> &[u8] {
        if size > 0 {
            return self.data(unique, size, read);
        }
        let reply =
            read(&mut []).map(|len| Reply::XattrSize(u32::try_from(len).unwrap_or(u32::MAX)));
        self.reply(unique, reply)
    }

    /// Data whose length shows.
    fn list(&mut self, unique: u64, fill: impl FnOnce(&mut Vec<u8>) -> Outcome) -> &[u8] {
        self.answer.clear();
        self.answer.resize(HEAD, 0);
        match fill(&mut self.answer) {
            Ok(()) => {
                let len = self.answer.len() - HEAD;
                head(unique, len, &mut self.scratch);
                headed(&mut self.answer, &self.scratch)
            }
            Err(errno) => self.reply(unique, Err(errno)),
        }
    }
}

/// The header of `len` bytes of data.
fn head(unique: u64, len: usize, header: &mut Vec<u8>) {
    header.clear();
    Reply::Data(Payload { here: &[], elsewhere: len }).out_header(unique, 0).write(header);
}

/// A message with its header where that is to be.
fn headed<'m>(message: &'m mut [u8], header: &[u8]) -> &'m [u8] {
    if let (Some(place), Some(header)) = (message.get_mut(..HEAD), header.get(..HEAD)) {
        place.copy_from_slice(header);
    }
    message
}

/// Writes bytes to where there is room for them, all of them or none; says how many.
#[must_use]
pub fn put(room: &[Segment], bytes: &[u8]) -> usize {
    if bytes.len() > total_len(room) {
        return 0;
    }
    let mut rest = bytes;
    for segment in room {
        let (now, later) = rest.split_at(rest.len().min(segment.len()));
        segment.slice(0, now.len()).copy_from(now);
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    bytes.len()
}

/// The place for data behind that for a header.
enum Behind<'r> {
    /// The header has a segment of its own, as Linux has it.
    Apart(&'r [Segment]),
    /// It ends within one.
    Cut(SmallVec<[Segment; 2]>),
}

impl<'r> Behind<'r> {
    /// That of `size` bytes; `None` if there is less.
    fn head(room: &'r [Segment], size: usize) -> Option<Self> {
        if let Some((first, rest)) = room.split_first()
            && first.len() == HEAD
            && total_len(rest) == size
        {
            return Some(Self::Apart(rest));
        }
        let (mut skip, mut left) = (HEAD, size);
        let mut parts = SmallVec::new();
        for segment in room {
            let skipped = skip.min(segment.len());
            let len = (segment.len() - skipped).min(left);
            skip -= skipped;
            left -= len;
            if len > 0 {
                parts.push(segment.slice(skipped, len));
            }
        }
        (skip == 0 && left == 0).then_some(Self::Cut(parts))
    }

    fn segments(&self) -> &[Segment] {
        match self {
            Self::Apart(segments) => segments,
            Self::Cut(segments) => segments,
        }
    }
}

/// Nobody has to make a file of that name: it is what every directory has.
fn plain(name: Name<'_>) -> Outcome<Name<'_>> {
    if name.is_dots() { Err(Errno::EINVAL) } else { Ok(name) }
}

/// What has an answer of a fixed form.
fn names(
    fs: &dyn FileSystem,
    who: Who,
    node: u64,
    operation: &Operation<'_>,
) -> Outcome<Reply<'static>> {
    Ok(match operation {
        Operation::Lookup(name) => Reply::Entry(fs.lookup(node, plain(*name)?)?),
        Operation::Getattr(args) => {
            let fh = args.flags.contains(GetattrFlags::FH).then_some(args.fh);
            Reply::Attr(fs.getattr(node, fh)?)
        }
        Operation::Statx(args) => Reply::Statx(fs.statx(node, args)?),
        Operation::Setattr(set) => Reply::Attr(fs.setattr(node, set)?),
        Operation::Symlink { name, target } => {
            Reply::Entry(fs.symlink(who, node, plain(*name)?, target.bytes())?)
        }
        Operation::Mknod(args, name) => Reply::Entry(fs.mknod(who, node, plain(*name)?, args)?),
        Operation::Mkdir(args, name) => Reply::Entry(fs.mkdir(who, node, plain(*name)?, args)?),
        Operation::Unlink(name) => done(fs.unlink(node, plain(*name)?))?,
        Operation::Rmdir(name) => done(fs.rmdir(node, plain(*name)?))?,
        Operation::Rename { newdir, from, to } => {
            done(fs.rename((node, plain(*from)?), (*newdir, plain(*to)?), 0))?
        }
        Operation::Rename2 { to_dir, from, to } => {
            done(fs.rename((node, plain(*from)?), (to_dir.newdir, plain(*to)?), to_dir.flags))?
        }
        Operation::Link { oldnodeid, name } => {
            Reply::Entry(fs.link(*oldnodeid, node, plain(*name)?)?)
        }
        Operation::Create(args, name) => {
            let (entry, open) = fs.create(who, node, plain(*name)?, args)?;
            Reply::Created(entry, open)
        }
        Operation::Tmpfile(args) => {
            let (entry, open) = fs.tmpfile(who, node, args)?;
            Reply::Created(entry, open)
        }
        Operation::Opendir(_) => Reply::Open(fs.opendir(node)?),
        Operation::Statfs => Reply::Statfs(fs.statfs(node)?),
        Operation::Setxattr { args, name, value } => {
            done(fs.setxattr(node, name.bytes(), value, args.flags))?
        }
        Operation::Removexattr { name } => done(fs.removexattr(node, name.bytes()))?,
        Operation::Syncfs => done(fs.syncfs())?,
        other => files(fs, node, other)?,
    })
}

/// What is done with open files.
fn files(fs: &dyn FileSystem, node: u64, operation: &Operation<'_>) -> Outcome<Reply<'static>> {
    use blockyard_fuse::wire::FsyncFlags;
    let is_data_only = |flags: FsyncFlags| flags.contains(FsyncFlags::FDATASYNC);
    Ok(match operation {
        Operation::Open(args) => Reply::Open(fs.open(node, args)?),
        Operation::Write(args, payload) => Reply::Written(fs.write(args, payload.here)?),
        Operation::Flush(args) => done(fs.flush(args))?,
        Operation::Release(args) => {
            fs.release(args.fh);
            Reply::Empty
        }
        Operation::Releasedir(args) => {
            fs.releasedir(args.fh);
            Reply::Empty
        }
        Operation::Fsync(args) => done(fs.fsync(args.fh, is_data_only(args.flags)))?,
        Operation::Fsyncdir(args) => done(fs.fsyncdir(args.fh, is_data_only(args.flags)))?,
        Operation::Fallocate(args) => done(fs.fallocate(args))?,
        Operation::Lseek(args) => Reply::Offset(fs.lseek(args)?),
        Operation::CopyFileRange(args) => {
            Reply::Written(u32::try_from(fs.copy_file_range(args)?).unwrap_or(u32::MAX))
        }
        Operation::CopyFileRange64(args) => Reply::Copied(fs.copy_file_range(args)?),
        Operation::Ioctl(..) => Reply::Error(Errno::ENOTTY),
        Operation::Destroy => Reply::Empty,
        // The kernel does without, and does not ask again.
        _ => Reply::Error(Errno::ENOSYS),
    })
}

fn done(outcome: Outcome) -> Outcome<Reply<'static>> {
    outcome.map(|()| Reply::Empty)
}
