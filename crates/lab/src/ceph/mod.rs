//! A cluster of Ceph's own daemons on loopback: a monitor, a manager, and OSDs that keep their objects in memory.
//!
//! ```no_run
//! use blockyard_lab::ceph::{Cluster, Options};
//!
//! # fn main() -> anyhow::Result<()> {
//! let cluster = Cluster::start(&Options::default())?;
//! cluster.create_pool("rbd", 8)?;
//! cluster.run(cluster.tool("rados").args(["-p", "rbd", "put", "object", "/etc/hostname"]))?;
//! cluster.kill("osd.1")?;
//! cluster.start_daemon("osd.1")?;
//! # Ok(())
//! # }
//! ```
//!
//! Several run side by side: a monitor takes a port that is free, and all other daemons look for theirs. When a cluster is
//! dropped, or the process that started it ends in whatever way, its daemons end too.

mod cluster;
mod config;
mod daemon;
mod keeper;
mod wait;

pub use cluster::Cluster;
pub use config::{Auth, Mode, Options, PROGRAMS_VARIABLE};
pub use wait::{POLL_LIMIT, eventually};
