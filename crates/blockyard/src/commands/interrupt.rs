//! Ctrl-C for commands that finish what they have begun: the first one asks them to, a second one ends them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// The exit code of a command that SIGINT has ended, as shells have it.
const INTERRUPTED: i32 = 130;

/// A flag that SIGINT or SIGTERM sets.
pub(super) fn flag() -> Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |err: std::io::Error| Error::failed("cannot catch signals").caused_by(err);
    let flag = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&flag);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        let interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        (interrupt, signal(SignalKind::terminate()).map_err(failed)?)
    };
    // It ends with the process.
    let watch = async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if told.swap(true, Ordering::AcqRel) {
                std::process::exit(INTERRUPTED);
            }
        }
    };
    let started =
        std::thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(watch));
    started.map(|_| flag).map_err(failed)
}
