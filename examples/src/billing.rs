//! Bills orders: once each, and never by a process that has lost its lock.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use polylock::{
    AcquireOptions, DistributedLock, DistributedLockExt, ErrorKind, FencingToken, LockError,
};

/// Orders and what was charged for them: stands for a database.
///
/// A row keeps the largest fencing token that has written it, and refuses smaller ones, as
/// `UPDATE orders SET .., token = $1 WHERE id = $2 AND token <= $1` does.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<HashMap<u32, Row>>);

#[derive(Clone, Copy, Debug, Default)]
struct Row {
    charges: u32,
    token: Option<FencingToken>,
}

impl Ledger {
    /// Charges for an order. Returns false if a later holder of its lock has been here before.
    #[must_use = "the charge may have been refused"]
    pub fn charge(&self, order: u32, token: Option<FencingToken>) -> bool {
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let row = rows.entry(order).or_default();
        if row.token > token {
            return false;
        }
        row.token = token;
        row.charges += 1;
        true
    }

    /// Number of times that an order was charged for.
    #[must_use]
    pub fn charges(&self, order: u32) -> u32 {
        let rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rows.get(&order).map_or(0, |row| row.charges)
    }
}

/// Outcome of billing an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Billed {
    /// It is charged for now.
    Charged,
    /// It had been charged for before.
    Already,
    /// Somebody else bills it at this moment.
    Busy,
}

/// Time that the payment provider takes.
const PAYMENT: Duration = Duration::from_secs(20);

/// Time that somebody waits for an order that another process bills.
const WAIT: Duration = Duration::from_secs(5);

/// Bills an order under its lock.
///
/// # Errors
///
/// [`ErrorKind::Lost`] if the lock was lost before the payment was through: nothing is charged
/// then, and the order can be billed again. Errors of the store.
pub async fn bill(
    locks: &dyn DistributedLock,
    ledger: &Arc<Ledger>,
    order: u32,
) -> Result<Billed, LockError> {
    let options = AcquireOptions::new().with_timeout(WAIT);
    let work = |guard: polylock::GuardView| async move {
        if ledger.charges(order) > 0 {
            return Ok(Billed::Already);
        }
        // The work is dropped here if the lock is lost meanwhile.
        tokio::time::sleep(PAYMENT).await;
        match ledger.charge(order, guard.token()) {
            true => Ok(Billed::Charged),
            false => Err(LockError::new(
                ErrorKind::Lost,
                "somebody with a later token has billed the order",
            )),
        }
    };
    match locks
        .with_lock_fallible(format!("orders/{order}"), options, work)
        .await
    {
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(Billed::Busy),
        billed => billed,
    }
}
