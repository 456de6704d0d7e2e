//! How a session begins: versions, flags and limits.
//!
//! The client names its version and what it can do; the server answers with the version that both know and what it
//! wants of that. A client of a newer major version sends a second INIT when it is answered with ours.

use crate::error::{Error, ErrorKind, Message, Result};
use crate::reply::Reply;
use crate::request::{DATA_AT, XATTR_SIZE_MAX};
use crate::wire::{InHeader, InitFlags, Opcode, Reader, SetxattrIn, Wire};
use crate::{MAJOR, MIN_READ_BUFFER, MINOR, MINOR_MIN};

/// Bytes of the arguments without [`InitFlags::INIT_EXT`].
const SHORT_IN_LEN: usize = 16;
/// Bytes of the arguments with it (`fuse_init_in`).
const LONG_IN_LEN: usize = 64;
/// Bytes of the answer, in all versions that are spoken (`fuse_init_out`).
const OUT_LEN: usize = 64;
/// The largest request in pages (`FUSE_MAX_MAX_PAGES` before 6.13, and what virtiofs allows).
pub const MAX_PAGES: u16 = 256;
/// Where the version that a flag needs is above the oldest that is spoken.
const NEEDS: &[(u32, InitFlags)] = &[
    (28, InitFlags::MAX_PAGES.union(InitFlags::CACHE_SYMLINKS)),
    (29, InitFlags::NO_OPENDIR_SUPPORT),
    (30, InitFlags::EXPLICIT_INVAL_DATA),
    (31, InitFlags::MAP_ALIGNMENT),
    (32, InitFlags::SUBMOUNTS),
    (33, InitFlags::HANDLE_KILLPRIV_V2.union(InitFlags::SETXATTR_EXT)),
    (36, InitFlags::INIT_EXT.union(InitFlags::SECURITY_CTX).union(InitFlags::HAS_INODE_DAX)),
    (38, InitFlags::CREATE_SUPP_GROUP.union(InitFlags::HAS_EXPIRE_ONLY)),
    (39, InitFlags::DIRECT_IO_ALLOW_MMAP),
    (40, InitFlags::PASSTHROUGH.union(InitFlags::NO_EXPORT_SUPPORT).union(InitFlags::HAS_RESEND)),
    (41, InitFlags::ALLOW_IDMAP),
    (42, InitFlags::OVER_IO_URING),
    (43, InitFlags::REQUEST_TIMEOUT),
];

/// What a client says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitIn {
    /// Its major version.
    pub major: u32,
    /// Its minor version.
    pub minor: u32,
    /// How far it reads ahead, in bytes.
    pub max_readahead: u32,
    /// What it can do.
    pub flags: InitFlags,
}

impl InitIn {
    /// A client of this version. All of them can send large writes, and servers use that unasked.
    #[must_use]
    pub const fn new(max_readahead: u32, flags: InitFlags) -> Self {
        let flags = flags.union(InitFlags::BIG_WRITES);
        Self { major: MAJOR, minor: MINOR, max_readahead, flags }
    }

    /// Parses the arguments. Of another major version nothing but the version is looked at, as its arguments may
    /// mean anything; bytes that a newer minor version may add are left alone.
    ///
    /// # Errors
    /// They are cut short.
    pub fn parse(args: &[u8]) -> Result<Self> {
        let short = || Error::new(Opcode::Init, ErrorKind::Truncated("arguments"));
        let mut r = Reader::new(args);
        let mut next = || u32::read(&mut r).ok_or_else(short);
        let (major, minor) = (next()?, next()?);
        if major != MAJOR {
            return Ok(Self { major, minor, max_readahead: 0, flags: InitFlags::empty() });
        }
        let (max_readahead, low) = (next()?, next()?);
        let is_long = InitFlags::from_bits_retain(low.into()).contains(InitFlags::INIT_EXT);
        let high = if is_long { next()? } else { 0 };
        let flags = InitFlags::from_bits_retain(u64::from(high) << 32 | u64::from(low));
        Ok(Self { major, minor, max_readahead, flags })
    }

