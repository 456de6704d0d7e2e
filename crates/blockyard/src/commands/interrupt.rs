//! Ctrl-C for commands that finish what they have begun: the first signal asks them to, a second one ends them. While they have
//! begun nothing, the first one does.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Error, Result};
use crate::tools::interrupt::Interrupt;

/// The exit code of a command that a signal has ended, as shells have it: this and the signal's number.
const KILLED: i32 = 128;

/// SIGINT and SIGTERM, as wishes for an end.
pub(super) fn signals() -> Result<Arc<Interrupt>> {
    let failed = |err: std::io::Error| Error::failed("cannot catch signals").caused_by(err);
    let told = Arc::new(Interrupt::default());
    let tell = Arc::clone(&told);
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
            let kind = tokio::select! {
                _ = interrupt.recv() => SignalKind::interrupt(),
                _ = terminate.recv() => SignalKind::terminate(),
            };
            if !tell.raise() {
                std::process::exit(KILLED + kind.as_raw_value());
            }
        }
    };
    let started =
        std::thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(watch));
    started.map(|_| told).map_err(failed)
}
