use super::*;
use crate::request::Name;
use crate::wire::Opcode;

fn round_trip(operation: &Operation<'_>, reply: Reply<'_>) {
    let expected = Expected::of(operation).unwrap();
    let mut bytes = Vec::new();
    reply.encode(78, &mut bytes);
    assert_eq!(Reply::header(&bytes, 0).unwrap().unique, 78);
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
    Reply::Error(Errno::ENOSPC).encode(78, &mut bytes);
    assert_eq!(bytes.len(), 16);
    assert_eq!(Reply::parse(expected, &bytes, 0).unwrap(), Reply::Error(Errno::ENOSPC));
    bytes.push(0);
    bytes[0] += 1;
    assert!(Reply::parse(expected, &bytes, 0).is_err(), "an error is a header only");
}

#[test]
fn every_kind_of_reply_comes_back_as_it_went() {
    let attr = Attr { ino: 1, size: 2, mode: 0o100_644, nlink: 1, ..Attr::default() };
    let entry = EntryOut { nodeid: 9, generation: 1, entry_valid: 2, attr, ..EntryOut::default() };
    let open = OpenOut { fh: 5, open_flags: FopenFlags::KEEP_CACHE, backing_id: -1 };
    let name = Name::new(b"x").unwrap();
    let read = ReadIn { size: 10, ..ReadIn::default() };
    let data = Reply::Data(Payload { here: b"0123456789", elsewhere: 0 });
    round_trip(&Operation::Lookup(name), Reply::Entry(entry));
    round_trip(
        &Operation::Getattr(GetattrIn::default()),
        Reply::Attr(AttrOut { attr, ..AttrOut::default() }),
    );
    let stat = Statx {
        mask: 0x7ff,
        mode: 0o100_644,
        btime: SxTime { sec: -1, nsec: 5 },
        ..Statx::default()
    };
    round_trip(
        &Operation::Statx(StatxIn::default()),
        Reply::Statx(StatxOut { stat, ..StatxOut::default() }),
    );
    round_trip(&Operation::Read(read), data);
    round_trip(&Operation::Readlink, data);
    round_trip(&Operation::Getxattr { size: 10, name: CBytes::new(b"a").unwrap() }, data);
    round_trip(
        &Operation::Getxattr { size: 0, name: CBytes::new(b"a").unwrap() },
        Reply::XattrSize(3),
    );
    round_trip(&Operation::Open(OpenIn::default()), Reply::Open(open));
    round_trip(&Operation::Create(CreateIn::default(), name), Reply::Created(entry, open));
    round_trip(
        &Operation::Write(WriteIn::default(), Payload { here: b"", elsewhere: 8 }),
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
    let copy = CopyFileRangeIn { len: 1 << 40, ..CopyFileRangeIn::default() };
    round_trip(&Operation::CopyFileRange64(copy), Reply::Copied(1 << 40));
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
    let set: Vec<_> = bytes.iter().enumerate().skip(16).filter(|(_, byte)| **byte != 0).collect();
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
    Reply::Data(Payload { here: b"12345", elsewhere: 0 }).encode(2, &mut bytes);
    let error = Reply::parse(read, &bytes, 0).unwrap_err();
    assert_eq!(error.to_string(), "reply to Read: invalid data in bytes 5, expected 4");
    let payload = Payload { here: b"", elsewhere: 4 };
    let mut bytes = Vec::new();
    Reply::Data(payload).encode(2, &mut bytes);
    assert_eq!((bytes.len(), bytes[0]), (16, 20));
    assert_eq!(Reply::parse(read, &bytes, 4).unwrap(), Reply::Data(payload));
    assert!(Reply::parse(read, &bytes, 3).is_err());
}

/// For each operation whose answer has a bound: the largest that is taken, and one that is refused.
fn largest<'a>(opcode: Opcode, zeroes: &'a [u8]) -> Option<(Operation<'a>, Reply<'a>, Reply<'a>)> {
    let data = |len: usize| Reply::Data(Payload { here: &zeroes[..len], elsewhere: 0 });
    let file = Attr { mode: 0o100_644, size: OFFSET_MAX, ..Attr::default() };
    let entry = EntryOut { nodeid: 2, attr: file, ..EntryOut::default() };
    let large = Attr { size: OFFSET_MAX + 1, ..file };
    let root = EntryOut { nodeid: 1, ..entry };
    let nothing = EntryOut { nodeid: 0, ..entry };
    let open = OpenOut::default();
    let name = Name::new(b"x").unwrap();
    let xattr = CBytes::new(b"user.a").unwrap();
    let read = ReadIn { size: 16, ..ReadIn::default() };
    let copy = CopyFileRangeIn { len: 16, ..CopyFileRangeIn::default() };
    let stat = |size| Statx { mode: 0o100_644, size, ..Statx::default() };
    let statx = |size| Reply::Statx(StatxOut { stat: stat(size), ..StatxOut::default() });
    let attr = |attr| Reply::Attr(AttrOut { attr, ..AttrOut::default() });
    let ioctl = IoctlIn { out_size: 16, ..IoctlIn::default() };
    let lock = |end| Reply::Lock(FileLock { start: 1, end, kind: 1, pid: 1 });
    let mkdir = Operation::Mkdir(MkdirIn::default(), name);
    let mknod = Operation::Mknod(MknodIn::default(), name);
    let getxattr = Operation::Getxattr { size: 16, name: xattr };
    let init = InitOut { major: 7, minor: 45, ..InitOut::default() };
    let payload = Payload { here: &zeroes[..16], elsewhere: 0 };
    Some(match opcode {
        Opcode::Lookup => (Operation::Lookup(name), Reply::Entry(nothing), Reply::Entry(root)),
        Opcode::Symlink => {
            let symlink = Operation::Symlink { name, target: xattr };
            (symlink, Reply::Entry(entry), Reply::Entry(nothing))
        }
        Opcode::Mkdir => (mkdir, Reply::Entry(entry), Reply::Entry(root)),
        Opcode::Mknod => (mknod, Reply::Entry(entry), Reply::Entry(nothing)),
        Opcode::Link => {
            let link = Operation::Link { oldnodeid: 3, name };
            (link, Reply::Entry(entry), Reply::Entry(nothing))
        }
        Opcode::Create => {
            let create = Operation::Create(CreateIn::default(), name);
            (create, Reply::Created(entry, open), Reply::Created(root, open))
        }
        Opcode::Tmpfile => {
            let tmpfile = Operation::Tmpfile(CreateIn::default());
            (tmpfile, Reply::Created(entry, open), Reply::Created(nothing, open))
        }
        Opcode::Getattr => (Operation::Getattr(GetattrIn::default()), attr(file), attr(large)),
        Opcode::Setattr => {
            let setattr = Operation::Setattr(crate::SetAttr(SetattrIn::default()));
            (setattr, attr(file), attr(Attr { mode: 0o644, ..file }))
        }
        Opcode::Statx => {
            let asked = Operation::Statx(StatxIn::default());
            (asked, statx(OFFSET_MAX), statx(OFFSET_MAX + 1))
        }
        Opcode::Readlink => (Operation::Readlink, data(4095), data(4096)),
        Opcode::Read => (Operation::Read(read), data(16), data(17)),
        Opcode::Readdir => (Operation::Readdir(read), data(16), data(17)),
        Opcode::Readdirplus => (Operation::Readdirplus(read), data(16), data(17)),
        Opcode::Getxattr => (getxattr, data(16), data(17)),
        Opcode::Listxattr => (Operation::Listxattr { size: 16 }, data(16), data(17)),
        Opcode::Write => {
            // What the argument says of the data does not count.
            let args = WriteIn { size: 99, ..WriteIn::default() };
            (Operation::Write(args, payload), Reply::Written(16), Reply::Written(17))
        }
        Opcode::CopyFileRange => {
            (Operation::CopyFileRange(copy), Reply::Written(16), Reply::Written(17))
        }
        Opcode::CopyFileRange64 => {
            (Operation::CopyFileRange64(copy), Reply::Copied(16), Reply::Copied(17))
        }
        Opcode::Lseek => {
            let lseek = Operation::Lseek(LseekIn::default());
            (lseek, Reply::Offset(OFFSET_MAX), Reply::Offset(OFFSET_MAX + 1))
        }
        Opcode::Getlk => (Operation::Getlk(LkIn::default()), lock(1), lock(0)),
        Opcode::Ioctl => {
            let answer = |len| Reply::Ioctl(IoctlOut::default(), &zeroes[..len]);
            (Operation::Ioctl(ioctl, b""), answer(16), answer(17))
        }
        Opcode::Init => {
            let asked = Operation::Init(crate::init::InitIn::new(0, InitFlags::empty()));
            (asked, Reply::Init(init), data(65))
        }
        _ => return None,
    })
}

