//! What the watchers of an image's header tell each other (ceph: `src/librbd/WatchNotifyTypes.h`, `.cc`).

use super::SnapshotNamespace;
use blockyard_rados::Result;
use blockyard_rados::encoding::{Decode, Encode, Reader, Writer};

/// The version that is written, and the one from which on readers take it: Ceph's take nothing that says more.
const VERSION: u8 = 7;
const COMPAT: u8 = 1;
/// From this version on, requests of snapshots say of what kind, and all requests may have a number.
const WITH_NAMESPACE: u8 = 6;
const WITH_REQUEST: u8 = 7;

/// Somebody who watches: a client, and its watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId {
    /// The client's number.
    pub client: u64,
    /// Its watch's cookie.
    pub watch: u64,
}

/// A request to the owner of the image's lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// Who asks.
    pub client: ClientId,
    /// Counts that client's requests.
    pub number: u64,
}

/// What is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Somebody has the lock now.
    AcquiredLock(ClientId),
    /// Somebody has given the lock back.
    ReleasedLock(ClientId),
    /// Somebody wants the lock. Its owner answers.
    RequestLock {
        /// Who.
        client: ClientId,
        /// The owner is not asked whether it minds.
        force: bool,
    },
    /// The header has changed.
    HeaderUpdate,
    /// How far the owner is with a request.
    Progress {
        /// Which.
        request: RequestId,
        /// What is done.
        offset: u64,
        /// Of so much.
        total: u64,
    },
    /// A request has ended.
    Complete {
        /// Which.
        request: RequestId,
        /// 0, or a negative error number.
        result: i32,
    },
    /// The owner is to do something to the image.
    Request {
        /// The number of the request; without, the answer comes when it is done.
        request: Option<RequestId>,
        /// What.
        work: Work,
    },
    /// What is not known here.
    Other {
        /// Its number.
        op: u32,
    },
}

/// What the owner of a lock is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Leave the parent.
    Flatten,
    /// Another size.
    Resize {
        /// Bytes.
        size: u64,
        /// It may become smaller.
        allow_shrink: bool,
    },
    /// Make a snapshot.
    CreateSnapshot {
        /// Its name.
        name: String,
        /// What it is for.
        namespace: SnapshotNamespace,
        /// How (`SNAP_CREATE_FLAG_*`).
        flags: u64,
    },
    /// Remove a snapshot.
    RemoveSnapshot {
        /// Its name.
        name: String,
        /// What it is for.
        namespace: SnapshotNamespace,
    },
    /// Give a snapshot another name.
    RenameSnapshot {
        /// Its number.
        id: u64,
        /// Its new name.
        name: String,
    },
    /// Keep a snapshot from being removed.
    ProtectSnapshot {
        /// Its name.
        name: String,
    },
    /// Let it be removed.
    UnprotectSnapshot {
        /// Its name.
        name: String,
    },
    /// Make the object map anew.
    RebuildObjectMap,
    /// Give the image another name.
    Rename {
        /// Its new name.
        name: String,
    },
}

mod op {
    pub(super) const ACQUIRED_LOCK: u32 = 0;
    pub(super) const RELEASED_LOCK: u32 = 1;
    pub(super) const REQUEST_LOCK: u32 = 2;
    pub(super) const HEADER_UPDATE: u32 = 3;
    pub(super) const PROGRESS: u32 = 4;
    pub(super) const COMPLETE: u32 = 5;
    pub(super) const FLATTEN: u32 = 6;
    pub(super) const RESIZE: u32 = 7;
    pub(super) const SNAP_CREATE: u32 = 8;
    pub(super) const SNAP_REMOVE: u32 = 9;
    pub(super) const REBUILD_OBJECT_MAP: u32 = 10;
    pub(super) const SNAP_RENAME: u32 = 11;
    pub(super) const SNAP_PROTECT: u32 = 12;
    pub(super) const SNAP_UNPROTECT: u32 = 13;
    pub(super) const RENAME: u32 = 14;
}

