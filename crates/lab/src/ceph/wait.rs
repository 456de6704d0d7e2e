//! Waiting for what nobody tells of.

use super::daemon::Ended;
use anyhow::{Result, anyhow};
use std::thread;
use std::time::{Duration, Instant};

/// How long a state of a cluster may take to come. Peering and recovery on a loaded machine take some seconds.
pub const POLL_LIMIT: Duration = Duration::from_secs(120);
/// How often is looked.
const POLL: Duration = Duration::from_millis(50);

/// Looks until `look` finds something, at most [`POLL_LIMIT`]. That `look` fails is no end, unless a daemon has ended: one that
/// has just been started may answer next time.
///
/// # Errors
/// The time is over, or a daemon has ended: `what` says what did not come, and `look` why, if it failed last.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + POLL_LIMIT;
    loop {
        let problem = match look() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        let is_final = problem.as_ref().is_some_and(|error| error.is::<Ended>());
        if is_final || Instant::now() > deadline {
            let late = match is_final {
                true => format!("{what} will not come"),
                false => format!("{what} did not come within {POLL_LIMIT:?}"),
            };
            return Err(match problem {
                Some(error) => error.context(late),
                None => anyhow!(late),
            });
        }
        thread::sleep(POLL);
    }
}
