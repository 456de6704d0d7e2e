use super::*;
use crate::error::Errno;
use crate::extension::SecurityContext;
use crate::init::Limits;
use crate::{MINOR, UNIQUE_INTERRUPT};

const LIMITS: Limits = Limits { max_write: 1 << 20, max_read: 1 << 20, head: Limits::HEAD };
const PROTOCOL: Protocol = Protocol {
    minor: MINOR,
    flags: InitFlags::SETXATTR_EXT
        .union(InitFlags::EXPORT_SUPPORT)
        .union(InitFlags::SECURITY_CTX)
        .union(InitFlags::CREATE_SUPP_GROUP),
    limits: LIMITS,
};

fn parse(bytes: &[u8]) -> std::result::Result<Request<'_>, Rejected> {
    Request::parse(bytes, 0, &PROTOCOL)
}

fn encode(operation: &Operation<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    operation.encode(&CALLER, &[], &PROTOCOL, &mut out);
    out
}

const CALLER: Caller =
    Caller { unique: 0x1122_3344_5566_7788, nodeid: 1, uid: 1000, gid: 100, pid: 4711 };

fn cbytes(bytes: &[u8]) -> CBytes<'_> {
    CBytes::new(bytes).unwrap()
}

fn name(bytes: &[u8]) -> Name<'_> {
    Name::new(bytes).unwrap()
}

/// One of each operation, with values that are told apart.
fn samples() -> Vec<Operation<'static>> {
    let read = ReadIn { fh: 3, offset: 4096, size: 8192, flags: 0o100_000, ..ReadIn::default() };
    let lock = FileLock { start: 1, end: i64::MAX as u64, kind: 1, pid: 9 };
    let lk = LkIn { fh: 3, owner: 7, lock, flags: LkFlags::FLOCK };
    let write = WriteIn { fh: 3, offset: 1, size: 4, ..WriteIn::default() };
    let copy = CopyFileRangeIn {
        fh_in: 1,
        off_in: 2,
        nodeid_out: 3,
        fh_out: 4,
        off_out: 5,
        len: 6,
        flags: 0,
    };
    let retrieve = NotifyRetrieveIn { offset: 12, size: 3 };
    let here = |here| Payload { here, elsewhere: 0 };
    vec![
        Operation::Lookup(name(b"...")),
        Operation::LookupDot,
        Operation::LookupParent,
        Operation::Forget { nlookup: 5 },
        Operation::BatchForget(List::new(&[1; 32]).unwrap()),
        Operation::Getattr(GetattrIn { flags: GetattrFlags::FH, fh: 3 }),
        Operation::Statx(StatxIn { sx_mask: 0x7ff, sx_flags: 0x2000, ..StatxIn::default() }),
        Operation::Setattr(SetAttr(SetattrIn {
            valid: SetattrValid::SIZE,
            size: 10,
            ..SetattrIn::default()
        })),
        Operation::Readlink,
        Operation::Symlink { name: name(b"l"), target: cbytes(b"../x/y") },
        Operation::Mknod(MknodIn { mode: 0o10_644, rdev: 3, umask: 0o22 }, name(b"fifo")),
        Operation::Mkdir(MkdirIn { mode: 0o755, umask: 0o22 }, name(b"d")),
        Operation::Unlink(name(b"f")),
        Operation::Rmdir(name(b"d")),
        Operation::Rename { newdir: 2, from: name(b"a"), to: name(b"b") },
        Operation::Rename2 {
            to_dir: Rename2In { newdir: 2, flags: 1 },
            from: name(b"a"),
            to: name(b"b"),
        },
        Operation::Link { oldnodeid: 4, name: name(b"hard") },
        Operation::Open(OpenIn { flags: 2, open_flags: OpenInFlags::KILL_SUIDGID }),
        Operation::Opendir(OpenIn { flags: 0o200_000, ..OpenIn::default() }),
        Operation::Read(read),
        Operation::Readdir(read),
        Operation::Readdirplus(read),
        Operation::Write(write, here(b"data")),
        Operation::Statfs,
        Operation::Release(ReleaseIn {
            fh: 3,
            release_flags: ReleaseFlags::FLUSH,
            ..ReleaseIn::default()
        }),
        Operation::Releasedir(ReleaseIn { fh: 4, ..ReleaseIn::default() }),
        Operation::Fsync(FsyncIn { fh: 3, flags: FsyncFlags::FDATASYNC }),
        Operation::Fsyncdir(FsyncIn { fh: 4, ..FsyncIn::default() }),
        Operation::Flush(FlushIn { fh: 3, lock_owner: 7 }),
        Operation::Setxattr {
            args: SetxattrIn { size: 2, flags: 1, setxattr_flags: SetxattrFlags::ACL_KILL_SGID },
            name: cbytes(b"user.a"),
            value: b"\0b",
        },
        Operation::Getxattr { size: 100, name: cbytes(b"user.a") },
        Operation::Listxattr { size: 0 },
        Operation::Removexattr { name: cbytes(b"user.a") },
        Operation::Init(InitIn::new(1 << 17, InitFlags::INIT_EXT)),
        Operation::Destroy,
        Operation::Getlk(lk),
        Operation::Setlk(lk),
        Operation::Setlkw(lk),
        Operation::Access { mask: 4 },
        Operation::Create(
            CreateIn { flags: 0o102, mode: 0o100_600, ..CreateIn::default() },
            name(b"new"),
        ),
        Operation::Tmpfile(CreateIn { mode: 0o100_600, ..CreateIn::default() }),
        Operation::Interrupt { unique: 8 },
        Operation::Bmap(BmapIn { block: 1, blocksize: 512 }),
        Operation::Ioctl(IoctlIn { cmd: 0x1234, in_size: 3, ..IoctlIn::default() }, b"abc"),
        Operation::Poll(PollIn { kh: 5, events: 1, ..PollIn::default() }),
        Operation::NotifyReply(retrieve, here(b"abc")),
        Operation::Fallocate(FallocateIn { fh: 3, offset: 1, length: 2, mode: 3 }),
        Operation::Lseek(LseekIn { fh: 3, offset: 1, whence: 4 }),
        Operation::CopyFileRange(copy),
        Operation::CopyFileRange64(copy),
        Operation::Setupmapping(SetupmappingIn {
            len: 4096,
            flags: MappingFlags::READ,
            ..SetupmappingIn::default()
        }),
        Operation::Removemapping(List::new(&[2; 16]).unwrap()),
        Operation::Syncfs,
    ]
}

