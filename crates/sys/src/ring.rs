//! What every io_uring of ours does: it is set up where kernels differ, and takes turns.

use std::io;
use std::sync::atomic::{Ordering, fence};

use io_uring::{Builder, IoUring};

/// A ring of `entries` submissions, as `builder` says beyond that.
pub(crate) fn set_up(mut builder: Builder, entries: u32) -> io::Result<IoUring> {
    builder.dontfork().setup_clamp();
    let plain = builder.clone();
    // Linux 5.19: the submitter is not interrupted for each completion; it sees them when it enters the kernel
    // next.
    builder.setup_coop_taskrun();
    match builder.build(entries) {
        Err(err) if err.raw_os_error() == Some(libc::EINVAL) => plain.build(entries),
        built => built,
    }
}

/// The owner of a ring with an eventfd, which tells of completions that come while nobody looks.
pub(crate) trait Turn {
    fn ring(&mut self) -> &mut IoUring;

    /// Whether something waits for room in the submission queue.
    fn has_pushed(&self) -> bool;

    /// Moves as much of that as fits to the submission queue.
    fn fill(&mut self);

    /// Submits what was pushed, and has `drain` take what has completed: what completes during its submission costs
    /// nothing more, and no signal.
    fn take_turn(&mut self, mut drain: impl FnMut(&mut Self)) -> io::Result<()> {
        if !self.has_pushed() && self.ring().submission().is_empty() {
            drain(self);
            return Ok(());
        }
        self.ring().completion().disable_eventfd();
        let submitted = self.submit();
        drain(self);
        self.ring().completion().enable_eventfd();
        // Either the kernel sees the flag after it has posted a completion, or we see the completion.
        fence(Ordering::SeqCst);
        drain(self);
        submitted
    }

    /// Until the kernel has all of it.
    fn submit(&mut self) -> io::Result<()> {
        loop {
            self.fill();
            match self.ring().submit() {
                Ok(_) => {}
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(err) => return Err(err),
            }
            if !self.has_pushed() && self.ring().submission().is_empty() {
                return Ok(());
            }
        }
    }
}