/// Whether notifications of an operation, of which nothing else is known, are requests that the owner of the lock has to answer
/// (ceph: `NOTIFY_OP_*`): all but quiesce and unquiesce.
#[must_use]
pub const fn is_request(op: u32) -> bool {
    matches!(op, 15..=17 | 20)
}

impl Encode for ClientId {
    fn encode(&self, writer: &mut Writer) {
        writer.u64(self.client);
        writer.u64(self.watch);
    }
}

impl Decode for ClientId {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { client: reader.u64()?, watch: reader.u64()? })
    }
}

impl Encode for RequestId {
    fn encode(&self, writer: &mut Writer) {
        writer.put(&self.client);
        writer.u64(self.number);
    }
}

impl Decode for RequestId {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { client: reader.get()?, number: reader.u64()? })
    }
}

fn put_request(w: &mut Writer, request: Option<RequestId>) {
    w.put(&request.unwrap_or_default());
}

fn put_snapshot(
    w: &mut Writer,
    name: &str,
    namespace: &SnapshotNamespace,
    request: Option<RequestId>,
) {
    w.string(name);
    w.put(namespace);
    put_request(w, request);
}

impl Encode for Message {
    fn encode(&self, writer: &mut Writer) {
        writer.versioned(VERSION, COMPAT, |w| match self {
            Self::AcquiredLock(client) => {
                w.u32(op::ACQUIRED_LOCK);
                w.put(client);
            }
            Self::ReleasedLock(client) => {
                w.u32(op::RELEASED_LOCK);
                w.put(client);
            }
            Self::RequestLock { client, force } => {
                w.u32(op::REQUEST_LOCK);
                w.put(client);
                w.bool(*force);
            }
            Self::HeaderUpdate => w.u32(op::HEADER_UPDATE),
            Self::Progress { request, offset, total } => {
                w.u32(op::PROGRESS);
                w.put(request);
                w.u64(*offset);
                w.u64(*total);
            }
            Self::Complete { request, result } => {
                w.u32(op::COMPLETE);
                w.put(request);
                w.i32(*result);
            }
            Self::Request { request, work } => put_work(w, *request, work),
            Self::Other { op } => w.u32(*op),
        });
    }
}

fn put_work(w: &mut Writer, request: Option<RequestId>, work: &Work) {
    let user = SnapshotNamespace::User;
    match work {
        Work::Flatten => {
            w.u32(op::FLATTEN);
            put_request(w, request);
        }
        Work::Resize { size, allow_shrink } => {
            w.u32(op::RESIZE);
            w.u64(*size);
            put_request(w, request);
            w.bool(*allow_shrink);
        }
        Work::CreateSnapshot { name, namespace, flags } => {
            w.u32(op::SNAP_CREATE);
            put_snapshot(w, name, namespace, request);
            w.u64(*flags);
        }
        Work::RemoveSnapshot { name, namespace } => {
            w.u32(op::SNAP_REMOVE);
            put_snapshot(w, name, namespace, request);
        }
        Work::RenameSnapshot { id, name } => {
            w.u32(op::SNAP_RENAME);
            w.u64(*id);
            put_snapshot(w, name, &user, request);
        }
        Work::ProtectSnapshot { name } => {
            w.u32(op::SNAP_PROTECT);
            put_snapshot(w, name, &user, request);
        }
        Work::UnprotectSnapshot { name } => {
            w.u32(op::SNAP_UNPROTECT);
            put_snapshot(w, name, &user, request);
        }
        Work::RebuildObjectMap => {
            w.u32(op::REBUILD_OBJECT_MAP);
            put_request(w, request);
        }
        Work::Rename { name } => {
            w.u32(op::RENAME);
            w.string(name);
            put_request(w, request);
        }
    }
}

/// Takes a request's number, which versions before do not have, and neither do some messages of Ceph 16, whatever they say.
fn request(r: &mut Reader<'_>, version: u8) -> Result<Option<RequestId>> {
    if version < WITH_REQUEST || r.is_empty() {
        return Ok(None);
    }
    r.get().map(|request| Some(request).filter(|request| *request != RequestId::default()))
}