#[test]
fn every_operation_comes_back_as_it_went() {
    let samples = samples();
    for operation in &samples {
        let bytes = encode(operation);
        let request = parse(&bytes).unwrap_or_else(|err| panic!("{operation:?}: {err}"));
        assert_eq!(request.operation, *operation);
        assert_eq!((request.header.unique, request.header.nodeid), (CALLER.unique, 1));
        assert_eq!((request.header.uid, request.header.gid, request.header.pid), (1000, 100, 4711));
    }
    let covered: std::collections::BTreeSet<_> = samples.iter().map(Operation::opcode).collect();
    assert!(Opcode::ALL.iter().all(|opcode| covered.contains(opcode)), "a sample of each");
}

#[test]
fn a_request_cut_at_any_byte_or_with_one_more_is_refused() {
    for operation in &samples() {
        let whole = encode(operation);
        for len in 0..whole.len() {
            let rejected = parse(&whole[..len]).unwrap_err();
            assert_eq!(rejected.header.is_some(), len >= InHeader::LEN, "{operation:?} at {len}");
            // The same with a header that owns up to it.
            if len >= InHeader::LEN && operation.opcode() != Opcode::Init {
                let mut cut = whole[..len].to_vec();
                cut[..4].copy_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
                let error = parse(&cut).unwrap_err();
                assert_eq!(error.error.errno(), Errno::EINVAL, "{operation:?} at {len}: {error}");
            }
        }
        let mut longer = whole.clone();
        longer.push(0);
        assert!(parse(&longer).is_err(), "{operation:?}");
        longer[..4].copy_from_slice(&u32::try_from(whole.len() + 1).unwrap().to_le_bytes());
        assert_eq!(parse(&longer).is_ok(), operation.opcode() == Opcode::Init, "{operation:?}");
    }
}

