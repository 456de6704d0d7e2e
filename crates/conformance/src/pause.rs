//! Waiting for what tells nobody when it happens: a file that appears, a process that is ready, a counter.

use std::time::Duration;

/// Between two looks: long enough that the processor is the other's, and short beside anything that is waited for.
const PAUSE: Duration = Duration::from_millis(2);

/// Call it between two looks at what another process does. Who looks without a pause takes a processor of two away from it.
pub fn pause() {
    std::thread::sleep(PAUSE);
}
