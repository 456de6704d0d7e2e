//! Rules: programs of steps that turn an input into devices.

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its number, as encoded; older maps grouped rules by it.
    pub ruleset: u8,
    /// For which kind of pool it is, and whether its steps are tried again as a whole.
    pub kind: RuleKind,
    /// The smallest pool it is for; no longer used, but encoded.
    pub min_size: u8,
    /// The largest.
    pub max_size: u8,
    /// What to do, in order.
    pub steps: Vec<Step>,
}

/// The type of a rule: `CRUSH_RULE_TYPE_*` of Ceph's `src/crush/crush.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleKind {
    /// For replicated pools.
    Replicated,
    /// For erasure-coded pools.
    Erasure,
    /// Multi-step retry (Ceph 19), for replicated pools: results move up into gaps.
    MsrFirstn,
    /// Multi-step retry (Ceph 19), for erasure-coded pools: results keep their position.
    MsrIndep,
    /// Another number; the steps are run as those of a replicated rule.
    Other(u8),
}

impl RuleKind {
    pub(crate) fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Replicated,
            3 => Self::Erasure,
            4 => Self::MsrFirstn,
            5 => Self::MsrIndep,
            other => Self::Other(other),
        }
    }

    /// Its number in an encoded map.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Replicated => 1,
            Self::Erasure => 3,
            Self::MsrFirstn => 4,
            Self::MsrIndep => 5,
            Self::Other(code) => code,
        }
    }

    /// Whether failures retry all steps of a block.
    #[must_use]
    pub fn is_msr(self) -> bool {
        matches!(self, Self::MsrFirstn | Self::MsrIndep)
    }
}

/// One step of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What to do.
    pub op: Op,
    /// To take: the item. To choose: how many, or 0 or less for that many less than wanted. To set: the value.
    pub arg1: i32,
    /// To choose: the type of what to choose.
    pub arg2: i32,
}

impl Step {
    /// A step.
    #[must_use]
    pub fn new(op: Op, arg1: i32, arg2: i32) -> Self {
        Self { op, arg1, arg2 }
    }
}

/// Declares the operations once, with their numbers.
macro_rules! ops {
    ($($code:literal $name:ident $doc:literal)*) => {
        /// What a step does: `CRUSH_RULE_*` of Ceph's `src/crush/crush.h`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Op {
            $(#[doc = $doc] $name,)*
            /// A number that is not known; the step does nothing.
            Other(u32),
        }

        impl Op {
            pub(crate) fn from_code(code: u32) -> Self {
                match code {
                    $($code => Self::$name,)*
                    other => Self::Other(other),
                }
            }

            /// Its number in an encoded map.
            #[must_use]
            pub fn code(self) -> u32 {
                match self {
                    $(Self::$name => $code,)*
                    Self::Other(code) => code,
                }
            }
        }
    };
}

ops! {
    0 Noop "Nothing."
    1 Take "Start over with one item."
    2 ChooseFirstn "Choose items of a type; results move up into gaps."
    3 ChooseIndep "Choose items of a type; each result keeps its position, gaps stay."
    4 Emit "Append what was chosen to the result."
    6 ChooseleafFirstn "Choose items of a type, and a device below each, moving up."
    7 ChooseleafIndep "Choose items of a type, and a device below each, keeping positions."
    8 SetChooseTries "Attempts per item."
    9 SetChooseleafTries "Attempts to find the device below an item."
    10 SetChooseLocalTries "Retries in the same bucket after a collision."
    11 SetChooseLocalFallbackTries "Retries by permutation of the same bucket."
    12 SetChooseleafVaryR "How the device below depends on the attempt."
    13 SetChooseleafStable "Whether the device below depends on the position."
    14 SetMsrDescents "Attempts of a whole block, in rules of multi-step retry."
    15 SetMsrCollisionTries "Attempts to avoid a collision, in rules of multi-step retry."
    16 ChooseMsr "Choose items of a type, in rules of multi-step retry."
}
