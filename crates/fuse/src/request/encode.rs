//! From an operation to bytes.

use super::*;

/// Where [`InHeader::total_extlen`] stands.
const EXTLEN_AT: usize = 36;

/// Who asks, and of which node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// What the reply names. Never 0.
    pub unique: u64,
    /// The node.
    pub nodeid: u64,
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The process.
    pub pid: u32,
}

impl Operation<'_> {
    /// Appends the request, but for data that lie elsewhere, in the form that `protocol` has. Of `extensions`, those go
    /// with it that were agreed on, if the operation takes any.
    ///
    /// # Panics
    /// `extensions` are no multiple of 8 bytes, or more than 512 KiB.
    pub fn encode(
        &self,
        caller: &Caller,
        extensions: &[u8],
        protocol: &Protocol,
        out: &mut Vec<u8>,
    ) {
        assert!(extensions.len().is_multiple_of(8), "extensions come in units of 8 bytes");
        assert!(extensions.len() / 8 <= usize::from(u16::MAX), "extensions that fit their length");
        let start = out.len();
        let mut header = InHeader {
            len: 0,
            opcode: self.opcode() as u32,
            unique: caller.unique,
            nodeid: caller.nodeid,
            uid: caller.uid,
            gid: caller.gid,
            pid: caller.pid,
            total_extlen: 0,
        };
        header.write(out);
        self.write_args(protocol, out);
        let names_end = out.len();
        if takes_extensions(self.opcode()) {
            let agreed = crate::extension::agreed(extensions, protocol);
            agreed.for_each(|extension| out.extend_from_slice(extension));
        }
        if protocol.has_extension_length() {
            let units = (out.len() - names_end).div_ceil(8);
            header.total_extlen = u16::try_from(units).unwrap_or(u16::MAX);
        }
        let elsewhere = match self {
            Self::Write(_, payload) | Self::NotifyReply(_, payload) => payload.elsewhere,
            _ => 0,
        };
        header.len = u32::try_from(out.len() - start + elsewhere).unwrap_or(u32::MAX);
        patch(out, start, &header.len.to_le_bytes());
        patch(out, start + EXTLEN_AT, &header.total_extlen.to_le_bytes());
    }

    fn write_args(&self, protocol: &Protocol, out: &mut Vec<u8>) {
        match self {
            Self::Readlink | Self::Statfs | Self::Destroy => {}
            Self::Lookup(name) | Self::Unlink(name) | Self::Rmdir(name) => string(out, name.0),
            Self::LookupDot => string(out, b"."),
            Self::LookupParent => string(out, b".."),
            Self::Forget { nlookup } => nlookup.write(out),
            Self::BatchForget(list) => {
                BatchForgetIn { count: count(list.len()) }.write(out);
                out.extend_from_slice(list.bytes);
            }
            Self::Getattr(args) => args.write(out),
            Self::Statx(args) => args.write(out),
            Self::Setattr(args) => args.0.write(out),
            Self::Symlink { name, target } => {
                string(out, name.0);
                string(out, target.bytes());
            }
            Self::Mknod(args, name) => with_name(out, args, name.0),
            Self::Mkdir(args, name) => with_name(out, args, name.0),
            Self::Create(args, name) => with_name(out, args, name.0),
            Self::Tmpfile(args) => with_name(out, args, b"/"),
            Self::Rename { newdir, from, to } => {
                with_name(out, newdir, from.0);
                string(out, to.0);
            }
            Self::Rename2 { to_dir, from, to } => {
                with_name(out, to_dir, from.0);
                string(out, to.0);
            }
            Self::Link { oldnodeid, name } => with_name(out, oldnodeid, name.0),
            Self::Open(args) | Self::Opendir(args) => args.write(out),
            Self::Read(args) | Self::Readdir(args) | Self::Readdirplus(args) => args.write(out),
            Self::Write(args, payload) => {
                WriteIn { size: count(payload.len()), ..*args }.write(out);
                out.extend_from_slice(payload.here);
            }
            Self::Release(args) | Self::Releasedir(args) => args.write(out),
            Self::Fsync(args) | Self::Fsyncdir(args) => args.write(out),
            Self::Flush(args) => args.write(out),
            Self::Setxattr { args, name, value } => {
                let start = out.len();
                SetxattrIn { size: count(value.len()), ..*args }.write(out);
                if !protocol.flags.contains(InitFlags::SETXATTR_EXT) {
                    out.truncate(start + SETXATTR_IN_SHORT);
                }
                string(out, name.bytes());
                out.extend_from_slice(value);
            }
            Self::Getxattr { size, name } => {
                with_name(out, &GetxattrIn { size: *size }, name.bytes());
            }
            Self::Listxattr { size } => GetxattrIn { size: *size }.write(out),
            Self::Removexattr { name } => string(out, name.bytes()),
            Self::Init(args) => args.write(out),
            Self::Getlk(args) | Self::Setlk(args) | Self::Setlkw(args) => args.write(out),
            Self::Access { mask } => AccessIn { mask: *mask }.write(out),
            Self::Interrupt { unique } => unique.write(out),
            Self::Bmap(args) => args.write(out),
            Self::Ioctl(args, data) => {
                IoctlIn { in_size: count(data.len()), ..*args }.write(out);
                out.extend_from_slice(data);
            }
            Self::Poll(args) => args.write(out),
            Self::NotifyReply(args, payload) => {
                NotifyRetrieveIn { size: count(payload.len()), ..*args }.write(out);
                out.extend_from_slice(payload.here);
            }
            Self::Fallocate(args) => args.write(out),
            Self::Lseek(args) => args.write(out),
            Self::CopyFileRange(args) | Self::CopyFileRange64(args) => args.write(out),
            Self::Setupmapping(args) => args.write(out),
            Self::Removemapping(list) => {
                count(list.len()).write(out);
                out.extend_from_slice(list.bytes);
            }
            Self::Syncfs => 0u64.write(out),
        }
    }
}

fn patch(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = out.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.push(0);
}

fn with_name(out: &mut Vec<u8>, args: &impl Wire, name: &[u8]) {
    args.write(out);
    string(out, name);
}
