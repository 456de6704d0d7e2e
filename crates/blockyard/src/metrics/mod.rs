//! What a yard has done, in numbers that Prometheus collects: OpenMetrics 1.0, as text.
//!
//! Names are node_exporter's where it has one (`node_disk_*`), with `blockyard` for `node`, so that dashboards for disks of
//! a kernel need no other words. Times of requests are a histogram with the same bounds everywhere: those of several disks
//! and machines can be added up.

pub mod listener;
mod snapshot;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::yard::Yard;
use snapshot::Snapshot;

/// The media type of [`text`].
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All numbers as they are now, with a series for each NBD client if that is wanted: of those there may be thousands, which
/// come and go.
#[must_use]
pub fn text(yard: &Yard, clients: bool) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot::of(yard, clients)));
    let mut text = String::new();
    // A string takes whatever comes.
    let _ = encode(&mut text, &registry);
    text
}