    /// Appends the arguments, in the form that the version has.
    pub fn write(&self, out: &mut Vec<u8>) {
        let is_long = self.flags.contains(InitFlags::INIT_EXT);
        let end = out.len() + if is_long { LONG_IN_LEN } else { SHORT_IN_LEN };
        self.major.write(out);
        self.minor.write(out);
        self.max_readahead.write(out);
        let (low, high) = halves(self.flags);
        low.write(out);
        if is_long {
            high.write(out);
        }
        out.resize(end, 0);
    }
}

/// What a server answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InitOut {
    /// Its major version.
    pub major: u32,
    /// Its minor version.
    pub minor: u32,
    /// How far it lets the client read ahead, in bytes.
    pub max_readahead: u32,
    /// What is used.
    pub flags: InitFlags,
    /// Requests in the background at a time; 0 leaves it to the client.
    pub max_background: u16,
    /// From how many the client counts as congested; 0 leaves it to the client.
    pub congestion_threshold: u16,
    /// Bytes of data in a WRITE, at most.
    pub max_write: u32,
    /// Nanoseconds that times are a multiple of: a power of ten, 1 to 10^9.
    pub time_gran: u32,
    /// Pages of a request, with [`InitFlags::MAX_PAGES`].
    pub max_pages: u16,
    /// Logarithm of what DAX mappings are aligned to, with [`InitFlags::MAP_ALIGNMENT`].
    pub map_alignment: u16,
    /// How deep file systems may stand on each other below [`InitFlags::PASSTHROUGH`] (7.40).
    pub max_stack_depth: u32,
    /// Seconds after which an unanswered request ends the session, with [`InitFlags::REQUEST_TIMEOUT`] (7.43).
    pub request_timeout: u16,
}

impl InitOut {
    /// Parses the answer to an INIT.
    ///
    /// # Errors
    /// It is cut short, or of a version that is not spoken.
    pub fn parse(body: &[u8]) -> Result<Self> {
        Self::read(&mut Reader::new(body))
            .ok_or_else(|| Error::new(Opcode::Init, ErrorKind::Truncated("answer")))
    }

    fn read(r: &mut Reader<'_>) -> Option<Self> {
        let mut out = Self { major: u32::read(r)?, minor: u32::read(r)?, ..Self::default() };
        if out.major != MAJOR {
            return Some(out);
        }
        out.max_readahead = u32::read(r)?;
        let low = u32::read(r)?;
        out.max_background = u16::read(r)?;
        out.congestion_threshold = u16::read(r)?;
        out.max_write = u32::read(r)?;
        out.time_gran = u32::read(r)?;
        out.max_pages = u16::read(r)?;
        out.map_alignment = u16::read(r)?;
        let is_long = InitFlags::from_bits_retain(low.into()).contains(InitFlags::INIT_EXT);
        let high = Some(u32::read(r)?).filter(|_| is_long).unwrap_or(0);
        out.flags = InitFlags::from_bits_retain(u64::from(high) << 32 | u64::from(low));
        out.max_stack_depth = u32::read(r)?;
        out.request_timeout = u16::read(r)?;
        Some(out)
    }

    /// Appends the answer.
    pub fn write(&self, out: &mut Vec<u8>) {
        let end = out.len() + OUT_LEN;
        self.major.write(out);
        self.minor.write(out);
        self.max_readahead.write(out);
        let (low, high) = halves(self.flags);
        low.write(out);
        self.max_background.write(out);
        self.congestion_threshold.write(out);
        self.max_write.write(out);
        self.time_gran.write(out);
        self.max_pages.write(out);
        self.map_alignment.write(out);
        high.write(out);
        self.max_stack_depth.write(out);
        self.request_timeout.write(out);
        out.resize(end, 0);
    }
}

/// What a session has agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// The minor version: the smaller of both.
    pub minor: u32,
    /// What is used.
    pub flags: InitFlags,
    /// How long messages may be.
    pub limits: Limits,
}

/// How long messages of a session may be. A request that is longer is refused, and one that asks for more is
/// answered as if it had asked for so much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of data in a WRITE.
    pub max_write: u32,
    /// Bytes of data in the answer to a READ, READDIR, READDIRPLUS or IOCTL: the pages of a request.
    pub max_read: u32,
    /// Bytes of a request that has neither data nor a list.
    pub head: u32,
}

impl Limits {
    /// The longest request with neither data nor a list: a SETXATTR with the longest name and value that Linux knows.
    /// Names, paths and security contexts are shorter.
    pub const HEAD: u32 = 40 + 16 + 256 + XATTR_SIZE_MAX;
}

