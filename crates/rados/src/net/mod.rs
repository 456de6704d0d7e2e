//! Programs' way to a cluster: sockets and time for the machine in [`cluster`](crate::cluster), and an async API.
//!
//! ```no_run
//! use blockyard_rados::net::{Cluster, Config};
//!
//! # async fn example() -> blockyard_rados::Result<()> {
//! let cluster = Cluster::connect(Config::from_env()?).await?;
//! let pool = cluster.pool("rbd").await?;
//! pool.write_full("greeting", b"hello".as_slice()).await?;
//! assert_eq!(pool.read("greeting", 0, 0).await?, b"hello"[..]);
//! # Ok(())
//! # }
//! ```
//!
//! A [`Cluster`] belongs to the tokio runtime that it was connected on, best a current-thread one (a queue thread): it has
//! one connection to each OSD that it needs, and everything is done on that thread. Whatever shares the cluster shares
//! these; several threads have a cluster each.
//!
//! An operation is given to the machine when its future is polled first, and operations on an object are done in that
//! order. More than [`Config::max_ops`] or [`Config::max_bytes`] at a time wait for their turn. A future that is dropped
//! gives its operation up; a write that was sent may still be done.

mod cluster;
mod config;
mod engine;
mod list;
mod monitors;
mod pool;
mod stream;
mod typed;
mod watch;

pub use cluster::{Cluster, Placement};
pub use config::Config;
pub use list::Listing;
pub use pool::{Pool, ReadPolicy};
pub use watch::{Told, Watch};
