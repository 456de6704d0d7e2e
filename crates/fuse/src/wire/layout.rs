//! Structures, numbers and flags against what the header says.

use std::collections::BTreeMap;

use super::*;
use crate::uring;

const HEADER: &str = include_str!("../../testdata/fuse-7.45.txt");

/// The fields of a structure of the header, in order: name, offset, width.
fn fields(structure: &str) -> (usize, Vec<(&'static str, usize, usize)>) {
    let mut len = None;
    let mut fields = Vec::new();
    for line in HEADER.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["struct", name, length] if name == structure => len = length.parse().ok(),
            [name, field, offset, width] if name == structure => {
                fields.push((field, offset.parse().unwrap(), width.parse().unwrap()));
            }
            _ => {}
        }
    }
    (len.unwrap_or_else(|| panic!("no struct {structure}")), fields)
}

/// Bytes that are told apart, wherever one looks.
fn distinct(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251 + 1).unwrap()).collect()
}

/// Holds `T` against the structure: each field is read from where the header has it, and written there; `named` says
/// which fields have another name here.
fn check<T: Wire + Fields>(structure: &str, named: &[(&str, &str)]) {
    let (len, fields) = fields(structure);
    assert_eq!(T::LEN, len, "{structure}");
    let bytes = distinct(len);
    let value = T::read(&mut Reader::new(&bytes)).unwrap();
    let ours = value.fields();
    assert_eq!(ours.len(), fields.len(), "{structure}");
    let mut written = Vec::new();
    value.write(&mut written);
    assert_eq!(written.len(), len, "{structure}");
    for (name, offset, width) in fields {
        let alias = named.iter().find(|(_, theirs)| *theirs == name).map(|(ours, _)| *ours);
        let name = alias.unwrap_or(name);
        let field = ours.iter().find(|(ours, _)| *ours == name);
        let (_, field) = field.unwrap_or_else(|| panic!("{structure} has no {name} here"));
        // Structures in structures have padding of their own.
        let expected = &bytes[offset..offset + width];
        let differs = field.iter().zip(expected).any(|(ours, theirs)| *ours != 0 && ours != theirs);
        assert!(field.len() == width && field[0] == expected[0] && !differs, "{structure}.{name}");
        assert_eq!(written[offset..offset + width], field[..], "{structure}.{name}");
    }
}

#[test]
fn structures_are_laid_out_as_in_the_header() {
    check::<InHeader>("fuse_in_header", &[]);
    check::<OutHeader>("fuse_out_header", &[]);
    check::<Attr>("fuse_attr", &[]);
    check::<SxTime>("fuse_sx_time", &[("sec", "tv_sec"), ("nsec", "tv_nsec")]);
    check::<Statx>("fuse_statx", &[]);
    check::<Kstatfs>("fuse_kstatfs", &[]);
    check::<FileLock>("fuse_file_lock", &[("kind", "type")]);
    check::<IoctlIovec>("fuse_ioctl_iovec", &[]);
    check::<ForgetOne>("fuse_forget_one", &[]);
    check::<BatchForgetIn>("fuse_batch_forget_in", &[]);
    check::<GetattrIn>("fuse_getattr_in", &[("flags", "getattr_flags")]);
    check::<StatxIn>("fuse_statx_in", &[("flags", "getattr_flags")]);
    check::<MknodIn>("fuse_mknod_in", &[]);
    check::<MkdirIn>("fuse_mkdir_in", &[]);
    check::<Rename2In>("fuse_rename2_in", &[]);
    check::<SetattrIn>("fuse_setattr_in", &[]);
    check::<OpenIn>("fuse_open_in", &[]);
    check::<CreateIn>("fuse_create_in", &[]);
    check::<ReleaseIn>("fuse_release_in", &[]);
    check::<FlushIn>("fuse_flush_in", &[]);
    check::<ReadIn>("fuse_read_in", &[]);
    check::<WriteIn>("fuse_write_in", &[]);
    check::<FsyncIn>("fuse_fsync_in", &[("flags", "fsync_flags")]);
    check::<SetxattrIn>("fuse_setxattr_in", &[]);
    check::<GetxattrIn>("fuse_getxattr_in", &[]);
    check::<LkIn>("fuse_lk_in", &[("lock", "lk"), ("flags", "lk_flags")]);
    check::<AccessIn>("fuse_access_in", &[]);
    check::<BmapIn>("fuse_bmap_in", &[]);
    check::<IoctlIn>("fuse_ioctl_in", &[]);
    check::<PollIn>("fuse_poll_in", &[]);
    check::<FallocateIn>("fuse_fallocate_in", &[]);
    check::<LseekIn>("fuse_lseek_in", &[]);
    check::<CopyFileRangeIn>("fuse_copy_file_range_in", &[]);
    check::<SetupmappingIn>("fuse_setupmapping_in", &[]);
    check::<RemovemappingOne>("fuse_removemapping_one", &[]);
    check::<NotifyRetrieveIn>("fuse_notify_retrieve_in", &[]);
}