const _: () = assert!(InHeader::LEN + SetxattrIn::LEN == 40 + 16);

impl Protocol {
    /// Before the INIT: all that is known to both is the form of the headers.
    pub const NONE: Self = Self {
        minor: MINOR_MIN,
        flags: InitFlags::empty(),
        limits: Limits { max_write: 0, max_read: 0, head: Limits::HEAD },
    };

    /// How much room a read(2) of the device wants: the kernel hands a request out whole or not at all.
    #[must_use]
    pub fn read_buffer_len(&self) -> usize {
        MIN_READ_BUFFER.max(DATA_AT + self.limits.max_write as usize)
    }

    /// How much room for data an entry of a ring needs, with [`InitFlags::OVER_IO_URING`].
    #[must_use]
    pub fn payload_len(&self) -> usize {
        MIN_READ_BUFFER.max(self.limits.max_write.max(self.limits.max_read) as usize)
    }

    /// Bytes of the longest request of this operation.
    pub(crate) fn longest(&self, opcode: Opcode) -> u64 {
        let Limits { max_write, max_read, head } = self.limits;
        match opcode {
            Opcode::Write => DATA_AT as u64 + u64::from(max_write),
            Opcode::NotifyReply => DATA_AT as u64 + u64::from(max_read),
            // What is in these the kernel cuts to the buffer.
            Opcode::Ioctl | Opcode::BatchForget | Opcode::Removemapping => {
                u64::from(head).max(self.read_buffer_len() as u64)
            }
            _ => head.into(),
        }
    }

    /// Whether what makes files may carry security contexts, and a group of the caller.
    pub(crate) fn extensions(&self) -> (bool, bool) {
        let has = |flag| self.flags.contains(flag);
        let groups = has(InitFlags::CREATE_SUPP_GROUP) && self.has_extension_length();
        (has(InitFlags::SECURITY_CTX) && self.minor >= 36, groups)
    }

    /// Whether a request says how long its extensions are.
    pub(crate) const fn has_extension_length(&self) -> bool {
        self.minor >= 38
    }
}

/// What a server wants of its clients.
#[derive(Clone, Copy, Debug)]
pub struct ServerConfig {
    /// What is used where the client can.
    pub flags: InitFlags,
    /// How far clients may read ahead, in bytes.
    pub max_readahead: u32,
    /// Requests in the background at a time; 0 leaves it to the client.
    pub max_background: u16,
    /// From how many the client counts as congested; 0 leaves it to the client.
    pub congestion_threshold: u16,
    /// Bytes of data in a WRITE, at most; at least 4 KiB. More than 32 pages need [`InitFlags::MAX_PAGES`].
    pub max_write: u32,
    /// Logarithm of what DAX mappings are aligned to.
    pub map_alignment: u16,
    /// How deep file systems may stand on each other below a passthrough.
    pub max_stack_depth: u32,
    /// Seconds after which an unanswered request ends the session; 0 for never.
    pub request_timeout: u16,
}

/// What comes of an INIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The session has begun.
    Agreed(InitOut, Protocol),
    /// The client is of a newer major version, and is to send another INIT.
    Again(InitOut),
}

/// Bytes of data in a request to a server of files, at most: Linux takes no more.
const MAX_WRITE: u32 = 1 << 20;
/// How far its clients may read ahead.
const MAX_READAHEAD: u32 = 1 << 20;
/// The least that `max_write` can be: Linux takes less as so much.
const MIN_MAX_WRITE: u32 = 4096;
/// How deep file systems may stand on each other (`FILESYSTEM_MAX_STACK_DEPTH` of Linux).
const MAX_STACK_DEPTH: u32 = 2;
/// Flags that change what messages look like: a server must not use one that was not offered.
const FORM: InitFlags = InitFlags::SETXATTR_EXT
    .union(InitFlags::INIT_EXT)
    .union(InitFlags::SECURITY_CTX)
    .union(InitFlags::CREATE_SUPP_GROUP)
    .union(InitFlags::OVER_IO_URING);
/// Pages of a request without [`InitFlags::MAX_PAGES`] (`FUSE_DEFAULT_MAX_PAGES_PER_REQ`).
const DEFAULT_PAGES: u32 = 32;

