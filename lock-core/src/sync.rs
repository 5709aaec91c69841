use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex whose data stays consistent at every step, so that a panic elsewhere does not
/// spread.
///
/// ```
/// use lock_core::backend::locked;
/// use std::{panic::catch_unwind, sync::Mutex};
///
/// let names = Mutex::new(vec!["orders"]);
/// let panicked = catch_unwind(|| {
///     let _names = locked(&names);
///     panic!("while it is locked");
/// });
/// assert!(panicked.is_err() && names.is_poisoned());
/// assert_eq!(*locked(&names), ["orders"]);
/// ```
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