#[test]
fn the_largest_answer_is_taken_and_one_more_refused() {
    let zeroes = [0; 4096];
    let bounded = Opcode::ALL.iter().filter_map(|opcode| largest(*opcode, &zeroes));
    let mut seen = 0;
    for (operation, most, more) in bounded {
        let expected = Expected::of(&operation).unwrap();
        let parse = |reply: &Reply<'_>| {
            let mut bytes = Vec::new();
            reply.encode(2, &mut bytes);
            Reply::parse(expected, &bytes, 0).map(drop)
        };
        assert_eq!(parse(&most), Ok(()), "{operation:?}");
        assert!(parse(&more).is_err(), "{operation:?}: {more:?}");
        seen += 1;
    }
    assert_eq!(seen, 23);
}

#[test]
fn an_ioctl_that_wants_other_areas_lists_them_all() {
    let args = IoctlIn { out_size: 8192, ..IoctlIn::default() };
    let expected = Expected::of(&Operation::Ioctl(args, b"")).unwrap();
    let parse = |in_iovs, out_iovs, len| {
        let flags = IoctlFlags::RETRY;
        let mut bytes = Vec::new();
        let out = IoctlOut { flags, in_iovs, out_iovs, ..IoctlOut::default() };
        Reply::Ioctl(out, &vec![0; len]).encode(2, &mut bytes);
        Reply::parse(expected, &bytes, 0).map(drop)
    };
    assert_eq!(parse(128, 128, 4096), Ok(()));
    assert!(parse(128, 129, 4112).is_err());
    assert!(parse(u32::MAX, u32::MAX, 0).is_err());
    assert!(parse(1, 1, 16).is_err());
}

