//! What operations give, as an OSD of 16.2.15 gave it: an object `o` of one pool, with a snapshot, two keys, an
//! attribute, and one watcher that was told something and did not answer.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]

use blockyard_rados::Result;
use blockyard_rados::encoding::NOSNAP;
use blockyard_rados::osd::{
    Extents, KeyPage, NotifyAnswers, Page, Snapshots, Stat, ValuePage, values, watchers, xattrs,
};
use bytes::Bytes;
use std::time::Duration;

const STAT: &[u8] = b"\x05\x10\0\0\0\0\0\0t}\x06kwGX\x18";
const SPARSE: &[u8] = b"\x01\0\0\0\x02\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x05\0\0\0hello";
const KEYS: &[u8] = b"\x01\0\0\0\x01\0\0\0a\x01";
const VALUES: &[u8] = b"\x02\0\0\0\x01\0\0\0a\x01\0\0\x001\x01\0\0\0b\x02\0\0\x0022\0";
const XATTRS: &[u8] = b"\x01\0\0\0\x01\0\0\0x\x01\0\0\0y";
const WATCHERS: &[u8] =
    b"\x01\x01B\0\0\0\x01\0\0\0\x02\x018\0\0\0\x087\x10\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x1e\0\0\0\
    \x01\x01\x01\x1c\0\0\0\x03\0\0\0\xd4(\xc1j\x10\0\0\0\x02\0\0\0\x7f\0\0\x01\0\0\0\0\0\0\0\0";
const SNAPSHOTS: &[u8] =
    b"\x02\x01`\0\0\0\x02\0\0\0\x01\x010\0\0\0\x02\0\0\0\0\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\
    \x01\0\0\0\x06\0\0\0\0\0\0\0\xff\x0f\0\0\0\0\0\0\x05\x10\0\0\0\0\0\0\x01\x01\x18\0\0\0\
    \xfe\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\0\0\0\0\x05\x10\0\0\0\0\0\0\x02\0\0\0\0\0\0\0";
const LIST: &[u8] = b"\x01\x018\0\0\0\x04\x03!\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\x80\
    \x01\0\0\0\0\0\0\0\x01\0\0\0o\0\0\0\0";
const ANSWERS: &[u8] = b"\0\0\0\0\x01\0\0\x007\x10\0\0\0\0\0\0\x05\0\0\0\0\0\0\0";

fn bytes(data: &'static [u8]) -> Bytes {
    Bytes::from_static(data)
}

#[test]
fn sizes_bytes_keys_and_attributes() {
    let stat = Stat::parse(STAT).unwrap();
    assert_eq!((stat.size, stat.modified.seconds), (4101, 0x6b06_7d74));
    let extents = Extents::parse(&bytes(SPARSE)).unwrap();
    assert_eq!((extents.ranges, extents.data), (vec![(2, 5)], bytes(b"hello")));
    assert_eq!(
        KeyPage::parse(&bytes(KEYS)).unwrap(),
        KeyPage { keys: vec![bytes(b"a")], more: true }
    );
    let page = ValuePage::parse(&bytes(VALUES)).unwrap();
    assert_eq!((&page.values[&b"b"[..]][..], page.values.len(), page.more), (&b"22"[..], 2, false));
    assert_eq!(values(&bytes(VALUES)).unwrap(), page.values);
    assert_eq!(xattrs(&bytes(XATTRS)).unwrap()[&b"x"[..]], b"y"[..]);
}

#[test]
fn watchers_and_their_answers() {
    let all = watchers(WATCHERS).unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].client.number, all[0].cookie), (4151, 5));
    assert_eq!((all[0].timeout, all[0].addr.nonce), (Duration::from_secs(30), 0x6ac1_28d4));
    let answers = NotifyAnswers::parse(&bytes(ANSWERS)).unwrap();
    assert_eq!((answers.answered, answers.silent), (vec![], vec![(4151, 5)]));
}

#[test]
fn clones_and_lists() {
    let snapshots = Snapshots::parse(SNAPSHOTS).unwrap();
    assert_eq!(snapshots.seq, 2);
    let [old, head] = &snapshots.clones[..] else { panic!("{snapshots:?}") };
    assert_eq!((old.id, &old.snapshots[..], &old.overlap[..]), (2, &[2][..], &[(6, 4095)][..]));
    assert_eq!((head.id, head.size), (NOSNAP, 4101));
    let page = Page::parse(LIST).unwrap();
    assert_eq!((&*page.objects[0].name, page.objects.len(), page.next.max), (&b"o"[..], 1, true));
}

#[test]
fn what_is_cut_is_refused() {
    type Parser = fn(&Bytes) -> Result<()>;
    let all: [(&'static [u8], Parser); 9] = [
        (STAT, |data| Stat::parse(data).map(drop)),
        (SPARSE, |data| Extents::parse(data).map(drop)),
        (KEYS, |data| KeyPage::parse(data).map(drop)),
        (VALUES, |data| ValuePage::parse(data).map(drop)),
        (XATTRS, |data| xattrs(data).map(drop)),
        (WATCHERS, |data| watchers(data).map(drop)),
        (SNAPSHOTS, |data| Snapshots::parse(data).map(drop)),
        (LIST, |data| Page::parse(data).map(drop)),
        (ANSWERS, |data| NotifyAnswers::parse(data).map(drop)),
    ];
    for (data, parse) in all {
        assert!(parse(&bytes(data)).is_ok());
        for len in 0..data.len() {
            assert!(parse(&bytes(&data[..len])).is_err(), "{len} of {data:?}");
        }
    }
}
