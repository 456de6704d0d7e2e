//! A bar on a terminal, for what takes over a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::session::Amount;

/// From which on progress is shown.
const LONG: Duration = Duration::from_secs(1);

/// A bar, not shown yet.
pub(crate) struct Progress {
    bar: ProgressBar,
    begun: Instant,
    shown: bool,
    /// Told instead of the terminal.
    told: Option<Arc<Amount>>,
    bytes: u64,
}

impl Progress {
    /// Of so many bytes, called `what`.
    pub(crate) fn new(what: &'static str, bytes: u64) -> Self {
        Self::told(what, bytes, None)
    }

    /// The same, of which somebody else is told, if there is one.
    pub(super) fn told(what: &'static str, bytes: u64, told: Option<Arc<Amount>>) -> Self {
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::hidden());
        let template =
            "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        let this =
            Self { bar: bar.with_message(what), begun: Instant::now(), shown: false, told, bytes };
        if let Some(told) = &this.told {
            told.set(0, bytes);
        }
        this
    }

    /// None is ever shown.
    pub(crate) fn silent() -> Self {
        let (bar, begun) = (ProgressBar::hidden(), Instant::now());
        Self { bar, begun, shown: true, told: None, bytes: 0 }
    }

    /// So much is done.
    pub(crate) fn set(&mut self, bytes: u64) {
        if let Some(told) = &self.told {
            return told.set(bytes, self.bytes);
        }
        if !self.shown && self.begun.elapsed() >= LONG {
            self.shown = true;
            // indicatif shows nothing on what is no terminal.
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_position(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
