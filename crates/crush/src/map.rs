//! A checked map, with everything precomputed that placement needs.

use std::collections::BTreeMap;

use pulp::Arch;

use crate::bucket::Ready;
use crate::check::index_of;
use crate::data::MapData;
use crate::error::Result;
use crate::ln::{self, Negated};
use crate::location::Parents;
use crate::names::Names;
use crate::overrides::ChooseArgs;
use crate::rule::{Op, Rule, RuleKind};

/// The pool number under which `choose_args` for all other pools are kept.
pub const DEFAULT_CHOOSE_ARGS: i64 = -1;

/// A CRUSH map that can place: it does not contradict itself, and it does not change.
#[derive(Debug)]
pub struct CrushMap {
    pub(crate) data: MapData,
    pub(crate) buckets: Vec<Option<Ready>>,
    pub(crate) parents: Parents,
    pub(crate) names: Names,
    pub(crate) logarithms: &'static Negated,
    /// The vector instructions to draw with.
    pub(crate) arch: Arch,
    choose_args: BTreeMap<i64, ChooseArgs>,
}

impl CrushMap {
    /// Checks a map and prepares it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Inconsistent`](crate::ErrorKind::Inconsistent): an item that does not exist, a list that is not
    /// as long as its bucket, a bucket inside of itself. Ceph would crash or never return on such a map.
    pub fn new(mut data: MapData) -> Result<Self> {
        data.finalize()?;
        data.check()?;
        let ready = |slot: &Option<_>| slot.as_ref().map(Ready::new);
        let prepare = |(&pool, args): (&i64, _)| (pool, ChooseArgs::new(args));
        Ok(Self {
            buckets: data.buckets.iter().map(ready).collect(),
            choose_args: data.choose_args.iter().map(prepare).collect(),
            parents: Parents::new(&data),
            names: Names::new(&data),
            logarithms: ln::negated(),
            arch: Arch::new(),
            data,
        })
    }

    /// Decodes, checks and prepares a map as Ceph writes it.
    ///
    /// # Errors
    ///
    /// Those of [`MapData::decode`] and of [`CrushMap::new`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::new(MapData::decode(bytes)?)
    }

    /// The map as plain data.
    #[must_use]
    pub fn data(&self) -> &MapData {
        &self.data
    }

    /// The overrides for a pool: its own, or else those for all other pools.
    #[must_use]
    pub fn choose_args(&self, pool: i64) -> Option<&ChooseArgs> {
        self.choose_args.get(&pool).or_else(|| self.choose_args.get(&DEFAULT_CHOOSE_ARGS))
    }

    /// A rule by its number.
    #[must_use]
    pub fn rule(&self, rule: u32) -> Option<&Rule> {
        self.data.rules.get(usize::try_from(rule).ok()?)?.as_ref()
    }

    /// The first rule of a kind.
    #[must_use]
    pub fn first_rule(&self, kind: RuleKind) -> Option<u32> {
        self.find(|rule| rule.kind == kind)
    }

    /// The rule that maps of old clusters mean by a ruleset, a kind and a pool's size (`crush_find_rule`).
    #[must_use]
    pub fn find_rule(&self, ruleset: u8, kind: RuleKind, size: u8) -> Option<u32> {
        self.find(|rule| {
            let sizes = rule.min_size..=rule.max_size;
            rule.ruleset == ruleset && rule.kind == kind && sizes.contains(&size)
        })
    }

    fn find(&self, fits: impl Fn(&Rule) -> bool) -> Option<u32> {
        let found = self.data.rules.iter().position(|rule| rule.as_ref().is_some_and(&fits))?;
        u32::try_from(found).ok()
    }

    /// The items that a rule starts from.
    pub fn taken_by(&self, rule: u32) -> impl Iterator<Item = i32> {
        let steps = self.rule(rule).into_iter().flat_map(|rule| &rule.steps);
        steps.filter(|step| step.op == Op::Take).map(|step| step.arg1)
    }

    /// The bucket of an item; `None` for devices.
    #[inline]
    pub(crate) fn ready(&self, item: i32) -> Option<&Ready> {
        self.buckets.get(index_of(item)?)?.as_ref()
    }
}