#[test]
fn dots_may_be_the_root() {
    let attr = Attr { mode: 0o040_755, ..Attr::default() };
    let root = Reply::Entry(EntryOut { nodeid: 1, attr, ..EntryOut::default() });
    let mut bytes = Vec::new();
    root.encode(2, &mut bytes);
    let parent = Expected::of(&Operation::LookupParent).unwrap();
    assert_eq!(Reply::parse(parent, &bytes, 0).unwrap(), root);
}

#[test]
fn an_answer_to_an_interrupt_is_told_from_one_to_its_request() {
    // struct fuse_out_header: len, error, unique with FUSE_INT_REQ_BIT.
    let answer = |error: i32| {
        let mut bytes = vec![16, 0, 0, 0];
        bytes.extend(error.to_le_bytes());
        bytes.extend([9, 0, 0, 0, 0, 0, 0, 0]);
        bytes
    };
    let of = |bytes: &[u8]| Answered::of(&Reply::header(bytes, 0).unwrap());
    assert_eq!(of(&answer(-38)), Answered::Interrupt(8, Interrupted::Unsupported));
    assert_eq!(of(&answer(-11)), Answered::Interrupt(8, Interrupted::Again));
    assert_eq!(of(&answer(0)), Answered::Interrupt(8, Interrupted::Done));
    let mut bytes = Vec::new();
    Reply::Error(Errno::ENOSYS).encode(8 | UNIQUE_INTERRUPT, &mut bytes);
    assert_eq!(bytes, answer(-38));
    let statfs = Expected::of(&Operation::Statfs).unwrap();
    assert!(Reply::parse(statfs, &bytes, 0).is_err());
    Reply::Empty.encode(8, &mut bytes);
    assert_eq!(of(&bytes[16..]), Answered::Request(8));
}

#[test]
fn errors_that_are_none_are_refused() {
    let mut bytes = Vec::new();
    Reply::Error(Errno::from_raw(511)).encode(2, &mut bytes);
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
    Reply::Error(Errno::EIO).encode(2, &mut bytes);
    bytes[4..16].fill(0);
    bytes[4] = 6;
    assert!(Reply::header(&bytes, 0).is_ok());
    assert!(Reply::parse(statfs, &bytes, 0).is_err());
}

#[test]
fn what_nobody_waits_for_expects_no_reply() {
    assert!(Expected::of(&Operation::Forget { nlookup: 1 }).is_none());
    assert!(Expected::of(&Operation::Interrupt { unique: 1 }).is_none());
    assert!(Opcode::ALL.iter().filter(|opcode| !opcode.waits()).count() == 4);
}
