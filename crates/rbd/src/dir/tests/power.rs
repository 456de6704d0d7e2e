//! Power cuts at any change: what was promised is there afterwards.

use super::simulated::{SECTOR, Simulated};
use crate::dir::DirStore;
use crate::error::Result;
use crate::store::{Answer, Mutation, ObjectName, Op, Query, Request, SnapContext};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;

const SEEDS: u64 = 300;
const OBJECTS: usize = 4;
const SECTORS: usize = 24;
const STEPS: usize = 60;

/// A sector's bytes: a number, again and again; 0 for zeroes.
type Tag = u64;

/// What an object may be after a cut.
#[derive(Clone, Debug, Default)]
struct Expected {
    /// For each sector what may be in it: what a flush has covered first, what was written last at the end. `None` if
    /// there is no object.
    sectors: Option<Vec<Vec<Tag>>>,
    /// The value of its one key.
    key: Option<Tag>,
}

impl Expected {
    /// What is there as long as the power is.
    fn now(&self) -> Option<Vec<Tag>> {
        let last = |tags: &Vec<Tag>| *tags.last().unwrap();
        self.sectors.as_ref().map(|sectors| sectors.iter().map(last).collect())
    }

    fn flushed(&mut self) {
        self.sectors.iter_mut().flatten().for_each(|tags| *tags = vec![*tags.last().unwrap()]);
    }

    fn set(&mut self, sectors: &[(usize, Tag)]) {
        let known = self.sectors.get_or_insert_with(|| vec![vec![0]; SECTORS]);
        sectors.iter().for_each(|(index, tag)| known[*index].push(*tag));
    }

    fn allows(&self, found: &Found) -> bool {
        match (&self.sectors, &found.sectors) {
            (None, None) => true,
            (Some(allowed), Some(found_sectors)) => {
                found.key == self.key
                    && allowed.iter().zip(found_sectors).all(|(allowed, tag)| allowed.contains(tag))
            }
            _ => false,
        }
    }
}

/// What an object is.
#[derive(Debug, PartialEq)]
struct Found {
    sectors: Option<Vec<Tag>>,
    key: Option<Tag>,
}

fn bytes_of(tag: Tag) -> Vec<u8> {
    tag.to_le_bytes().repeat(SECTOR / 8)
}

fn tags_of(bytes: &[u8]) -> Vec<Tag> {
    let mut bytes = bytes.to_vec();
    bytes.resize(SECTORS * SECTOR, 0);
    let tag = |sector: &[u8]| {
        let tag = Tag::from_le_bytes(sector[..8].try_into().unwrap());
        assert_eq!(sector, bytes_of(tag), "a sector is torn, which disks do not do");
        tag
    };
    bytes.chunks(SECTOR).map(tag).collect()
}

fn name(object: usize) -> ObjectName {
    format!("object {object}").as_str().into()
}

const KEY: Bytes = Bytes::from_static(b"key");

fn found(store: &DirStore<Simulated>, object: usize, snap: u64) -> Found {
    let read = Request::Read { snap, ops: vec![Op::read(0, 0)] };
    let sectors = match store.operate_blocking(&name(object), &read) {
        Err(error) if error.is_not_found() => return Found { sectors: None, key: None },
        answers => tags_of(&answers.unwrap().remove(0).into_data()),
    };
    let read = Request::read(vec![Query::OmapGet(vec![KEY]).into()]);
    let key =
        match store.operate_blocking(&name(object), &read).map(|mut answers| answers.remove(0)) {
            Ok(Answer::Omap(page)) => page.values.get(&KEY).cloned(),
            _ => None,
        };
    let key = key.map(|value| Tag::from_le_bytes(value[..].try_into().unwrap()));
    Found { sectors: Some(sectors), key }
}

/// A store, and what has to be in it.
struct Run {
    rng: StdRng,
    store: DirStore<Simulated>,
    expected: Vec<Expected>,
    context: SnapContext,
    /// What the objects were in snapshots.
    snapshots: BTreeMap<u64, Vec<Option<Vec<Tag>>>>,
    next: Tag,
    /// The object that an operation was under way on, and what else it may be.
    alternative: Option<(usize, Expected)>,
}

impl Run {
    fn new(rng: StdRng, store: DirStore<Simulated>) -> Self {
        let expected = vec![Expected::default(); OBJECTS];
        let context = SnapContext::default();
        Self {
            rng,
            store,
            expected,
            context,
            snapshots: BTreeMap::new(),
            next: 0,
            alternative: None,
        }
    }

    fn tag(&mut self) -> Tag {
        self.next += 1;
        self.next
    }

    /// Some neighbouring sectors with a number of their own each.
    fn some_sectors(&mut self) -> (u64, Vec<(usize, Tag)>, Vec<u8>) {
        let start = self.rng.random_range(0..SECTORS);
        let end = self.rng.random_range(start + 1..=SECTORS.min(start + 8));
        let sectors: Vec<_> = (start..end).map(|index| (index, self.tag())).collect();
        let bytes = sectors.iter().flat_map(|(_, tag)| bytes_of(*tag)).collect();
        ((start * SECTOR) as u64, sectors, bytes)
    }

    fn write(&mut self, object: usize, ops: Vec<Op>) -> Result<()> {
        let request = Request::Write { context: self.context.clone(), ops };
        self.store.operate_blocking(&name(object), &request).map(|_| ())
    }

