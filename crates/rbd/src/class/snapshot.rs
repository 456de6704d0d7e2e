//! Snapshots of an image.

use super::{Call, Method, NOTHING};
use crate::error::Result;
use crate::format::{
    Features, ImageFlags, OpFeatures, Parent, Protection, Snapshot, SnapshotInfo,
    SnapshotNamespace, names,
};
use crate::store::NOSNAP;
use blockyard_rados::encoding::{Reader, Writer, encoded};
use rustix::io::Errno;

pub(super) const METHODS: &[(&str, Method)] = &[
    ("get_snapcontext", Method::reading(get_snapcontext)),
    ("snapshot_get", Method::reading(snapshot_get)),
    ("get_snapshot_name", Method::reading(get_snapshot_name)),
    ("get_snapshot_timestamp", Method::reading(get_snapshot_timestamp)),
    ("snapshot_add", Method::writing(snapshot_add)),
    ("snapshot_rename", Method::writing(snapshot_rename)),
    ("snapshot_remove", Method::writing(snapshot_remove)),
    ("snapshot_trash_add", Method::writing(snapshot_trash_add)),
    ("snapshot_get_limit", Method::reading(snapshot_get_limit)),
    ("snapshot_set_limit", Method::writing(snapshot_set_limit)),
    ("get_protection_status", Method::reading(get_protection_status)),
    ("set_protection_status", Method::writing(set_protection_status)),
    ("assert_snapc_seq", Method::reading(assert_snapc_seq)),
];

/// The largest number of a snapshot (ceph: `src/include/rados.h`, `CEPH_MAXSNAP`).
const MAX_SNAPSHOT: u64 = u64::MAX - 2;

impl Call<'_> {
    /// All snapshots, in rising order.
    pub(super) fn snapshots(&mut self) -> Result<Vec<Snapshot>> {
        let mut snapshots = Vec::new();
        self.for_each_key(names::SNAPSHOT_KEYS, |_, value| {
            let snapshot = Reader::new("reading a snapshot", value).get();
            snapshots.push(snapshot.map_err(|_| Errno::IO)?);
            Ok(())
        })?;
        Ok(snapshots)
    }

    /// Writes a snapshot in the form of today: the parent is in the header, and the snapshot has the overlap.
    pub(super) fn write_snapshot(&mut self, mut snapshot: Snapshot) -> Result<()> {
        let parent = std::mem::take(&mut snapshot.parent);
        if parent.spec.exists() {
            let in_header: Option<Parent> = self.key(b"parent")?;
            if !in_header.is_some_and(|known| known.spec.exists()) {
                self.set_key(b"parent", &Parent { spec: parent.spec, overlap: None })?;
            }
            snapshot.parent_overlap = parent.overlap;
        }
        let key = names::snapshot_key(snapshot.id);
        self.set_key(key.as_bytes(), &snapshot)
    }
}

fn get_snapcontext(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let mut ids = Vec::new();
    call.for_each_key(names::SNAPSHOT_KEYS, |key, _| {
        let digits = key.get(names::SNAPSHOT_KEYS.len()..).unwrap_or_default();
        let digits = std::str::from_utf8(digits).map_err(|_| Errno::IO)?;
        ids.push(u64::from_str_radix(digits, 16).map_err(|_| Errno::IO)?);
        Ok(())
    })?;
    ids.reverse();
    let mut out = Writer::new();
    out.u64(call.required(b"snap_seq")?);
    out.vec(&ids, |w, id| w.u64(*id));
    Ok(out.into_bytes())
}

fn input_snapshot(call: &mut Call<'_>) -> Result<Snapshot> {
    match call.input()? {
        NOSNAP => Err(Errno::INVAL.into()),
        id => call.snapshot(id),
    }
}

fn snapshot_get(call: &mut Call<'_>) -> Result<Vec<u8>> {
    input_snapshot(call).map(|snapshot| encoded(&SnapshotInfo::from(snapshot)))
}

fn get_snapshot_name(call: &mut Call<'_>) -> Result<Vec<u8>> {
    input_snapshot(call).map(|snapshot| super::text(snapshot.name.as_bytes()))
}

fn get_snapshot_timestamp(call: &mut Call<'_>) -> Result<Vec<u8>> {
    input_snapshot(call).map(|snapshot| encoded(&snapshot.timestamp))
}

fn snapshot_add(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let (name, id): (String, u64) = (call.input()?, call.input()?);
    let namespace = call.newer_input(SnapshotNamespace::User)?;
    if matches!(namespace, SnapshotNamespace::Other { .. }) || id > MAX_SNAPSHOT {
        return Err(Errno::INVAL.into());
    }
    // The number is older than another snapshot: somebody else was faster.
    if id < call.required::<u64>(b"snap_seq")? {
        return Err(Errno::STALE.into());
    }
    let image_size = call.required(b"size")?;
    let flags = ImageFlags::from_bits_retain(call.key(b"flags")?.unwrap_or_default());
    let limit: u64 = call.key(b"snap_limit")?.unwrap_or(u64::MAX);
    for (count, other) in (1_u64..).zip(call.snapshots()?) {
        if count >= limit {
            return Err(Errno::DQUOT.into());
        }
        if other.id == id || other.name == name && other.namespace == namespace {
            return Err(Errno::EXIST.into());
        }
    }
    let parent = call.key(b"parent")?.unwrap_or_default();
    if matches!(namespace, SnapshotNamespace::Trash { .. }) {
        call.set_op_features(OpFeatures::SNAP_TRASH, OpFeatures::SNAP_TRASH)?;
    }
    call.set_key(b"snap_seq", &id)?;
    let timestamp = call.object.now();
    let snapshot = Snapshot {
        id,
        name,
        image_size,
        parent,
        flags,
        namespace,
        timestamp,
        ..Snapshot::default()
    };
    call.write_snapshot(snapshot)?;
    Ok(NOTHING)
}

