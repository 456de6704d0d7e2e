//! Decoding, as `CrushWrapper::decode` of Ceph's `src/crush/CrushWrapper.cc` does. All numbers are little-endian.
//!
//! | part | fields |
//! | --- | --- |
//! | head | u32 [`MAGIC`], i32 buckets, u32 rules, i32 devices |
//! | each bucket | u32 algorithm, or 0; i32 id, u16 type, u8 algorithm, u8 hash, u32 weight, items, weights |
//! | each rule | u32 1, or 0 for none; u32 steps; u8 ruleset, type, smallest and largest size; steps of 3 words |
//! | names | of types, items, rules |
//! | tail | what later releases added, in the order of [`Release`](crate::Release); the map may end before each |

use std::collections::BTreeMap;

use crate::data::{Algorithm, Bucket, ChooseArg, MAGIC, MapData};
use crate::error::{ErrorKind, Result};
use crate::reader::Reader;
use crate::rule::{Op, Rule, RuleKind, Step};
use crate::tunables::Tunables;

/// The number of rjenkins1, the only hash.
const RJENKINS1: u8 = 0;

impl MapData {
    /// Reads an encoded map. The result may still contradict itself; [`CrushMap`](crate::CrushMap) checks that.
    ///
    /// # Errors
    ///
    /// The bytes are no map, end early, count more than they hold, or name an unknown algorithm. Memory stays
    /// within a fixed multiple of the bytes, whatever they say.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let magic = reader.u32("magic")?;
        if magic != MAGIC {
            let subject = format!("it begins with {magic:#010x}, not {MAGIC:#010x}");
            return Err(reader.error(ErrorKind::NotACrushMap, subject));
        }
        let buckets = reader.count(4, "buckets")?;
        let rules = reader.u32("rules")?;
        let max_devices = reader.i32("devices")?;
        let mut map = Self { max_devices, tunables: Tunables::ARGONAUT, ..Self::default() };
        for _ in 0..buckets {
            map.buckets.push(bucket(&mut reader)?);
        }
        for _ in 0..reader.fits(rules, 4, "rules")? {
            map.rules.push(rule(&mut reader)?);
        }
        map.types = reader.names_of_either_width("names of types")?;
        map.names = reader.names_of_either_width("names of items")?;
        map.rule_names = reader.names_of_either_width("names of rules")?;
        tail(&mut map, &mut reader)?;
        Ok(map)
    }
}

fn bucket(reader: &mut Reader<'_>) -> Result<Option<Bucket>> {
    if reader.u32("bucket")? == 0 {
        return Ok(None);
    }
    let id = reader.i32("id of a bucket")?;
    let kind = reader.u16("type of a bucket")?;
    let code = reader.u8("algorithm of a bucket")?;
    let hash = reader.u8("hash of a bucket")?;
    if hash != RJENKINS1 {
        return Err(reader.error(ErrorKind::UnknownAlgorithm, format!("hash {hash} of {id}")));
    }
    let weight = reader.u32("weight of a bucket")?;
    let size = reader.count(4, "items of a bucket")?;
    let items = reader.i32s(size, "items of a bucket")?;
    let algorithm = match code {
        1 => Algorithm::Uniform { item_weight: reader.u32("weight of an item")? },
        2 => {
            let (weights, sums) = pairs(reader, size)?;
            Algorithm::List { weights, sums }
        }
        3 => {
            let nodes = usize::from(reader.u8("nodes of a tree")?);
            Algorithm::Tree { node_weights: reader.u32s(nodes, "weights of a tree")? }
        }
        4 => {
            let (weights, straws) = pairs(reader, size)?;
            Algorithm::Straw { weights, straws }
        }
        5 => Algorithm::Straw2 { weights: reader.u32s(size, "weights of a bucket")? },
        _ => {
            let subject = format!("bucket {id} of algorithm {code}");
            return Err(reader.error(ErrorKind::UnknownAlgorithm, subject));
        }
    };
    Ok(Some(Bucket { id, kind, weight, items, algorithm }))
}

fn pairs(reader: &mut Reader<'_>, size: usize) -> Result<(Vec<u32>, Vec<u32>)> {
    let size = reader.fits(u32::try_from(size).unwrap_or(u32::MAX), 8, "weights of a bucket")?;
    let (mut first, mut second) = (Vec::with_capacity(size), Vec::with_capacity(size));
    for _ in 0..size {
        first.push(reader.u32("weights of a bucket")?);
        second.push(reader.u32("weights of a bucket")?);
    }
    Ok((first, second))
}

