//! A tag set: how many hardware queues a driver has and how deep they are, for one disk or several (kernel:
//! `struct blk_mq_tag_set`).

use std::sync::Arc;
use std::time::Duration;

use crate::driver::Driver;
use crate::error::{Error, ErrorKind, Result};
use crate::queue_map::{QueueMaps, QueueType};
use crate::tags::Tags;

/// The deepest queue; more is reduced to it (kernel: `BLK_MQ_MAX_DEPTH`).
pub const MAX_DEPTH: u32 = 10240;

bitflags::bitflags! {
    /// How a tag set behaves (kernel: `BLK_MQ_F_*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct TagSetFlags: u32 {
        /// All hardware queues share one set of tags: the depth is the host's, not each queue's.
        const TAG_HCTX_SHARED = 1 << 0;
        /// Disks of this set never get a scheduler unless one is asked for.
        const NO_SCHED_BY_DEFAULT = 1 << 1;
        /// Disks of this set get no scheduler at all.
        const NO_SCHED = 1 << 2;
    }
}

/// What a tag set is made from.
#[derive(Clone, Debug)]
pub struct TagSetConfig {
    /// Threads that submit: one software queue each.
    pub cpus: usize,
    /// Hardware queues of each [`QueueType`]; the first count must not be zero.
    pub hw_queues: [usize; QueueType::COUNT],
    /// Requests that a hardware queue can hold, from 1 to [`MAX_DEPTH`].
    pub depth: u32,
    /// How many of them are kept for what must not wait.
    pub reserved: u32,
    /// The NUMA node that memory should come from.
    pub node: Option<u32>,
    /// How long a request may be out before the driver is asked about it.
    pub timeout: Duration,
    /// How it behaves.
    pub flags: TagSetFlags,
}

impl Default for TagSetConfig {
    fn default() -> Self {
        Self {
            cpus: 1,
            hw_queues: [1, 0, 0],
            depth: 128,
            reserved: 0,
            node: None,
            timeout: Duration::from_secs(30),
            flags: TagSetFlags::default(),
        }
    }
}

/// Tags of a driver, which its disks share.
pub struct TagSet<D: Driver> {
    pub(crate) driver: Arc<D>,
    pub(crate) config: TagSetConfig,
    pub(crate) maps: QueueMaps,
    pub(crate) tags: Vec<Arc<Tags>>,
}

impl<D: Driver> TagSet<D> {
    /// A set for `driver` (kernel: `blk_mq_alloc_tag_set`).
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] where the kernel says EINVAL: no queue, no depth, a depth that the reserved tags
    /// use up, more hardware queues of a type than CPUs, a queue map that names a queue which is not there.
    pub fn new(driver: Arc<D>, mut config: TagSetConfig) -> Result<Arc<Self>> {
        let invalid = |what: String| Err(Error::new(ErrorKind::Invalid, what));
        if config.cpus == 0 || config.hw_queues[0] == 0 {
            return invalid("a tag set needs a CPU and a default hardware queue at least".into());
        }
        if config.depth == 0 || config.depth < config.reserved.saturating_add(1) {
            return invalid(format!(
                "a queue depth of {} leaves none beside {} reserved tags",
                config.depth, config.reserved
            ));
        }
        if config.depth > MAX_DEPTH {
            tracing::warn!(
                asked = config.depth,
                given = MAX_DEPTH,
                "queue depth reduced to the maximum"
            );
            config.depth = MAX_DEPTH;
        }
        if let Some(&count) = config.hw_queues.iter().find(|&&count| count > config.cpus) {
            return invalid(format!(
                "{count} hardware queues of one type for {} CPUs",
                config.cpus
            ));
        }
        let mut maps = QueueMaps::new(config.cpus, config.hw_queues);
        driver.map_queues(&mut maps);
        if !maps.is_valid() {
            return invalid(
                "the driver mapped a CPU to a hardware queue that does not exist".into(),
            );
        }
        let total: usize = config.hw_queues.iter().sum();
        let new_tags = || Arc::new(Tags::new(config.depth, config.reserved));
        let tags = if config.flags.contains(TagSetFlags::TAG_HCTX_SHARED) {
            vec![new_tags(); total]
        } else {
            (0..total).map(|_| new_tags()).collect()
        };
        Ok(Arc::new(Self { driver, config, maps, tags }))
    }

    /// Its depth, as it was settled.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.config.depth
    }

    /// Its driver.
    #[must_use]
    pub fn driver(&self) -> &Arc<D> {
        &self.driver
    }
}
