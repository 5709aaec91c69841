//! The end of a membership, and of what depended on it.

use std::sync::Arc;

use lock_core::{Acquisition, ErrorKind, LockError, LossReason, backend::Lease};

/// Releases a guard whose membership is over.
pub(super) fn give_up(guard: &Arc<dyn Acquisition>) {
    // The look makes the loss final.
    let _ = guard.status().state();
    Arc::clone(guard).release_in_background();
}

/// Waits for the end of the lease.
pub(super) async fn over(lease: &Lease) -> LossReason {
    loop {
        match lease.deadline() {
            Err(reason) => return reason,
            Ok(deadline) => tokio::select! {
                () = lease.clock().sleep_until(deadline) => {}
                () = lease.ended().fired() => {}
            },
        }
    }
}

/// The error of every call from then on.
pub(super) fn shut_down() -> LockError {
    let message = "this client has been shut down; connect again";
    LockError::new(ErrorKind::Shutdown, message)
}
