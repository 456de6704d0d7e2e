//! A deadline that moves on with every sign of life, and costs next to nothing while there are signs.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// How long ago something moved. The timer is set once and looks anew when it fires, rather than being set with
/// each movement.
pub(crate) struct Stall {
    moved: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    pub(crate) fn new(now: Instant) -> Self {
        Self { moved: now, timer: None }
    }

    pub(crate) fn moved(&mut self, now: Instant) {
        self.moved = now;
    }

    /// Ready when nothing has moved for `limit`.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, limit: Duration) -> Poll<()> {
        loop {
            let deadline = self.moved + limit;
            let timer =
                self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            if timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.timer = None;
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
        }
    }

    /// There is nothing to wait for: a timer that is set is left to fire once, for nobody.
    pub(crate) fn rest(&mut self) {
        if self.timer.as_ref().is_some_and(|timer| timer.is_elapsed()) {
            self.timer = None;
        }
    }
}