fn rule(reader: &mut Reader<'_>) -> Result<Option<Rule>> {
    if reader.u32("rule")? == 0 {
        return Ok(None);
    }
    let len = reader.u32("steps of a rule")?;
    let ruleset = reader.u8("number of a rule")?;
    let kind = RuleKind::from_code(reader.u8("type of a rule")?);
    let min_size = reader.u8("sizes of a rule")?;
    let max_size = reader.u8("sizes of a rule")?;
    let len = reader.fits(len, 12, "steps of a rule")?;
    let mut steps = Vec::with_capacity(len);
    for _ in 0..len {
        let op = Op::from_code(reader.u32("step")?);
        steps.push(Step { op, arg1: reader.i32("step")?, arg2: reader.i32("step")? });
    }
    Ok(Some(Rule { ruleset, kind, min_size, max_size, steps }))
}

/// What later releases appended. What is missing keeps its oldest meaning.
fn tail(map: &mut MapData, reader: &mut Reader<'_>) -> Result<()> {
    let tunables = &mut map.tunables;
    if !reader.is_empty() {
        tunables.choose_local_tries = reader.u32("choose_local_tries")?;
        tunables.choose_local_fallback_tries = reader.u32("choose_local_fallback_tries")?;
        tunables.choose_total_tries = reader.u32("choose_total_tries")?;
    }
    if !reader.is_empty() {
        tunables.chooseleaf_descend_once = reader.u32("chooseleaf_descend_once")?;
    }
    if !reader.is_empty() {
        tunables.chooseleaf_vary_r = reader.u8("chooseleaf_vary_r")?;
    }
    if !reader.is_empty() {
        tunables.straw_calc_version = reader.u8("straw_calc_version")?;
    }
    if !reader.is_empty() {
        tunables.allowed_bucket_algs = reader.u32("allowed_bucket_algs")?;
    }
    if !reader.is_empty() {
        tunables.chooseleaf_stable = reader.u8("chooseleaf_stable")?;
    }
    if !reader.is_empty() {
        map.item_classes = reader.numbers("classes of items")?;
        map.class_names = reader.names("names of classes")?;
        map.shadows = shadows(reader)?;
    }
    if !reader.is_empty() {
        map.choose_args = choose_args(reader)?;
    }
    if !reader.is_empty() {
        map.tunables.msr_descents = reader.u32("msr_descents")?;
        map.tunables.msr_collision_tries = reader.u32("msr_collision_tries")?;
    }
    Ok(())
}

fn shadows(reader: &mut Reader<'_>) -> Result<BTreeMap<i32, BTreeMap<i32, i32>>> {
    let count = reader.count(8, "buckets with shadows")?;
    let mut shadows = BTreeMap::new();
    for _ in 0..count {
        let bucket = reader.i32("bucket with shadows")?;
        shadows.insert(bucket, reader.numbers("shadows of a bucket")?);
    }
    Ok(shadows)
}

fn choose_args(reader: &mut Reader<'_>) -> Result<BTreeMap<i64, BTreeMap<u32, ChooseArg>>> {
    let count = reader.count(12, "choose_args")?;
    let mut all = BTreeMap::new();
    for _ in 0..count {
        let pool = reader.i64("pool of choose_args")?;
        let buckets = reader.count(12, "buckets of choose_args")?;
        let mut args = BTreeMap::new();
        for _ in 0..buckets {
            let index = reader.u32("bucket of choose_args")?;
            args.insert(index, choose_arg(reader)?);
        }
        all.insert(pool, args);
    }
    Ok(all)
}

fn choose_arg(reader: &mut Reader<'_>) -> Result<ChooseArg> {
    let positions = reader.count(4, "weight sets")?;
    let mut weight_sets = Vec::new();
    for _ in 0..positions {
        let len = reader.count(4, "weights of a weight set")?;
        weight_sets.push(reader.u32s(len, "weights of a weight set")?);
    }
    let len = reader.count(4, "ids of choose_args")?;
    Ok(ChooseArg { ids: reader.i32s(len, "ids of choose_args")?, weight_sets })
}