#[test]
fn a_lookup_is_laid_out_as_in_the_header() {
    // struct fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding; then the name.
    let golden = [
        &[44, 0, 0, 0, 1, 0, 0, 0][..],
        &[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11],
        &[1, 0, 0, 0, 0, 0, 0, 0, 0xe8, 3, 0, 0, 100, 0, 0, 0, 0x67, 0x12, 0, 0, 0, 0, 0, 0],
        b"abc\0",
    ]
    .concat();
    assert_eq!(encode(&Operation::Lookup(name(b"abc"))), golden);
    let request = parse(&golden).unwrap();
    assert_eq!(request.operation, Operation::Lookup(name(b"abc")));
    assert!(!request.is_resent());
}

#[test]
fn names_that_no_file_can_have_are_refused() {
    for (bytes, why) in [(&b""[..], "empty"), (b"a/b", "slash"), (b"/", "slash"), (b"a\0b", "NUL")]
    {
        assert!(Name::new(bytes).unwrap_err().to_string().contains(why), "{bytes:?}");
    }
    for dots in [&b"."[..], b".."] {
        let unlink = encode(&Operation::Unlink(name(dots)));
        assert_eq!(parse(&unlink).unwrap_err().error.errno(), Errno::EINVAL);
        let rename = Operation::Rename { newdir: 1, from: name(b"a"), to: name(dots) };
        assert!(parse(&encode(&rename)).is_err());
    }
}

#[test]
fn what_makes_files_takes_a_proper_name_only() {
    for dots in [&b"."[..], b".."] {
        let name = name(dots);
        for operation in [
            Operation::Mkdir(MkdirIn::default(), name),
            Operation::Mknod(MknodIn::default(), name),
            Operation::Create(CreateIn::default(), name),
            Operation::Symlink { name, target: cbytes(b"x") },
        ] {
            assert!(parse(&encode(&operation)).is_err(), "{operation:?}");
        }
    }
}

#[test]
fn data_may_lie_elsewhere_but_have_to_be_as_many_as_it_says() {
    // The data say how many there are, whatever the arguments say.
    let args = WriteIn { size: 7, ..WriteIn::default() };
    let mut bytes = Vec::new();
    let payload = Payload { here: b"0123456789", elsewhere: 90 };
    Operation::Write(args, payload).encode(&CALLER, &[], &PROTOCOL, &mut bytes);
    assert_eq!(bytes.len(), 90);
    assert_eq!(bytes[..4], [180, 0, 0, 0]);
    let request = Request::parse(&bytes, 90, &PROTOCOL).unwrap();
    let right = WriteIn { size: 100, ..args };
    assert_eq!(request.operation, Operation::Write(right, payload));
    assert!(Request::parse(&bytes, 89, &PROTOCOL).is_err());
    // Nothing else has data elsewhere.
    let mut read = encode(&Operation::Read(ReadIn::default()));
    read[0] += 8;
    let rejected = Request::parse(&read, 8, &PROTOCOL).unwrap_err();
    assert_eq!(*rejected.error.kind(), ErrorKind::Trailing(8));
}

#[test]
fn counts_and_lengths_that_lie_are_refused() {
    let mut batch = encode(&Operation::BatchForget(List::new(&[0; 32]).unwrap()));
    batch[40..44].copy_from_slice(&u32::MAX.to_le_bytes());
    let rejected = parse(&batch).unwrap_err();
    assert!(
        rejected.error.to_string().contains("invalid count 4294967295, expected 2"),
        "{rejected}"
    );
    assert!(!rejected.wants_reply(), "a forget has no reply");
    let mut ioctl = encode(&Operation::Ioctl(IoctlIn { in_size: 3, ..IoctlIn::default() }, b"abc"));
    ioctl[64..68].copy_from_slice(&4u32.to_le_bytes());
    let rejected = parse(&ioctl).unwrap_err();
    assert!(rejected.wants_reply());
}

#[test]
fn an_unknown_operation_is_answered_enosys_and_a_request_to_nobody_refused() {
    let mut bytes = encode(&Operation::Statfs);
    bytes[4] = 200;
    let rejected = parse(&bytes).unwrap_err();
    assert_eq!(rejected.error.errno(), Errno::ENOSYS);
    assert!(rejected.wants_reply());
    let mut bytes = encode(&Operation::Statfs);
    bytes[8..16].fill(0);
    assert!(parse(&bytes).is_err());
}

