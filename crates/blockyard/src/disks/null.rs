//! `null:`: reads zeroes, forgets writes.

use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::{Disk, DiskFlags, Sector};
use blockyard_driver_null::{Null, NullConfig};

use super::kind::{Body, DiskKind, DiskSource, Fresh};
use super::maker::{DiskMaker, Parts};
use super::options::{OptionSpec, ValueKind};
use super::plan::DiskPlan;
use crate::error::{Error, Result};

/// The longest latency.
const MAX_LATENCY: Duration = Duration::from_secs(60);

pub(super) static KIND: DiskKind = DiskKind {
    name: "null",
    schemes: &["null"],
    body: Body::Size,
    usage: "null:SIZE",
    summary: "reads zeroes, discards writes",
    options: &[OptionSpec::new(
        "latency",
        ValueKind::Time { zero: true, most: MAX_LATENCY },
        "0",
        "delay of each request",
    )],
    without: &[],
    has_below: false,
    stays_read_only: false,
    is_volatile: true,
    source: |said| {
        let latency = said.settings.time("latency").unwrap_or(Duration::ZERO);
        Ok(Box::new(Source { size: said.needed_size("null")?, latency }))
    },
};

#[derive(Clone, Debug)]
struct Source {
    size: u64,
    latency: Duration,
}

impl DiskSource for Source {
    fn open(&self, plan: &DiskPlan, _: Option<&Arc<Disk>>, maker: &mut DiskMaker) -> Result<Fresh> {
        let capacity = Sector::from_bytes_floor(self.size);
        let latency = Some(self.latency).filter(|latency| !latency.is_zero());
        let null = Null::new(NullConfig { capacity, latency }, maker.threads())
            .map_err(|err| Error::failed("cannot create the disk").caused_by(err))?;
        let mut parts = Parts::new(plan, maker, null, self.size, Null::limits());
        // There is nothing on it, and looking may take as long as its latency says.
        parts.flags |= DiskFlags::NO_PART_SCAN;
        Ok(Fresh { disk: maker.alloc(plan, parts)?, remote: None })
    }
}