#[test]
fn answers_are_laid_out_as_in_the_header() {
    check::<EntryOut>("fuse_entry_out", &[]);
    check::<AttrOut>("fuse_attr_out", &[]);
    check::<StatxOut>("fuse_statx_out", &[]);
    check::<OpenOut>("fuse_open_out", &[]);
    check::<WriteOut>("fuse_write_out", &[]);
    check::<GetxattrOut>("fuse_getxattr_out", &[]);
    check::<IoctlOut>("fuse_ioctl_out", &[]);
    check::<PollOut>("fuse_poll_out", &[]);
    check::<NotifyInvalInode>("fuse_notify_inval_inode_out", &[]);
    check::<NotifyInvalEntryOut>("fuse_notify_inval_entry_out", &[]);
    check::<NotifyDeleteOut>("fuse_notify_delete_out", &[]);
    check::<NotifyStoreOut>("fuse_notify_store_out", &[]);
    check::<NotifyRetrieveOut>("fuse_notify_retrieve_out", &[]);
    check::<NotifyPruneOut>("fuse_notify_prune_out", &[]);
    check::<uring::RingEntry>("fuse_uring_ent_in_out", &[]);
    check::<uring::CommandArea>("fuse_uring_cmd_req", &[]);
}

/// A name as the header might write it, without underscores.
fn plain(name: &str) -> String {
    name.replace('_', "").to_uppercase()
}

#[test]
fn numbers_and_flags_are_those_of_the_header() {
    let values: BTreeMap<String, u64> = HEADER
        .lines()
        .filter_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [name, value] if !name.starts_with('#') => Some((plain(name), value.parse().unwrap())),
            _ => None,
        })
        .collect();
    let is = |prefix: &str, name: &str, value: u64| {
        let name = plain(&format!("{prefix}{name}"));
        assert_eq!(values.get(&name), Some(&value), "{name}");
    };
    for opcode in Opcode::ALL {
        is("FUSE_", &format!("{opcode:?}"), u64::from(*opcode as u32));
    }
    for code in NotifyCode::ALL {
        is("FUSE_NOTIFY_", &format!("{code:?}"), u64::from((*code as i32).unsigned_abs()));
    }
    macro_rules! flags {
        ($($type:ident: $prefix:literal,)*) => {$(
            for (name, flag) in $type::NAMED.iter_names() {
                let name = if name == "BIT32" { "32BIT" } else { name };
                is($prefix, name, flag.bits().into());
            }
        )*};
    }
    flags! {
        InitFlags: "FUSE_", SetattrValid: "FATTR_", FopenFlags: "FOPEN_", OpenInFlags: "FUSE_OPEN_",
        ReleaseFlags: "FUSE_RELEASE_", GetattrFlags: "FUSE_GETATTR_", LkFlags: "FUSE_LK_",
        ReadFlags: "FUSE_READ_", WriteFlags: "FUSE_WRITE_", FsyncFlags: "FUSE_FSYNC_",
        AttrFlags: "FUSE_ATTR_", SetxattrFlags: "FUSE_SETXATTR_", IoctlFlags: "FUSE_IOCTL_",
        PollFlags: "FUSE_POLL_", MappingFlags: "FUSE_SETUPMAPPING_FLAG_", InvalEntryFlags: "FUSE_",
    }
}