#[test]
fn setxattr_is_short_without_its_flag() {
    let old = Protocol { minor: 32, flags: InitFlags::empty(), limits: LIMITS };
    let args = SetxattrIn { size: 1, flags: 2, ..SetxattrIn::default() };
    let operation = Operation::Setxattr { args, name: cbytes(b"user.a"), value: b"v" };
    let mut bytes = Vec::new();
    operation.encode(&CALLER, &[], &old, &mut bytes);
    assert_eq!(bytes[40..], *b"\x01\0\0\0\x02\0\0\0user.a\0v");
    assert_eq!(Request::parse(&bytes, 0, &old).unwrap().operation, operation);
}

#[test]
fn extensions_stand_behind_the_names() {
    let mut extensions = Vec::new();
    crate::extension::write_groups(&[7], &mut extensions);
    let mut bytes = Vec::new();
    let mkdir = Operation::Mkdir(MkdirIn { mode: 0o700, umask: 0 }, name(b"d"));
    mkdir.encode(&CALLER, &extensions, &PROTOCOL, &mut bytes);
    let request = parse(&bytes).unwrap();
    assert_eq!((request.operation, request.extensions), (mkdir, &extensions[..]));
    // More than there is, and where none belong.
    bytes[36] = 200;
    assert!(parse(&bytes).is_err());
    let mut statfs = encode(&Operation::Statfs);
    statfs[36] = 1;
    statfs[0] += 8;
    statfs.extend_from_slice(&[0; 8]);
    assert!(parse(&statfs).is_err());
}

#[test]
fn extensions_have_the_form_of_the_version() {
    let mut extensions = Vec::new();
    let context = SecurityContext { name: cbytes(b"s"), value: b"v" };
    crate::extension::write_contexts(&[context], &mut extensions);
    let contexts = extensions.len();
    crate::extension::write_groups(&[7], &mut extensions);
    let mkdir = Operation::Mkdir(MkdirIn { mode: 0o700, umask: 0 }, name(b"dir4567"));
    // The arguments and the name; struct fuse_ext_header, struct fuse_secctx; the groups.
    let args = [&[0xc0, 1, 0, 0, 0, 0, 0, 0][..], b"dir4567\0"].concat();
    let security =
        [&[24, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..], b"s\0v\0\0\0\0\0"].concat();
    let groups = [16, 0, 0, 0, 32, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0];
    assert_eq!(contexts, security.len());
    let (secctx, group) = (InitFlags::SECURITY_CTX, InitFlags::CREATE_SUPP_GROUP);
    let both = secctx | group;
    let none = InitFlags::empty();
    for (minor, flags, extlen, expected) in [
        (35, both, 0, vec![]),
        (36, none, 0, vec![]),
        (36, secctx, 0, security.clone()),
        (37, both, 0, security.clone()),
        (37, group, 0, vec![]),
        (38, none, 0, vec![]),
        (38, secctx, 3, security.clone()),
        (38, group, 2, groups.to_vec()),
        (38, both, 5, [&security[..], &groups].concat()),
    ] {
        let protocol = Protocol { minor, flags, limits: LIMITS };
        let mut bytes = Vec::new();
        mkdir.encode(&CALLER, &extensions, &protocol, &mut bytes);
        let at = format!("7.{minor} with {flags:?}");
        assert_eq!(bytes[36], extlen, "{at}");
        assert_eq!(bytes[40..], [&args[..], &expected].concat(), "{at}");
        let request = Request::parse(&bytes, 0, &protocol).unwrap();
        assert_eq!((request.operation, request.extensions), (mkdir, &expected[..]), "{at}");
        if flags == none {
            bytes[36] = if minor < 38 { 0 } else { 2 };
            bytes[0] += 16;
            bytes.extend(groups);
            assert!(Request::parse(&bytes, 0, &protocol).is_err(), "{at}: not agreed on");
        }
    }
}

#[test]
fn dots_are_looked_up_only_where_that_was_agreed() {
    for (bytes, operation) in [(&b"."[..], Operation::LookupDot), (b"..", Operation::LookupParent)]
    {
        let asked = encode(&Operation::Lookup(name(bytes)));
        assert_eq!(parse(&asked).unwrap().operation, operation);
        let plain = Protocol { flags: InitFlags::empty(), ..PROTOCOL };
        let rejected = Request::parse(&asked, 0, &plain).unwrap_err();
        assert!(rejected.error.to_string().contains("directory itself"), "{rejected}");
    }
}