fn snapshot_rename(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let (id, name): (u64, String) = (call.input()?, call.input()?);
    let is_user = |snapshot: &Snapshot| snapshot.namespace == SnapshotNamespace::User;
    if call.snapshots()?.iter().any(|other| is_user(other) && other.name == name) {
        return Err(Errno::EXIST.into());
    }
    let snapshot = call.snapshot(id)?;
    if !is_user(&snapshot) {
        return Err(Errno::INVAL.into());
    }
    call.write_snapshot(Snapshot { name, ..snapshot })?;
    Ok(NOTHING)
}

/// A snapshot that nobody needs.
fn removable(call: &mut Call<'_>) -> Result<Snapshot> {
    let id: u64 = call.input()?;
    let snapshot = call.snapshot(id)?;
    if snapshot.protection != Protection::Unprotected as u8 {
        return Err(Errno::BUSY.into());
    }
    Ok(snapshot)
}

fn snapshot_remove(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let snapshot = removable(call)?;
    if snapshot.child_count > 0 {
        return Err(Errno::BUSY.into());
    }
    call.remove_key(names::snapshot_key(snapshot.id).as_bytes())?;
    let mut others = call.snapshots()?;
    others.retain(|other| other.id != snapshot.id);
    let of_clone = |other: &Snapshot| other.parent.spec.pool >= 0 || other.parent_overlap.is_some();
    let has_clones = others.iter().any(of_clone);
    let is_trash = |other: &Snapshot| matches!(other.namespace, SnapshotNamespace::Trash { .. });
    let parent: Option<Parent> = call.key(b"parent")?;
    let parent = parent.filter(|parent| parent.spec.exists());
    let is_clone = parent.as_ref().is_some_and(|parent| parent.overlap.is_some());
    if parent.is_some() && !is_clone && !has_clones {
        call.remove_key(b"parent")?;
    }
    let mut gone = OpFeatures::empty();
    gone.set(OpFeatures::CLONE_CHILD, !has_clones && !is_clone);
    gone.set(OpFeatures::SNAP_TRASH, !others.iter().any(is_trash));
    if !gone.is_empty() {
        call.set_op_features(OpFeatures::empty(), gone)?;
    }
    Ok(NOTHING)
}

fn snapshot_trash_add(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let mut snapshot = removable(call)?;
    if matches!(snapshot.namespace, SnapshotNamespace::Trash { .. }) {
        return Err(Errno::EXIST.into());
    }
    call.set_op_features(OpFeatures::SNAP_TRASH, OpFeatures::SNAP_TRASH)?;
    let name = blockyard_rados::encoding::Fsid(call.object.random()).to_string();
    let name = std::mem::replace(&mut snapshot.name, name);
    let kind = snapshot.namespace.kind();
    snapshot.namespace = SnapshotNamespace::Trash { name, kind };
    call.write_snapshot(snapshot)?;
    Ok(NOTHING)
}

fn snapshot_get_limit(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let limit: u64 = call.key(b"snap_limit")?.unwrap_or(u64::MAX);
    Ok(encoded(&limit))
}

fn snapshot_set_limit(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let limit: u64 = call.input()?;
    if limit == u64::MAX {
        call.remove_key(b"snap_limit")?;
        return Ok(NOTHING);
    }
    if (call.snapshots()?.len() as u64) > limit {
        return Err(Errno::RANGE.into());
    }
    call.set_key(b"snap_limit", &limit)?;
    Ok(NOTHING)
}

fn get_protection_status(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let id: u64 = call.input()?;
    call.check_exists()?;
    if id == NOSNAP {
        return Err(Errno::INVAL.into());
    }
    match call.snapshot(id)?.protection {
        status if Protection::from_number(status).is_some() => Ok(encoded(&status)),
        _ => Err(Errno::IO.into()),
    }
}

fn set_protection_status(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let (id, protection): (u64, u8) = (call.input()?, call.input()?);
    call.check_exists()?;
    call.require_feature(Features::LAYERING)?;
    if id == NOSNAP || Protection::from_number(protection).is_none() {
        return Err(Errno::INVAL.into());
    }
    let snapshot = call.snapshot(id)?;
    call.write_snapshot(Snapshot { protection, ..snapshot })?;
    Ok(NOTHING)
}

/// Whether a writer's snapshots are newer than those that the object knows, or are not.
fn assert_snapc_seq(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let (seq, newer): (u64, u8) = (call.input()?, call.input()?);
    let is_newer = call.object.snap_seq()?.is_none_or(|known| seq > known);
    match newer {
        0 if is_newer => Ok(NOTHING),
        1 if !is_newer => Ok(NOTHING),
        0 | 1 => Err(Errno::RANGE.into()),
        _ => Err(Errno::OPNOTSUPP.into()),
    }
}
