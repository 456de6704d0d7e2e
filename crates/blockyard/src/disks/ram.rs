//! `ram:`: memory, taken as it is written.

use std::sync::Arc;

use blockyard_blkmq::Disk;
use blockyard_driver_ram::Ram;

use super::kind::{Body, DiskKind, DiskSource, Fresh};
use super::maker::{DiskMaker, Parts};
use super::plan::DiskPlan;
use crate::error::Result;

pub(super) static KIND: DiskKind = DiskKind {
    name: "ram",
    schemes: &["ram"],
    body: Body::Size,
    usage: "ram:SIZE",
    summary: "memory, allocated on first write; lost when the daemon exits",
    options: &[],
    without: &[],
    has_below: false,
    stays_read_only: false,
    is_volatile: true,
    source: |said| Ok(Box::new(Source { size: said.needed_size("ram")? })),
};

#[derive(Clone, Debug)]
struct Source {
    size: u64,
}

impl DiskSource for Source {
    fn open(&self, plan: &DiskPlan, _: Option<&Arc<Disk>>, maker: &mut DiskMaker) -> Result<Fresh> {
        let parts = Parts::new(plan, maker, Ram::new(), self.size, Ram::limits());
        Ok(Fresh { disk: maker.alloc(plan, parts)?, remote: None })
    }
}
