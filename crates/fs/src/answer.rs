//! From a request to its answer: bytes in, bytes out.

use blockyard_fuse::dirent::Entries;
use blockyard_fuse::wire::{GetattrFlags, OutHeader, Wire};
use blockyard_fuse::{Errno, Name, Operation, Payload, Protocol, Reply, Request};

use crate::filesystem::{FileSystem, Outcome, Who};

/// Where the data of an answer begin.
const HEAD: usize = OutHeader::LEN;

/// Answers requests one after the other, in memory of its own.
pub struct Answers {
    protocol: Protocol,
    /// A header, and the longest data of an answer behind it.
    room: Vec<u8>,
    /// Answers of a fixed form, and lists.
    answer: Vec<u8>,
    scratch: Vec<u8>,
}

impl Answers {
    /// For a connection that agreed on `protocol`.
    #[must_use]
    pub fn new(protocol: Protocol) -> Self {
        let room = HEAD + protocol.limits.max_read.max(protocol.limits.max_write) as usize;
        Self { protocol, room: vec![0; room], answer: Vec::new(), scratch: Vec::new() }
    }

    /// The answer to a message, whole; `None` if nobody waits for one.
    pub fn answer(&mut self, fs: &dyn FileSystem, message: &[u8]) -> Option<&[u8]> {
        let request = match Request::parse(message, 0, &self.protocol) {
            Ok(request) => request,
            Err(rejected) => {
                tracing::debug!(%rejected, "what is asked for is not understood");
                let unique = rejected.header.filter(|_| rejected.wants_reply())?.unique;
                return Some(self.reply(unique, Ok(Reply::Error(rejected.error.errno()))));
            }
        };
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
        let end = self.room.len().min(HEAD + size as usize);
        let done = self.room.get_mut(HEAD..end).ok_or(Errno::EINVAL).and_then(read);
        match done {
            Ok(len) => {
                let end = end.min(HEAD + len);
                head(unique, end - HEAD, &mut self.room, &mut self.scratch);
                self.room.get(..end).unwrap_or(&[])
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
                head(unique, len, &mut self.answer, &mut self.scratch);
                &self.answer
            }
            Err(errno) => self.reply(unique, Err(errno)),
        }
    }
}

/// Writes the header of `len` bytes of data to where it is to be, by way of `scratch`.
fn head(unique: u64, len: usize, message: &mut [u8], scratch: &mut Vec<u8>) {
    scratch.clear();
    Reply::Data(Payload { here: &[], elsewhere: len }).out_header(unique, 0).write(scratch);
    if let (Some(place), Some(bytes)) = (message.get_mut(..HEAD), scratch.get(..HEAD)) {
        place.copy_from_slice(bytes);
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
