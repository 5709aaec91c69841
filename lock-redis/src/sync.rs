use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex whose data stays consistent at every step, so that a panic elsewhere does not spread.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
