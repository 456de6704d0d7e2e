//! A disk in memory.

use crate::dir::disk::{Disk, DiskFile};
use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use redb::{BackendError, Builder, Database, DatabaseError, StorageBackend};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::{Bound, Range};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// What a power cut leaves whole.
pub(super) const SECTOR: usize = 512;
/// Parts that holes have.
const PAGE: u64 = 4096;
/// Longest that one waits for a write that is held, or is held.
const PARKED: Duration = Duration::from_secs(30);

/// The disk. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Simulated(Arc<Mutex<World>>);

#[derive(Debug, Default)]
struct World {
    inodes: HashMap<u64, Inode>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    /// Changes of names that are not synchronised, in order.
    pending_names: Vec<Renamed>,
    next: u64,
    /// Changes until the power is cut.
    left: Option<u64>,
    /// Changes until one fails for want of space.
    fails_after: Option<u64>,
    /// A write that is held before it is done: its bytes.
    parked: Option<(Vec<u8>, Sender<()>, Receiver<()>)>,
}

/// A write that is to be held.
pub(super) struct Parked {
    arrived: Receiver<()>,
    go_on: Sender<()>,
}

impl Parked {
    /// Waits until the write has come.
    pub(super) fn arrived(&self) {
        self.arrived.recv_timeout(PARKED).unwrap();
    }

    /// Lets it be done.
    pub(super) fn release(self) {
        self.go_on.send(()).unwrap();
    }
}

/// Names that change together.
type Renamed = Vec<(String, Option<u64>)>;

fn rename(names: &mut BTreeMap<String, u64>, renamed: &Renamed) {
    for (path, inode) in renamed {
        match inode {
            Some(inode) => names.insert(path.clone(), *inode),
            None => names.remove(path),
        };
    }
}

#[derive(Debug, Default)]
struct Inode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Size(usize),
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Size(size) => bytes.resize(*size, 0),
        Change::Write(offset, data) => {
            bytes.resize(bytes.len().max(offset + data.len()), 0);
            bytes[*offset..offset + data.len()].copy_from_slice(data);
        }
    }
}

/// The sectors of a change, each by itself.
fn torn(change: Change) -> Vec<Change> {
    match change {
        Change::Write(mut offset, mut data) => {
            let mut parts = Vec::new();
            while !data.is_empty() {
                let rest = data.split_off((SECTOR - offset % SECTOR).min(data.len()));
                let next = offset + data.len();
                parts.push(Change::Write(offset, std::mem::replace(&mut data, rest)));
                offset = next;
            }
            parts
        }
        size => vec![size],
    }
}

fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl World {
    fn check(&self) -> io::Result<()> {
        if self.left == Some(0) { Err(io::Error::other("the power is cut")) } else { Ok(()) }
    }

    /// One change, or synchronisation, more.
    fn step(&mut self) -> io::Result<()> {
        self.check()?;
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
        self.check()?;
        match &mut self.fails_after {
            Some(0) => {
                self.fails_after = None;
                Err(rustix::io::Errno::NOSPC.into())
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn change(&mut self, inode: u64, change: Change) -> io::Result<()> {
        self.step()?;
        let inode = self.inodes.get_mut(&inode).ok_or_else(not_found)?;
        apply(&mut inode.bytes, &change);
        inode.pending.push(change);
        Ok(())
    }

    fn rename(&mut self, renamed: Renamed) {
        rename(&mut self.names, &renamed);
        self.pending_names.push(renamed);
    }
}

impl Simulated {
    /// Cuts the power after so many changes.
    pub(crate) fn cut_after(&self, changes: u64) {
        self.0.lock().left = Some(changes);
    }

    /// Fails one change after so many, and no other.
    pub(crate) fn fail_after(&self, changes: u64) {
        self.0.lock().fails_after = Some(changes);
    }

    /// Fails none any more: whether one has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.lock().fails_after.take().is_none()
    }

    /// Holds the next write of these bytes.
    pub(super) fn park(&self, bytes: &[u8]) -> Parked {
        let ((here, arrived), (go_on, released)) = (channel(), channel());
        self.0.lock().parked = Some((bytes.to_vec(), here, released));
        Parked { arrived, go_on }
    }

    /// Changes until then.
    pub(crate) fn is_cut(&self) -> bool {
        self.0.lock().left == Some(0)
    }

    /// The disk after the cut: what was synchronised, and some of the rest, in any order and torn.
    pub(crate) fn power_on(&self, rng: &mut StdRng) -> Self {
        let mut world = self.0.lock();
        let mut after =
            World { next: world.next, names: world.durable_names.clone(), ..World::default() };
        for renamed in std::mem::take(&mut world.pending_names) {
            if rng.random() {
                rename(&mut after.names, &renamed);
            }
        }
        after.durable_names = after.names.clone();
        let mut inodes: Vec<_> = world.inodes.drain().collect();
        // In an order that is the seed's.
        inodes.sort_unstable_by_key(|(number, _)| *number);
        for (number, inode) in inodes {
            let mut bytes = inode.durable;
            let mut parts: Vec<_> = inode.pending.into_iter().flat_map(torn).collect();
            let share = rng.random_range(0..=4);
            parts.retain(|_| rng.random_range(0..4) < share);
            parts.shuffle(rng);
            parts.iter().for_each(|part| apply(&mut bytes, part));
            after
                .inodes
                .insert(number, Inode { durable: bytes.clone(), bytes, pending: Vec::new() });
        }
        Self(Arc::new(Mutex::new(after)))
    }

    /// The files of a folder and all below it.
    pub(super) fn files(&self, folder: &str) -> Vec<String> {
        let world = self.0.lock();
        world.names.keys().filter(|path| path.starts_with(folder)).cloned().collect()
    }

    fn file(&self, inode: u64) -> SimulatedFile {
        SimulatedFile { disk: self.clone(), inode }
    }
}

/// A file of the disk.
#[derive(Debug)]
pub(crate) struct SimulatedFile {
    disk: Simulated,
    inode: u64,
}

impl Disk for Simulated {
    type File = SimulatedFile;
    type Lock = ();

    fn create(&self, path: &str) -> io::Result<SimulatedFile> {
        let mut world = self.0.lock();
        world.step()?;
        if world.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        world.next += 1;
        let inode = world.next;
        world.inodes.insert(inode, Inode::default());
        world.rename(vec![(path.into(), Some(inode))]);
        Ok(self.file(inode))
    }

    fn open(&self, path: &str) -> io::Result<SimulatedFile> {
        let world = self.0.lock();
        world.check()?;
        world.names.get(path).map(|inode| self.file(*inode)).ok_or_else(not_found)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut world = self.0.lock();
        world.step()?;
        if !world.names.contains_key(path) {
            return Err(not_found());
        }
        world.rename(vec![(path.into(), None)]);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.0.lock();
        world.step()?;
        let inode = *world.names.get(from).ok_or_else(not_found)?;
        world.rename(vec![(from.into(), None), (to.into(), Some(inode))]);
        Ok(())
    }

    fn make_folder(&self, _path: &str) -> io::Result<()> {
        self.0.lock().step()
    }

    fn sync_folder(&self, path: &str) -> io::Result<()> {
        let mut world = self.0.lock();
        world.step()?;
        for renamed in std::mem::take(&mut world.pending_names) {
            if folder(&renamed[0].0) == path {
                rename(&mut world.durable_names, &renamed);
            } else {
                world.pending_names.push(renamed);
            }
        }
        Ok(())
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let world = self.0.lock();
        let below =
            world.names.keys().filter_map(|name| name.strip_prefix(path)?.strip_prefix('/'));
        let mut names: Vec<_> =
            below.map(|name| name.split('/').next().unwrap_or(name).to_owned()).collect();
        names.dedup();
        Ok(names)
    }

    fn sync_all(&self) -> io::Result<()> {
        let mut world = self.0.lock();
        world.step()?;
        world.durable_names = world.names.clone();
        world.pending_names.clear();
        for inode in world.inodes.values_mut() {
            inode.durable = inode.bytes.clone();
            inode.pending.clear();
        }
        Ok(())
    }

    fn database(&self, path: &str, builder: &Builder) -> Result<Database, DatabaseError> {
        let file = self.open(path).or_else(|_| self.create(path))?;
        builder.create_with_backend(file)
    }

    fn lock(&self, _path: &str) -> io::Result<()> {
        self.0.lock().check()
    }

    fn try_lock(&self, _path: &str) -> io::Result<Option<()>> {
        self.0.lock().check().map(Some)
    }
}

impl SimulatedFile {
    fn with<T>(&self, read: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        let world = self.disk.0.lock();
        world.check()?;
        world.inodes.get(&self.inode).map(|inode| read(&inode.bytes)).ok_or_else(not_found)
    }
}

impl DiskFile for SimulatedFile {
    fn size(&self) -> io::Result<u64> {
        self.with(|bytes| bytes.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let offset = usize::try_from(offset).unwrap();
        self.with(|bytes| {
            let found = bytes.get(offset..).unwrap_or_default();
            let length = found.len().min(buffer.len());
            buffer[..length].copy_from_slice(&found[..length]);
            length
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let parked = self.disk.0.lock().parked.take_if(|(held, ..)| held == bytes);
        if let Some((_, here, released)) = parked {
            here.send(()).unwrap();
            released.recv_timeout(PARKED).unwrap();
        }
        let change = Change::Write(usize::try_from(offset).unwrap(), bytes.to_vec());
        self.disk.0.lock().change(self.inode, change)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.disk.0.lock().change(self.inode, Change::Size(usize::try_from(size).unwrap()))
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        let zeroes = vec![0; usize::try_from(range.end - range.start).unwrap()];
        self.write_at(&zeroes, range.start)
    }

    fn data(&self, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
        self.with(|bytes| {
            let mut parts = Vec::new();
            let mut at = range.start;
            while at < range.end {
                let end = (at - at % PAGE + PAGE).min(range.end);
                let part = at.try_into().unwrap()..usize::try_from(end).unwrap().min(bytes.len());
                if bytes.get(part).is_some_and(|part| part.iter().any(|byte| *byte != 0)) {
                    parts.push(at..end);
                }
                at = end;
            }
            parts
        })
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.disk.0.lock();
        world.step()?;
        let inode = world.inodes.get_mut(&self.inode).ok_or_else(not_found)?;
        for change in std::mem::take(&mut inode.pending) {
            apply(&mut inode.durable, &change);
        }
        Ok(())
    }
}

impl StorageBackend for SimulatedFile {
    fn len(&self) -> io::Result<u64> {
        self.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let wanted = out.len();
        match self.read_at(out, offset)? {
            read if read == wanted => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.set_size(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(data, offset)
    }

    // There is one process.
    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn try_lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn query_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(false)
    }
}