/// The kernel hands the first argument out apart from the rest, which for some operations is none (`fuse_set_zero_arg0`).
#[test]
fn a_request_in_parts_is_the_same() {
    for operation in &samples() {
        let whole = encode(operation);
        let (head, args) = whole.split_at(InHeader::LEN);
        let first = match operation {
            Operation::Lookup(_)
            | Operation::LookupDot
            | Operation::LookupParent
            | Operation::Unlink(_)
            | Operation::Rmdir(_)
            | Operation::Symlink { .. }
            | Operation::Removexattr { .. } => 0,
            Operation::Setxattr { .. } | Operation::Create(..) | Operation::Tmpfile(_) => 16,
            Operation::Mknod(..) | Operation::Rename2 { .. } => 16,
            Operation::Mkdir(..) | Operation::Rename { .. } | Operation::Link { .. } => 8,
            Operation::Getxattr { .. } | Operation::BatchForget(_) => 8,
            Operation::Write(..) | Operation::NotifyReply(..) => 40,
            Operation::Ioctl(..) => 32,
            Operation::Removemapping(_) => 4,
            _ => args.len(),
        };
        let (first, rest) = args.split_at(first);
        let request = Request::from_parts(head, first, rest, 0, &PROTOCOL);
        assert_eq!(request.unwrap().operation, *operation);
        if !first.is_empty() && operation.opcode() != Opcode::Init {
            let cut = &first[..first.len() - 1];
            assert!(Request::from_parts(head, cut, rest, 0, &PROTOCOL).is_err(), "{operation:?}");
            let long = [first, &[0]].concat();
            let mut head = head.to_vec();
            head[0] += 1;
            let request = Request::from_parts(&head, &long, rest, 0, &PROTOCOL);
            assert!(request.is_err(), "{operation:?}");
        }
    }
}

#[test]
fn a_head_is_all_but_the_data() {
    for operation in &samples() {
        let whole = encode(operation);
        let header = InHeader::read(&mut Reader::new(&whole)).unwrap();
        let is_data = matches!(operation, Operation::Write(..) | Operation::NotifyReply(..));
        assert_eq!(head_len(&header), if is_data { 80 } else { whole.len() });
        let request =
            Request::parse(&whole[..head_len(&header)], whole.len() - head_len(&header), &PROTOCOL);
        assert!(request.is_ok(), "{operation:?}");
    }
}