fn snapshot(
    r: &mut Reader<'_>,
    version: u8,
) -> Result<(String, SnapshotNamespace, Option<RequestId>)> {
    let name = r.string()?;
    let namespace = if version >= WITH_NAMESPACE { r.get()? } else { SnapshotNamespace::default() };
    Ok((name, namespace, request(r, version)?))
}

/// Takes what begins a request of its own.
fn own_request(r: &mut Reader<'_>) -> Result<Option<RequestId>> {
    r.get().map(Some)
}

impl Decode for Message {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let versioned = reader.versioned(VERSION)?;
        let (version, mut r) = (versioned.version, versioned.fields);
        let op = r.u32()?;
        let client =
            |r: &mut Reader<'_>| if version >= 2 { r.get() } else { Ok(ClientId::default()) };
        Ok(match op {
            op::ACQUIRED_LOCK => Self::AcquiredLock(client(&mut r)?),
            op::RELEASED_LOCK => Self::ReleasedLock(client(&mut r)?),
            op::REQUEST_LOCK => {
                let client = client(&mut r)?;
                Self::RequestLock { client, force: version >= 3 && r.bool()? }
            }
            op::HEADER_UPDATE => Self::HeaderUpdate,
            op::PROGRESS => Self::Progress { request: r.get()?, offset: r.u64()?, total: r.u64()? },
            op::COMPLETE => Self::Complete { request: r.get()?, result: r.i32()? },
            op => match work(&mut r, version, op)? {
                Some((request, work)) => Self::Request { request, work },
                None => Self::Other { op },
            },
        })
    }
}

fn work(r: &mut Reader<'_>, version: u8, op: u32) -> Result<Option<(Option<RequestId>, Work)>> {
    Ok(Some(match op {
        op::FLATTEN => (own_request(r)?, Work::Flatten),
        op::RESIZE => {
            let size = r.u64()?;
            let request = own_request(r)?;
            (request, Work::Resize { size, allow_shrink: version < 4 || r.bool()? })
        }
        op::SNAP_CREATE => {
            let (name, mut namespace, request) = snapshot(r, version)?;
            if version == 5 {
                namespace = r.get()?;
            }
            let flags = if version >= WITH_REQUEST && !r.is_empty() { r.u64()? } else { 0 };
            (request, Work::CreateSnapshot { name, namespace, flags })
        }
        op::SNAP_REMOVE => {
            let (name, namespace, request) = snapshot(r, version)?;
            (request, Work::RemoveSnapshot { name, namespace })
        }
        op::SNAP_RENAME => {
            let id = r.u64()?;
            let (name, _, request) = snapshot(r, version)?;
            (request, Work::RenameSnapshot { id, name })
        }
        op::SNAP_PROTECT => {
            let (name, _, request) = snapshot(r, version)?;
            (request, Work::ProtectSnapshot { name })
        }
        op::SNAP_UNPROTECT => {
            let (name, _, request) = snapshot(r, version)?;
            (request, Work::UnprotectSnapshot { name })
        }
        op::REBUILD_OBJECT_MAP => (own_request(r)?, Work::RebuildObjectMap),
        op::RENAME => {
            let name = r.string()?;
            (request(r, version)?, Work::Rename { name })
        }
        _ => return Ok(None),
    }))
}

/// The answer of the lock's owner to a request (`ResponseMessage`). Those who are not asked answer with nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// 0, or a negative error number.
    pub result: i32,
}

impl Encode for Response {
    fn encode(&self, writer: &mut Writer) {
        writer.versioned(1, 1, |w| w.i32(self.result));
    }
}

impl Decode for Response {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { result: reader.versioned(1)?.fields.i32()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockyard_rados::encoding::encoded;

    const CLIENT: ClientId = ClientId { client: 1, watch: 2 };
    const REQUEST: RequestId = RequestId { client: ClientId { client: 0, watch: 1 }, number: 2 };

