//! Disks: one file for each kind, and what is made from what the kinds say of themselves.
//!
//! | URI | the disk |
//! | --- | --- |
//! | `ram:1G` | memory, taken as it is written |
//! | `null:1T?latency=100us` | reads zeroes, forgets writes, each after a while |
//! | `file:/p?direct=1&create=1G&lock=0&engine=uring` | a file or a block device |
//! | `/p`, `./p` | the same with nothing special, the path taken as it is |
//! | `rbd:pool/image@snap?id=admin` | the same in a Ceph cluster |
//! | `rbd+dir:/yard/image@snap` | an RBD image, or a snapshot of one, in a store in a directory |
//! | `nbd://host/export?connections=2` and its like | an export of an NBD server ([`blockyard_nbd::uri`], [`nbd`]) |
//!
//! A new kind is a file here with a [`DiskKind`], and a line in [`KINDS`].

mod builder;
pub mod describe;
pub mod fault;
pub mod file;
pub mod help;
pub mod identity;
mod kind;
pub mod live;
mod maker;
pub mod nbd;
mod null;
mod open;
mod options;
mod plan;
mod ram;
pub mod rbd;
mod remote;
pub mod throttle;
#[cfg(test)]
mod toy;
pub mod uri;

pub use builder::PlanBuilder;
pub(crate) use builder::set_body;
pub use kind::{AnySource, Body, DiskKind, DiskSource, Fresh, Place, Said, TlsTaken};
pub use maker::{Abilities, DiskMaker, Parts, abilities, ability_names};
pub use open::OpenDisk;
pub use options::{
    COMMON, DiskOptions, NO_LIMIT, OptionSpec, Settings, Value, ValueKind, canonical_key,
    parse_duration, show_duration,
};
pub use plan::{DiskPlan, absolute};
pub use remote::{Goodbye, Remote, RemoteDriver};

use crate::error::{Error, Result};
use crate::text::suggest;

/// The kinds of disks that there are.
pub static KINDS: &[&DiskKind] = &[
    &ram::KIND,
    &null::KIND,
    &file::KIND,
    &nbd::KIND,
    &rbd::KIND,
    &rbd::IN_CLUSTER,
    #[cfg(test)]
    &toy::KIND,
];

/// The kind whose URIs begin so.
#[must_use]
pub fn kind_of(scheme: &str) -> Option<&'static DiskKind> {
    KINDS.iter().copied().find(|kind| kind.has_scheme(scheme))
}

/// How URIs begin, of all kinds.
#[must_use]
pub fn schemes() -> Vec<&'static str> {
    KINDS.iter().flat_map(|kind| kind.schemes).copied().collect()
}

/// Options that change while a disk is used, of all kinds.
pub fn settings() -> impl Iterator<Item = &'static OptionSpec> {
    let own = KINDS.iter().flat_map(|kind| kind.options);
    COMMON.iter().chain(own).filter(|option| option.live.is_some())
}

/// A setting, and what it is to be, as they were typed.
///
/// # Errors
/// There is no such setting, or it cannot be that.
pub fn setting(key: &str, value: &str) -> Result<(&'static OptionSpec, Value)> {
    let Some(option) = settings().find(|option| option.name == canonical_key(key)) else {
        let names: Vec<_> = settings().map(|option| option.name).collect();
        let what = format!("unknown setting {key:?}; {}", suggest::hint(key, &names));
        return Err(Error::usage(what));
    };
    let value = option.value.parse(option.name, option.default, value);
    let value = value.map_err(|problem| Error::usage(format!("{key}: {problem}")))?;
    Ok((option, value))
}
