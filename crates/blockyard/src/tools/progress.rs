//! A bar on a terminal, for what takes over a second.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// From which on progress is shown.
const LONG: Duration = Duration::from_secs(1);

/// A bar, not shown yet.
pub(crate) struct Progress {
    bar: ProgressBar,
    begun: Instant,
    shown: bool,
}

impl Progress {
    /// Of so many bytes, called `what`.
    pub(crate) fn new(what: &'static str, bytes: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::hidden());
        let template =
            "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { bar: bar.with_message(what), begun: Instant::now(), shown: false }
    }

    /// None is ever shown.
    pub(crate) fn silent() -> Self {
        Self { bar: ProgressBar::hidden(), begun: Instant::now(), shown: true }
    }

    /// So much is done.
    pub(crate) fn set(&mut self, bytes: u64) {
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