impl ServerConfig {
    /// That of a server of files, which has these flags and so many requests in the background for itself to say.
    #[must_use]
    pub const fn of_files(flags: InitFlags, max_background: u16) -> Self {
        Self {
            flags: InitFlags::ASYNC_READ
                .union(InitFlags::BIG_WRITES)
                .union(InitFlags::ASYNC_DIO)
                .union(InitFlags::MAX_PAGES)
                // Not ATOMIC_O_TRUNC: by it the kernel throws away what programs have written by maps, and asks nobody.
                .union(InitFlags::PARALLEL_DIROPS)
                .union(flags),
            max_readahead: MAX_READAHEAD,
            max_background,
            congestion_threshold: max_background - max_background / 4,
            max_write: MAX_WRITE,
            map_alignment: 0,
            max_stack_depth: 0,
            request_timeout: 0,
        }
    }

    /// Answers the INIT `unique` of a client whose pages have `page` bytes: appends the answer, and says what both agree on, if
    /// they do by now: a client of a newer major version sends another INIT.
    ///
    /// # Errors
    /// As of [`ServerConfig::answer`]. The answer says so.
    ///
    /// # Panics
    /// A page is of less than 4 KiB.
    pub fn greet(
        &self,
        unique: u64,
        client: &InitIn,
        page: u32,
        out: &mut Vec<u8>,
    ) -> Result<Option<Protocol>> {
        let answer = self.answer(client, page);
        let reply = match &answer {
            Ok(Answer::Agreed(out, _) | Answer::Again(out)) => Reply::Init(*out),
            Err(err) => Reply::Error(err.errno()),
        };
        reply.encode(unique, out);
        match answer? {
            Answer::Agreed(_, protocol) => Ok(Some(protocol)),
            Answer::Again(_) => Ok(None),
        }
    }

    /// Whether a client can do what is wanted. Linux says nothing about what it leaves out.
    ///
    /// # Errors
    /// [`ErrorKind::Violation`]: flags without a name, or what Linux switches off again.
    pub fn check(&self) -> Result<()> {
        let violation =
            |rule, got| Err(Error::new(Message::Session, ErrorKind::Violation { rule, got }));
        let unknown = self.flags - (InitFlags::NAMED - InitFlags::INIT_RESERVED);
        if !unknown.is_empty() {
            return violation("only flags with a meaning are used", unknown.bits());
        }
        if self.flags.contains(InitFlags::PASSTHROUGH) {
            if self.flags.contains(InitFlags::WRITEBACK_CACHE) {
                return violation("PASSTHROUGH goes without WRITEBACK_CACHE", self.flags.bits());
            }
            if !(1..=MAX_STACK_DEPTH).contains(&self.max_stack_depth) {
                let got = self.max_stack_depth.into();
                return violation("with PASSTHROUGH max_stack_depth is 1 or 2", got);
            }
        }
        Ok(())
    }

    /// Answers a client whose pages have `page` bytes: on `/dev/fuse` those of this machine.
    ///
    /// # Errors
    /// [`ErrorKind::Version`]: it is too old; as of [`ServerConfig::check`].
    ///
    /// # Panics
    /// A page is of less than 4 KiB.
    pub fn answer(&self, client: &InitIn, page: u32) -> Result<Answer> {
        assert!(page >= MIN_MAX_WRITE, "a page of {page} bytes");
        self.check()?;
        if client.major > MAJOR {
            let out = InitOut { major: MAJOR, minor: MINOR, ..InitOut::default() };
            return Ok(Answer::Again(out));
        }
        if client.major < MAJOR || client.minor < MINOR_MIN {
            let (major, minor) = (client.major, client.minor);
            return Err(Error::new(Opcode::Init, ErrorKind::Version { major, minor }));
        }
        let minor = client.minor.min(MINOR);
        let mut flags = self.flags.union(InitFlags::BIG_WRITES) & client.flags;
        // Without the long form, the upper half does not travel.
        flags |= client.flags & InitFlags::INIT_EXT;
        flags &= known_to(minor);
        if !flags.contains(InitFlags::INIT_EXT) {
            flags &= InitFlags::from_bits_retain(u32::MAX.into());
        }
        let has_pages = flags.contains(InitFlags::MAX_PAGES);
        let pages_limit = if has_pages { MAX_PAGES.into() } else { DEFAULT_PAGES };
        let max_write = self.max_write.clamp(MIN_MAX_WRITE, page.saturating_mul(pages_limit));
        let max_pages = u16::try_from(max_write.div_ceil(page)).unwrap_or(MAX_PAGES);
        let with = |flag, value| if flags.contains(flag) { value } else { 0 };
        let out = InitOut {
            major: MAJOR,
            minor,
            max_readahead: self.max_readahead.min(client.max_readahead),
            flags,
            max_background: self.max_background,
            congestion_threshold: self.congestion_threshold,
            max_write,
            time_gran: 1,
            max_pages: with(InitFlags::MAX_PAGES, max_pages),
            map_alignment: with(InitFlags::MAP_ALIGNMENT, self.map_alignment),
            max_stack_depth: if flags.contains(InitFlags::PASSTHROUGH) {
                self.max_stack_depth
            } else {
                0
            },
            request_timeout: with(InitFlags::REQUEST_TIMEOUT, self.request_timeout),
        };
        let pages = if has_pages { max_pages.into() } else { DEFAULT_PAGES };
        let limits = limits(max_write, pages, page);
        Ok(Answer::Agreed(out, Protocol { minor, flags, limits }))
    }
}

