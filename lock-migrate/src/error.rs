use lock_core::{LockError, Operation};

use crate::capabilities::BACKEND;

/// The error of one store, as one of a lock in both: with the store's own as its cause.
pub(crate) fn in_both(error: LockError, operation: Operation) -> LockError {
    let Some(backend) = error.backend().filter(|backend| *backend != BACKEND) else {
        return error.during(operation).on(BACKEND);
    };
    let message = format!("on {backend}: {}", error.message());
    let mut whole = LockError::new(error.kind(), message)
        .during(operation)
        .on(BACKEND);
    if error.is_indeterminate() {
        whole = whole.indeterminate();
    }
    if let Some(name) = error.name() {
        whole = whole.of(name);
    }
    whole.caused_by(error)
}

#[cfg(test)]
mod tests {
    use lock_core::{ErrorKind, LockName};

    use super::*;

    #[test]
    fn a_store_is_named_once() {
        let name: LockName = "orders".parse().unwrap();
        let error = LockError::new(ErrorKind::Unavailable, "no answer")
            .during(Operation::Acquire)
            .on("redis")
            .of(&name)
            .indeterminate();
        let error = in_both(in_both(error, Operation::Acquire), Operation::TryAcquire);
        assert_eq!(
            error.to_string(),
            "acquire `orders` on migrate: unavailable: on redis: no answer"
        );
        assert!(error.is_indeterminate());
        assert_eq!(error.name(), Some(&name));
    }
}
