//! What a guest's driver does wrong.

use blockyard_vhost_user::queue::QueueError;
use thiserror::Error;

/// What a driver did that its queue does not survive. `R` is what makes no request of the device.
#[derive(Debug, Error)]
pub enum Fault<R> {
    /// A ring or a chain that cannot be.
    #[error("{0}")]
    Queue(#[from] QueueError),
    /// A chain that is no request.
    #[error("{0}")]
    Request(R),
    /// Memory that it shares with us became shorter, and was needed.
    #[error("guest memory is gone")]
    MemoryLost,
}