    /// A write that is one of the object's bytes only; it may be in place.
    fn plain_write(&mut self, object: usize) -> Result<()> {
        let (offset, sectors, bytes) = self.some_sectors();
        let before = self.expected[object].clone();
        self.expected[object].set(&sectors);
        // Made, or not; torn, in any case.
        self.alternative = before.sectors.is_none().then_some((object, before));
        self.write(object, vec![Op::write(offset, bytes)])
    }

    /// One that changes bytes and a key: both or none.
    fn compound_write(&mut self, object: usize) -> Result<()> {
        let (offset, mut sectors, bytes) = self.some_sectors();
        let (second, more, more_bytes) = self.some_sectors();
        let tag = self.tag();
        sectors.extend(more);
        let before = self.expected[object].clone();
        let mut after = before.clone();
        after.set(&sectors);
        after.flushed();
        after.key = Some(tag);
        self.alternative = Some((object, before));
        self.expected[object] = after;
        let set = Mutation::OmapSet([(KEY, Bytes::copy_from_slice(&tag.to_le_bytes()))].into());
        self.write(
            object,
            vec![Op::write(offset, bytes), set.into(), Op::write(second, more_bytes)],
        )
    }

    fn remove(&mut self, object: usize) -> Result<()> {
        if self.expected[object].sectors.is_none() {
            return Ok(());
        }
        let before = std::mem::take(&mut self.expected[object]);
        self.alternative = Some((object, before));
        self.write(object, vec![Op::remove()])
    }

    fn flush(&mut self) -> Result<()> {
        self.store.flush_blocking()?;
        self.expected.iter_mut().for_each(Expected::flushed);
        Ok(())
    }

    /// As images make snapshots: after a flush.
    fn snapshot(&mut self) -> Result<()> {
        self.flush()?;
        let id = self.store.store.create_snapshot()?;
        self.context.seq = id;
        self.context.snaps.insert(0, id);
        self.snapshots.insert(id, self.expected.iter().map(Expected::now).collect());
        Ok(())
    }

    fn remove_snapshot(&mut self) -> Result<()> {
        let Some(index) = (!self.context.snaps.is_empty())
            .then(|| self.rng.random_range(0..self.context.snaps.len()))
        else {
            return Ok(());
        };
        let id = self.context.snaps.remove(index);
        self.snapshots.remove(&id);
        self.store.store.remove_snapshot(id)
    }

    fn step(&mut self) -> Result<()> {
        let object = self.rng.random_range(0..OBJECTS);
        match self.rng.random_range(0..20) {
            0..9 => self.plain_write(object),
            9..14 => self.compound_write(object),
            14 => self.remove(object),
            15..18 => self.flush(),
            18 => self.snapshot(),
            _ => self.remove_snapshot(),
        }?;
        self.alternative = None;
        Ok(())
    }

    fn check(&self, seed: u64) {
        for (object, expected) in self.expected.iter().enumerate() {
            let found = found(&self.store, object, crate::store::NOSNAP);
            let other = self.alternative.as_ref().filter(|(other, _)| *other == object);
            let is_allowed =
                expected.allows(&found) || other.is_some_and(|(_, other)| other.allows(&found));
            assert!(
                is_allowed,
                "BLOCKYARD_SEED={seed}: object {object} is {found:?}, and not {expected:?} or {other:?}"
            );
        }
        for (id, objects) in &self.snapshots {
            for (object, expected) in objects.iter().enumerate() {
                let found = found(&self.store, object, *id).sectors;
                assert_eq!(
                    found, *expected,
                    "BLOCKYARD_SEED={seed}: object {object} in snapshot {id}"
                );
            }
        }
    }
}

fn run(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut disk = Simulated::default();
    // The power may be cut while the store is made, too.
    let changes = if rng.random_range(0..10) == 0 { 60 } else { 1200 };
    disk.cut_after(rng.random_range(1..changes));
    let mut store = DirStore::on(disk.clone());
    if disk.is_cut() {
        drop(store);
        disk = disk.power_on(&mut rng);
        store = DirStore::on(disk.clone());
    }
    let mut run =
        Run::new(rng, store.unwrap_or_else(|error| panic!("BLOCKYARD_SEED={seed}: {error}")));
    for _ in 0..STEPS {
        if let Err(error) = run.step() {
            assert!(disk.is_cut(), "BLOCKYARD_SEED={seed}: {error}");
            break;
        }
    }
    if !disk.is_cut() {
        run.check(seed);
    }
    disk.cut_after(0);
    let after = disk.power_on(&mut run.rng);
    let reopened = DirStore::on(after.clone());
    run.store =
        reopened.unwrap_or_else(|error| panic!("BLOCKYARD_SEED={seed}: after the cut: {error}"));
    run.check(seed);
    // Nothing is left of what was under way: each file is of an object.
    let files = after.files("data/").len();
    assert_eq!(files, run.store.store.files_in_use().unwrap(), "BLOCKYARD_SEED={seed}");
    // It works as before.
    run.alternative = None;
    run.compound_write(0).unwrap_or_else(|error| panic!("BLOCKYARD_SEED={seed}: {error}"));
}

#[test]
fn what_was_promised_survives_a_power_cut() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = number("BLOCKYARD_SEED");
    let seeds = number("BLOCKYARD_SEEDS").unwrap_or(if first.is_some() { 1 } else { SEEDS });
    let first = first.unwrap_or_default();
    (first..first.saturating_add(seeds)).for_each(run);
}
