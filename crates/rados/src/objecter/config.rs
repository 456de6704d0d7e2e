//! What an objecter is to be.

use crate::features;

/// Bounds, and where the client is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Features of messages that the client supports.
    pub supported: u64,
    /// The number that tells this client from others at the same address; not 0.
    pub nonce: u32,
    /// Most operations in flight (ceph: option `objecter_inflight_ops`).
    pub max_ops: usize,
    /// Most bytes that they send and ask for; one operation alone may have more (`objecter_inflight_op_bytes`).
    pub max_bytes: u64,
    /// Most operations of a share that wait until they may be in flight.
    pub max_waiting: usize,
    /// Most watches.
    pub max_watches: usize,
    /// Where the client is, for reads from a near OSD: types and names of buckets, such as `host` `a` (`crush_location`).
    pub location: Vec<(String, String)>,
    /// Where the choice among replicas starts; any number does.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            supported: features::SUPPORTED,
            nonce: 1,
            max_ops: 1024,
            max_bytes: 100 << 20,
            max_waiting: 1 << 16,
            max_watches: 4096,
            location: Vec::new(),
            seed: 0,
        }
    }
}
