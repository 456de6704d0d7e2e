//! Waiting for what nobody tells of.

use anyhow::{Result, bail};
use std::thread;
use std::time::{Duration, Instant};

/// How long a state of a cluster may take to come. Peering and recovery on a loaded machine take some seconds.
pub const POLL_LIMIT: Duration = Duration::from_secs(90);
/// How often is looked.
const POLL: Duration = Duration::from_millis(50);

/// Looks until `look` finds something, at most [`POLL_LIMIT`].
///
/// # Errors
/// The time is over, `what` says what did not come; or `look` fails.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + POLL_LIMIT;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("{what} did not come within {POLL_LIMIT:?}");
        }
        thread::sleep(POLL);
    }
}
