//! Encoding, as `CrushWrapper::encode` of Ceph's `src/crush/CrushWrapper.cc` does.

use std::collections::BTreeMap;

use crate::data::{Algorithm, Bucket, MAGIC, MapData};
use crate::rule::Rule;

/// The release whose readers an encoding is for: each added something to the end of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Release {
    /// No tunables: those of [`ARGONAUT`](crate::Tunables::ARGONAUT) are meant.
    Argonaut,
    /// Local, fallback and total tries.
    Tries,
    /// `chooseleaf_descend_once`.
    Bobtail,
    /// `chooseleaf_vary_r`.
    Firefly,
    /// `straw_calc_version`.
    StrawCalc,
    /// `allowed_bucket_algs`.
    Hammer,
    /// `chooseleaf_stable`.
    Jewel,
    /// Device classes and `choose_args`.
    Luminous,
    /// The tunables of multi-step retry.
    Squid,
}

impl MapData {
    /// The bytes of this map for readers of a release; what came later is left out.
    #[must_use]
    pub fn encode(&self, release: Release) -> Vec<u8> {
        let mut out = Vec::new();
        word(&mut out, MAGIC);
        count(&mut out, self.buckets.len());
        count(&mut out, self.rules.len());
        signed(&mut out, self.max_devices);
        for slot in &self.buckets {
            match slot {
                Some(found) => bucket(&mut out, found),
                None => word(&mut out, 0),
            }
        }
        for slot in &self.rules {
            match slot {
                Some(found) => rule(&mut out, found),
                None => word(&mut out, 0),
            }
        }
        names(&mut out, &self.types);
        names(&mut out, &self.names);
        names(&mut out, &self.rule_names);
        self.encode_tail(&mut out, release);
        out
    }

    fn encode_tail(&self, out: &mut Vec<u8>, release: Release) {
        let tunables = &self.tunables;
        if release >= Release::Tries {
            word(out, tunables.choose_local_tries);
            word(out, tunables.choose_local_fallback_tries);
            word(out, tunables.choose_total_tries);
        }
        if release >= Release::Bobtail {
            word(out, tunables.chooseleaf_descend_once);
        }
        if release >= Release::Firefly {
            out.push(tunables.chooseleaf_vary_r);
        }
        if release >= Release::StrawCalc {
            out.push(tunables.straw_calc_version);
        }
        if release >= Release::Hammer {
            word(out, tunables.allowed_bucket_algs);
        }
        if release >= Release::Jewel {
            out.push(tunables.chooseleaf_stable);
        }
        if release >= Release::Luminous {
            numbers(out, &self.item_classes);
            names(out, &self.class_names);
            count(out, self.shadows.len());
            for (&bucket, shadows) in &self.shadows {
                signed(out, bucket);
                numbers(out, shadows);
            }
            self.encode_choose_args(out);
        }
        if release >= Release::Squid {
            word(out, tunables.msr_descents);
            word(out, tunables.msr_collision_tries);
        }
    }

    fn encode_choose_args(&self, out: &mut Vec<u8>) {
        count(out, self.choose_args.len());
        for (pool, args) in &self.choose_args {
            out.extend_from_slice(&pool.to_le_bytes());
            let used =
                args.iter().filter(|(_, arg)| !arg.ids.is_empty() || !arg.weight_sets.is_empty());
            count(out, used.clone().count());
            for (&index, arg) in used {
                word(out, index);
                count(out, arg.weight_sets.len());
                for weights in &arg.weight_sets {
                    count(out, weights.len());
                    words(out, weights);
                }
                count(out, arg.ids.len());
                arg.ids.iter().for_each(|&id| signed(out, id));
            }
        }
    }
}

fn bucket(out: &mut Vec<u8>, bucket: &Bucket) {
    let code = bucket.algorithm.code();
    word(out, u32::from(code));
    signed(out, bucket.id);
    out.extend_from_slice(&bucket.kind.to_le_bytes());
    out.extend_from_slice(&[code, 0]);
    word(out, bucket.weight);
    count(out, bucket.items.len());
    bucket.items.iter().for_each(|&item| signed(out, item));
    match &bucket.algorithm {
        Algorithm::Uniform { item_weight } => word(out, *item_weight),
        Algorithm::List { weights, sums: second }
        | Algorithm::Straw { weights, straws: second } => {
            for (&first, &second) in weights.iter().zip(second) {
                words(out, &[first, second]);
            }
        }
        Algorithm::Tree { node_weights } => {
            out.push(u8::try_from(node_weights.len()).unwrap_or(0));
            words(out, node_weights);
        }
        Algorithm::Straw2 { weights } => words(out, weights),
    }
}

fn rule(out: &mut Vec<u8>, rule: &Rule) {
    word(out, 1);
    count(out, rule.steps.len());
    out.extend_from_slice(&[rule.ruleset, rule.kind.code(), rule.min_size, rule.max_size]);
    for step in &rule.steps {
        word(out, step.op.code());
        signed(out, step.arg1);
        signed(out, step.arg2);
    }
}

fn names(out: &mut Vec<u8>, names: &BTreeMap<i32, String>) {
    count(out, names.len());
    for (&key, name) in names {
        signed(out, key);
        count(out, name.len());
        out.extend_from_slice(name.as_bytes());
    }
}

fn numbers(out: &mut Vec<u8>, numbers: &BTreeMap<i32, i32>) {
    count(out, numbers.len());
    for (&key, &value) in numbers {
        signed(out, key);
        signed(out, value);
    }
}

fn word(out: &mut Vec<u8>, word: u32) {
    out.extend_from_slice(&word.to_le_bytes());
}

fn words(out: &mut Vec<u8>, all: &[u32]) {
    all.iter().for_each(|&one| word(out, one));
}

fn signed(out: &mut Vec<u8>, word: i32) {
    out.extend_from_slice(&word.to_le_bytes());
}

/// A length. No list in memory is longer than what the map's own numbers, of 32 bits, can refer to.
fn count(out: &mut Vec<u8>, len: usize) {
    word(out, u32::try_from(len).unwrap_or(u32::MAX));
}