/// What a client that has said `client`, and whose pages have `page` bytes, makes of a server's answer. What the server
/// uses unasked is left out, as Linux does.
///
/// # Errors
/// [`ErrorKind::Version`]: of another major version, or too old; [`ErrorKind::Violation`]: what it uses unasked would
/// change what messages look like.
pub fn accept(client: &InitIn, server: &InitOut, page: u32) -> Result<Protocol> {
    if server.major != MAJOR || server.minor < MINOR_MIN {
        let (major, minor) = (server.major, server.minor);
        return Err(Error::new(Opcode::Init, ErrorKind::Version { major, minor }));
    }
    let unasked = (server.flags - client.flags) & FORM;
    if !unasked.is_empty() {
        let rule = "a server uses only forms of messages that its client offers";
        return Err(Error::new(Opcode::Init, ErrorKind::Violation { rule, got: unasked.bits() }));
    }
    let flags = server.flags & client.flags;
    let has_pages = flags.contains(InitFlags::MAX_PAGES);
    let pages =
        if has_pages { u32::from(server.max_pages.clamp(1, MAX_PAGES)) } else { DEFAULT_PAGES };
    let most = pages.saturating_mul(page);
    let max_write = server.max_write.clamp(MIN_MAX_WRITE, most.max(MIN_MAX_WRITE));
    let minor = client.minor.min(server.minor);
    Ok(Protocol { minor, flags, limits: limits(max_write, pages, page) })
}

fn limits(max_write: u32, pages: u32, page: u32) -> Limits {
    Limits { max_write, max_read: pages.saturating_mul(page), head: Limits::HEAD }
}