    fn decoded(bytes: &[u8]) -> Message {
        Reader::new("testing", bytes).get().unwrap()
    }

    /// `WatchNotifyTypes.cc`, `NotifyMessage::generate_test_instances`, in the encoding of Ceph 16 and newer.
    #[test]
    fn golden_messages() {
        let user = SnapshotNamespace::User;
        let work = |work| Message::Request { request: Some(REQUEST), work };
        let request = b"\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0";
        let name = b"\x03\0\0\0foo";
        let in_user = b"\x01\x01\x04\0\0\0\0\0\0\0";
        let number = |number: u64| number.to_le_bytes().to_vec();
        let client = [number(1), number(2)].concat();
        let create = Work::CreateSnapshot { name: "foo".into(), namespace: user.clone(), flags: 1 };
        for (message, op, fields) in [
            (Message::AcquiredLock(CLIENT), 0, client.clone()),
            (Message::ReleasedLock(CLIENT), 1, client.clone()),
            (
                Message::RequestLock { client: CLIENT, force: true },
                2,
                [&client[..], b"\x01"].concat(),
            ),
            (Message::HeaderUpdate, 3, Vec::new()),
            (
                Message::Progress { request: REQUEST, offset: 3, total: 4 },
                4,
                [&request[..], &number(3), &number(4)].concat(),
            ),
            (
                Message::Complete { request: REQUEST, result: 3 },
                5,
                [&request[..], b"\x03\0\0\0"].concat(),
            ),
            (work(Work::Flatten), 6, request.to_vec()),
            (
                work(Work::Resize { size: 123, allow_shrink: true }),
                7,
                [&number(123), &request[..], b"\x01"].concat(),
            ),
            (work(create), 8, [&name[..], in_user, request, &number(1)].concat()),
            (
                work(Work::RemoveSnapshot { name: "foo".into(), namespace: user }),
                9,
                [&name[..], in_user, request].concat(),
            ),
            (work(Work::RebuildObjectMap), 10, request.to_vec()),
            (
                work(Work::RenameSnapshot { id: 9, name: "foo".into() }),
                11,
                [&number(9), &name[..], in_user, request].concat(),
            ),
            (
                work(Work::ProtectSnapshot { name: "foo".into() }),
                12,
                [&name[..], in_user, request].concat(),
            ),
            (
                work(Work::UnprotectSnapshot { name: "foo".into() }),
                13,
                [&name[..], in_user, request].concat(),
            ),
            (work(Work::Rename { name: "foo".into() }), 14, [&name[..], request].concat()),
            (Message::Other { op: 18 }, 18, Vec::new()),
        ] {
            let mut bytes = vec![7, 1];
            bytes.extend(u32::try_from(fields.len() + 4).unwrap().to_le_bytes());
            bytes.extend([op, 0, 0, 0]);
            bytes.extend(fields);
            assert_eq!(encoded(&message), bytes, "{message:?}");
            assert_eq!(decoded(&bytes), message);
            for cut in 0..bytes.len() {
                let cut = Reader::new("testing", &bytes[..cut]).get::<Message>();
                assert!(cut.is_err(), "{message:?}");
            }
        }
        assert_eq!(encoded(&Response { result: -30 }), b"\x01\x01\x04\0\0\0\xe2\xff\xff\xff");
    }

    #[test]
    fn messages_of_old_are_read() {
        assert_eq!(
            decoded(b"\x01\x01\x04\0\0\0\x02\0\0\0"),
            Message::RequestLock { client: ClientId::default(), force: false }
        );
        assert_eq!(
            decoded(b"\x06\x01\x15\0\0\0\x09\0\0\0\x03\0\0\0foo\x01\x01\x04\0\0\0\0\0\0\0"),
            Message::Request {
                request: None,
                work: Work::RemoveSnapshot {
                    name: "foo".into(),
                    namespace: SnapshotNamespace::User
                }
            }
        );
        assert!(Reader::new("testing", b"\x09\x09\x04\0\0\0\x03\0\0\0").get::<Message>().is_err());
    }
}
