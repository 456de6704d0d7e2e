//! What a signal stops while the kernel is being given a disk.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

/// How often all that waits for the disk is failed.
const AGAIN: Duration = Duration::from_millis(100);

/// Waits for what needs the disk. Once it is `told` to stop, whatever is asked of the disk is failed by `abandon`, so that it
/// ends soon; says whether it was.
pub(super) async fn unless_told<T>(
    job: impl Future<Output = T>,
    told: impl Future<Output = ()>,
    abandon: impl Fn(),
) -> (T, bool) {
    let mut job = pin!(job);
    tokio::select! {
        biased;
        done = &mut job => return (done, false),
        () = told => {}
    }
    (while_abandoning(job, abandon).await, true)
}

/// Waits for what needs the disk, of which nothing is waited for.
pub(super) async fn while_abandoning<T>(job: impl Future<Output = T>, abandon: impl Fn()) -> T {
    let mut job = pin!(job);
    loop {
        abandon();
        if let Ok(done) = tokio::time::timeout(AGAIN, &mut job).await {
            return done;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::sync::Notify;

    use super::*;

    /// The kernel looks at several places of the disk, one after the other.
    #[tokio::test]
    async fn what_waits_for_the_disk_fails_as_often_as_it_takes() {
        let (failed, abandoned) = (Notify::new(), Cell::new(0));
        let reads = async || {
            for _ in 0..3 {
                failed.notified().await;
            }
            "attached"
        };
        let abandon = || {
            abandoned.set(abandoned.get() + 1);
            failed.notify_one();
        };
        let ended = unless_told(reads(), std::future::ready(()), abandon).await;
        assert_eq!(ended, ("attached", true));
        assert!(abandoned.get() >= 3);
        let never = || panic!("nobody has said so");
        let ended = unless_told(async { 7 }, std::future::ready(()), never).await;
        assert_eq!(ended, (7, false), "it was done before");
    }
}