/// The flags that a version knows.
fn known_to(minor: u32) -> InitFlags {
    let newer = NEEDS.iter().filter(|(needed, _)| minor < *needed);
    newer.fold(InitFlags::NAMED, |known, (_, flags)| known - *flags)
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
fn halves(flags: InitFlags) -> (u32, u32) {
    (flags.bits() as u32, (flags.bits() >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u32 = 4096;

    fn config() -> ServerConfig {
        ServerConfig {
            flags: InitFlags::ASYNC_READ
                | InitFlags::MAX_PAGES
                | InitFlags::SUBMOUNTS
                | InitFlags::HAS_RESEND
                | InitFlags::REQUEST_TIMEOUT,
            max_readahead: 128 << 10,
            max_background: 64,
            congestion_threshold: 48,
            max_write: 1 << 20,
            map_alignment: 12,
            max_stack_depth: 1,
            request_timeout: 30,
        }
    }

    fn agreed(client: &InitIn) -> (InitOut, Protocol) {
        match config().answer(client, PAGE).unwrap() {
            Answer::Agreed(out, protocol) => (out, protocol),
            Answer::Again(out) => panic!("{out:?}"),
        }
    }

    #[test]
    fn a_client_of_today_gets_all_that_is_wanted() {
        let all = InitFlags::from_bits_retain(0x7ff_ffff_ffff);
        let (out, protocol) = agreed(&InitIn::new(1 << 20, all));
        assert_eq!((out.minor, out.max_readahead, out.max_write), (45, 128 << 10, 1 << 20));
        assert_eq!(out.flags, config().flags | InitFlags::BIG_WRITES | InitFlags::INIT_EXT);
        assert_eq!((out.max_pages, out.request_timeout, out.map_alignment), (256, 30, 0));
        assert_eq!(accept(&InitIn::new(1 << 20, all), &out, PAGE).unwrap(), protocol);
        assert_eq!(protocol.read_buffer_len(), 80 + (1 << 20));
        assert_eq!(protocol.payload_len(), 1 << 20);
    }

    #[test]
    fn an_old_client_is_offered_nothing_that_came_later() {
        let everything = InitFlags::all();
        let (out, protocol) = agreed(&InitIn { minor: 27, ..InitIn::new(0, everything) });
        assert_eq!(out.minor, 27);
        assert_eq!(protocol.flags, InitFlags::ASYNC_READ | InitFlags::BIG_WRITES);
        assert_eq!((out.max_write, out.max_pages, out.request_timeout), (128 << 10, 0, 0));
    }

    #[test]
    fn a_newer_client_is_met_at_this_version_and_a_newer_major_is_asked_again() {
        let client = InitIn { minor: 99, ..InitIn::new(0, InitFlags::ASYNC_READ) };
        assert_eq!(agreed(&client).0.minor, MINOR);
        let client = InitIn { major: 8, ..client };
        let Answer::Again(out) = config().answer(&client, PAGE).unwrap() else { panic!("agreed") };
        assert_eq!((out.major, out.minor), (7, MINOR));
        for (major, minor) in [(7, 26), (6, 45)] {
            let error = config().answer(&InitIn { major, minor, ..client }, PAGE).unwrap_err();
            assert_eq!(*error.kind(), ErrorKind::Version { major, minor });
            assert_eq!(error.errno().raw(), 71);
        }
    }

    #[test]
    fn what_a_server_uses_unasked_is_left_out_but_forms_of_messages_are_refused() {
        let client = InitIn::new(0, InitFlags::ASYNC_READ);
        let (out, _) = agreed(&client);
        let unasked = InitOut { flags: InitFlags::WRITEBACK_CACHE | InitFlags::ASYNC_READ, ..out };
        assert_eq!(accept(&client, &unasked, PAGE).unwrap().flags, InitFlags::ASYNC_READ);
        for form in [InitFlags::SETXATTR_EXT, InitFlags::SECURITY_CTX] {
            let bad = InitOut { flags: form, ..out };
            assert!(accept(&client, &bad, PAGE).unwrap_err().to_string().contains("offers"));
        }
        let small = InitOut { max_write: 0, ..out };
        assert_eq!(accept(&client, &small, PAGE).unwrap().limits.max_write, 4096);
        assert!(accept(&client, &InitOut { major: 8, ..out }, PAGE).is_err());
    }

    /// `struct fuse_init_out` as libfuse 3.14 answers Linux with its defaults (`do_init` in lib/fuse_lowlevel.c), as
    /// QEMU's virtiofsd 7.2 does (tools/virtiofsd/fuse_lowlevel.c), and as virtiofsd 1.14 does (src/server.rs).
    #[test]
    fn servers_that_linux_mounts_are_accepted() {
        let answer = |minor: u8, flags: u32, max_write: u32, pages: u16| {
            let mut bytes = vec![7, 0, 0, 0, minor, 0, 0, 0, 0, 0, 2, 0];
            bytes.extend(flags.to_le_bytes());
            bytes.extend([0, 0, 0, 0]);
            bytes.extend(max_write.to_le_bytes());
            bytes.extend(1u32.to_le_bytes());
            bytes.extend(pages.to_le_bytes());
            bytes.resize(64, 0);
            bytes
        };
        let offered = InitFlags::NAMED - InitFlags::BIG_WRITES - InitFlags::INIT_RESERVED;
        let client = InitIn::new(128 << 10, offered);
        // BIG_WRITES always, ASYNC_READ, AUTO_INVAL_DATA, SPLICE_*, MAX_PAGES and others.
        let libfuse = answer(38, 0x0044_d3f1, 1 << 20, 256);
        let qemu = answer(36, 0x2034_9021, 1 << 20, 256);
        let rust = answer(38, 0x6464_a029, 1 << 20, 256);
        for bytes in [libfuse, qemu, rust] {
            let out = InitOut::parse(&bytes).unwrap();
            let protocol = accept(&client, &out, PAGE).unwrap();
            assert_eq!(protocol.flags, out.flags);
            assert!(protocol.flags.contains(InitFlags::BIG_WRITES));
            let pages = if protocol.flags.contains(InitFlags::MAX_PAGES) { 256 } else { 32 };
            assert_eq!(protocol.limits.max_write, pages * PAGE);
            // A client that says less is served, too.
            let plain = InitIn::new(0, InitFlags::NAMED & FORM);
            accept(&plain, &out, PAGE).unwrap();
        }
    }

    #[test]
    fn only_flags_with_a_name_are_agreed_to() {
        let client = InitIn::new(0, InitFlags::all());
        assert!(InitFlags::NAMED.contains(agreed(&client).0.flags));
        for flags in [InitFlags::from_bits_retain(1 << 60), InitFlags::INIT_RESERVED] {
            let config = ServerConfig { flags, ..config() };
            assert!(config.check().is_err());
            assert!(config.answer(&client, PAGE).is_err());
        }
    }

    #[test]
    fn what_linux_would_switch_off_is_told() {
        let with = |flags, max_stack_depth| ServerConfig { flags, max_stack_depth, ..config() };
        assert!(with(InitFlags::PASSTHROUGH, 1).check().is_ok());
        assert!(with(InitFlags::PASSTHROUGH, 2).check().is_ok());
        assert!(with(InitFlags::PASSTHROUGH, 0).check().is_err());
        assert!(with(InitFlags::PASSTHROUGH, 3).check().is_err());
        let both = InitFlags::PASSTHROUGH | InitFlags::WRITEBACK_CACHE;
        let error = with(both, 1).check().unwrap_err().to_string();
        assert!(error.contains("WRITEBACK_CACHE"), "{error}");
        assert!(with(InitFlags::WRITEBACK_CACHE, 0).check().is_ok());
    }

    #[test]
    fn pages_are_those_of_the_client() {
        let client = InitIn::new(0, InitFlags::NAMED);
        let Answer::Agreed(out, protocol) = config().answer(&client, 65536).unwrap() else {
            panic!("not agreed");
        };
        assert_eq!((out.max_pages, out.max_write), (16, 1 << 20));
        assert_eq!(accept(&client, &out, 65536).unwrap(), protocol);
    }

    #[test]
    fn the_forms_are_those_of_the_header() {
        // struct fuse_init_in before 7.36, and with FUSE_INIT_EXT.
        let mut short = Vec::new();
        InitIn { minor: 31, ..InitIn::new(0x20000, InitFlags::ASYNC_READ) }.write(&mut short);
        assert_eq!(short, [7, 0, 0, 0, 31, 0, 0, 0, 0, 0, 2, 0, 0x21, 0, 0, 0]);
        let mut long = Vec::new();
        let flags = InitFlags::ASYNC_READ | InitFlags::INIT_EXT | InitFlags::OVER_IO_URING;
        InitIn::new(0x20000, flags).write(&mut long);
        assert_eq!(long.len(), 64);
        assert_eq!(long[..20], [7, 0, 0, 0, 45, 0, 0, 0, 0, 0, 2, 0, 0x21, 0, 0, 0x40, 0, 2, 0, 0]);
        assert_eq!(InitIn::parse(&long).unwrap().flags, flags | InitFlags::BIG_WRITES);
        assert!(InitIn::parse(&long[..19]).is_err());
        // struct fuse_init_out: max_stack_depth at 36, request_timeout at 40.
        let mut bytes = Vec::new();
        let out = InitOut {
            major: 7,
            minor: 45,
            max_stack_depth: 2,
            request_timeout: 0x1234,
            max_pages: 256,
            flags,
            ..InitOut::default()
        };
        out.write(&mut bytes);
        assert_eq!(bytes.len(), 64);
        assert_eq!(bytes[28..42], [0, 1, 0, 0, 0, 2, 0, 0, 2, 0, 0, 0, 0x34, 0x12]);
        assert_eq!(InitOut::parse(&bytes).unwrap(), out);
        assert!(InitOut::parse(&bytes[..41]).is_err());
    }
}
