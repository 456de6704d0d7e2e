//! A deadline that moves on with every sign of life, and costs next to nothing while there are signs.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep};

/// A timer that is set once and looks anew when it fires, rather than being set with each movement.
#[derive(Default)]
pub(super) struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Ready when it is past `deadline`.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) -> Poll<()> {
        let Some(deadline) = deadline else {
            // A timer that is set is left to fire once, for nobody.
            if self.0.as_ref().is_some_and(|timer| timer.is_elapsed()) {
                self.0 = None;
            }
            return Poll::Pending;
        };
        loop {
            let timer = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            if timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.0 = None;
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
        }
    }
}
