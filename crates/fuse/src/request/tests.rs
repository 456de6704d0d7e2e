use super::*;
use crate::MINOR;

const PROTOCOL: Protocol =
    Protocol { minor: MINOR, flags: InitFlags::SETXATTR_EXT, max_write: 1 << 20 };

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
        Operation::Lookup(name(b"..")),
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
        Operation::Symlink { name: name(b"l"), target: b"../x/y" },
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
            name: b"user.a",
            value: b"\0b",
        },
        Operation::Getxattr { size: 100, name: b"user.a" },
        Operation::Listxattr { size: 0 },
        Operation::Removexattr { name: b"user.a" },
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
                assert_eq!(error.error.errno(), 22, "{operation:?} at {len}: {error}");
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
        assert!(parse(&encode(&Operation::Lookup(name(dots)))).is_ok());
        let unlink = encode(&Operation::Unlink(name(dots)));
        assert_eq!(parse(&unlink).unwrap_err().error.errno(), 22);
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
            Operation::Symlink { name, target: b"x" },
        ] {
            assert!(parse(&encode(&operation)).is_err(), "{operation:?}");
        }
    }
}

#[test]
fn data_may_lie_elsewhere_but_have_to_be_as_many_as_it_says() {
    let args = WriteIn { size: 100, ..WriteIn::default() };
    let mut bytes = Vec::new();
    let payload = Payload { here: b"0123456789", elsewhere: 90 };
    Operation::Write(args, payload).encode(&CALLER, &[], &PROTOCOL, &mut bytes);
    assert_eq!(bytes.len(), 90);
    assert_eq!(bytes[..4], [180, 0, 0, 0]);
    let request = Request::parse(&bytes, 90, &PROTOCOL).unwrap();
    assert_eq!(request.operation, Operation::Write(args, payload));
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
    assert!(rejected.error.to_string().contains("count is 4294967295 where 2"), "{rejected}");
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
    assert_eq!(rejected.error.errno(), 38);
    assert!(rejected.wants_reply());
    let mut bytes = encode(&Operation::Statfs);
    bytes[8..16].fill(0);
    assert!(parse(&bytes).is_err());
}

#[test]
fn setxattr_is_short_without_its_flag() {
    let old = Protocol { minor: 32, flags: InitFlags::empty(), max_write: 4096 };
    let args = SetxattrIn { size: 1, flags: 2, ..SetxattrIn::default() };
    let operation = Operation::Setxattr { args, name: b"user.a", value: b"v" };
    let mut bytes = Vec::new();
    operation.encode(&CALLER, &[], &old, &mut bytes);
    assert_eq!(bytes[40..], *b"\x01\0\0\0\x02\0\0\0user.a\0v");
    assert_eq!(Request::parse(&bytes, 0, &old).unwrap().operation, operation);
}

#[test]
fn extensions_stand_behind_the_names() {
    let extensions = [7; 16];
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
    // 7.36 and 7.37 had no length for them.
    let old = Protocol { minor: 37, flags: InitFlags::SECURITY_CTX, max_write: 4096 };
    let mut bytes = encode(&mkdir);
    bytes.extend_from_slice(&[1; 8]);
    bytes[0] += 8;
    assert_eq!(Request::parse(&bytes, 0, &old).unwrap().extensions, [1; 8]);
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