/// For each limit, the largest that is taken, and what becomes of more: refused, or as if so much had been asked for.
#[test]
fn lengths_of_the_peer_are_within_the_limits() {
    let limits = Limits { max_write: 8192, max_read: 16384, head: 1024 };
    let protocol = Protocol { limits, ..PROTOCOL };
    let takes = |operation: &Operation<'_>| {
        let mut bytes = Vec::new();
        operation.encode(&CALLER, &[], &protocol, &mut bytes);
        Request::parse(&bytes, 0, &protocol).map(|_| ())
    };
    let data = [0; 20_000];
    let end = i64::MAX as u64;
    let here = |len| Payload { here: &data[..len], elsewhere: 0 };
    let write = |offset, len| Operation::Write(WriteIn { offset, ..WriteIn::default() }, here(len));
    let retrieved = |offset, len| {
        Operation::NotifyReply(
            NotifyRetrieveIn { offset, ..NotifyRetrieveIn::default() },
            here(len),
        )
    };
    let xattr = |len: usize| Operation::Setxattr {
        args: SetxattrIn::default(),
        name: cbytes(b"user.ab"),
        value: &data[..len],
    };
    let batch = |count: usize| Operation::BatchForget(List::new(&data[..count * 16]).unwrap());
    let ioctl = |len: usize| Operation::Ioctl(IoctlIn::default(), &data[..len]);
    let allocate = |offset, length| {
        Operation::Fallocate(FallocateIn { offset, length, ..FallocateIn::default() })
    };
    let copy = |off_in, off_out| {
        Operation::CopyFileRange(CopyFileRangeIn { off_in, off_out, len: 5, ..Default::default() })
    };
    let truncate = |size| {
        Operation::Setattr(SetAttr(SetattrIn {
            valid: SetattrValid::SIZE,
            size,
            ..Default::default()
        }))
    };
    let read_at = |offset| Operation::Read(ReadIn { offset, size: 10, ..ReadIn::default() });
    for (most, more) in [
        (write(0, 8192), write(0, 8193)),
        (write(end - 1, 1), write(end, 1)),
        (retrieved(0, 16384), retrieved(0, 16385)),
        (retrieved(end, 0), retrieved(u64::MAX, 0)),
        (xattr(1024 - 64), xattr(1024 - 63)),
        (batch((8272 - 48) / 16), batch((8272 - 48) / 16 + 1)),
        (ioctl(8272 - 72), ioctl(8272 - 71)),
        (allocate(1, end - 1), allocate(1, end)),
        (copy(end - 5, 0), copy(end - 4, 0)),
        (copy(0, end - 5), copy(0, u64::MAX)),
        (truncate(end), truncate(end + 1)),
        (read_at(end - 10), read_at(end - 9)),
    ] {
        assert_eq!(takes(&most), Ok(()));
        let rejected = takes(&more).unwrap_err();
        assert_eq!(rejected.error.errno(), Errno::EINVAL, "{rejected}");
    }
    let size = |operation: &Operation<'_>| {
        let mut bytes = Vec::new();
        operation.encode(&CALLER, &[], &protocol, &mut bytes);
        match Request::parse(&bytes, 0, &protocol).unwrap().operation {
            Operation::Read(args) | Operation::Readdir(args) | Operation::Readdirplus(args) => {
                args.size
            }
            Operation::Getxattr { size, .. } | Operation::Listxattr { size } => size,
            Operation::Ioctl(args, _) => args.out_size,
            other => panic!("{other:?}"),
        }
    };
    // A cookie of a directory is no offset.
    let read = ReadIn { size: u32::MAX, ..ReadIn::default() };
    let cookie = ReadIn { offset: u64::MAX, ..read };
    assert_eq!(size(&Operation::Read(read)), 16384);
    assert_eq!(size(&Operation::Readdir(cookie)), 16384);
    assert_eq!(size(&Operation::Readdirplus(cookie)), 16384);
    let out = IoctlIn { out_size: u32::MAX, ..IoctlIn::default() };
    assert_eq!(size(&Operation::Ioctl(out, b"")), 16384);
    assert_eq!(size(&Operation::Getxattr { size: u32::MAX, name: cbytes(b"a") }), 65536);
    assert_eq!(size(&Operation::Listxattr { size: u32::MAX }), 65536);
}

#[test]
fn only_what_answers_a_notification_goes_without_a_unique() {
    let mut bytes =
        encode(&Operation::NotifyReply(NotifyRetrieveIn::default(), Payload::default()));
    bytes[8..16].fill(0);
    assert!(parse(&bytes).is_ok());
    let mut bytes = encode(&Operation::Statfs);
    bytes[8..16].fill(0);
    assert!(!parse(&bytes).unwrap_err().wants_reply(), "whose it would be");
    let caller = Caller { unique: 8 | UNIQUE_INTERRUPT, ..CALLER };
    let mut bytes = Vec::new();
    Operation::Interrupt { unique: 8 }.encode(&caller, &[], &PROTOCOL, &mut bytes);
    bytes[0] += 1;
    bytes.push(0);
    assert!(!parse(&bytes).unwrap_err().wants_reply());
}

#[test]
fn a_resent_request_says_so() {
    let caller = Caller { unique: 2 | crate::UNIQUE_RESEND, ..CALLER };
    let mut bytes = Vec::new();
    Operation::Statfs.encode(&caller, &[], &PROTOCOL, &mut bytes);
    assert!(parse(&bytes).unwrap().is_resent());
}

#[test]
fn attributes_to_set_are_those_that_count() {
    let args = SetattrIn {
        valid: SetattrValid::ATIME
            | SetattrValid::ATIME_NOW
            | SetattrValid::MTIME
            | SetattrValid::UID,
        mtime: (-5i64).cast_unsigned(),
        mtimensec: 7,
        uid: 12,
        size: 99,
        ..SetattrIn::default()
    };
    let set = SetAttr(args);
    assert_eq!((set.atime(), set.mtime()), (Some(SetTime::Now), Some(SetTime::To(-5, 7))));
    assert_eq!((set.uid(), set.gid(), set.size(), set.fh()), (Some(12), None, None, None));
    assert!(!set.kills_suidgid() && set.ctime().is_none());
}
