use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard},
};

use lock_core::{LockName, backend::locked};

/// The numbers that tell apart the entries of one session for one name. The lowest free number is
/// used.
///
/// A key that is used again costs the server nothing. A new key stays in its index until the next
/// compaction, and every read of the prefix passes it: with a new key for each acquisition a lock
/// gets slower with every cycle.
#[derive(Debug, Default)]
pub(crate) struct EntryNumbers(Mutex<HashMap<LockName, Numbers>>);

#[derive(Debug, Default)]
struct Numbers {
    next: u64,
    free: BTreeSet<u64>,
}

impl EntryNumbers {
    pub(crate) fn allocate(&self, name: &LockName) -> u64 {
        let mut all = self.lock();
        let numbers = match all.get_mut(name) {
            Some(numbers) => numbers,
            None => all.entry(name.clone()).or_default(),
        };
        numbers.free.pop_first().unwrap_or_else(|| {
            numbers.next += 1;
            numbers.next - 1
        })
    }

    /// Frees a number. Its key must not be in the store, nor may any request under way put it
    /// there.
    pub(crate) fn free(&self, name: &LockName, number: u64) {
        let mut all = self.lock();
        let Some(numbers) = all.get_mut(name) else {
            return;
        };
        numbers.free.insert(number);
        if numbers.free.len() as u64 == numbers.next {
            all.remove(name);
        }
    }

    /// Tells whether several entries existed at the same time, and at least one has ever since.
    pub(crate) fn are_contended(&self, name: &LockName) -> bool {
        self.lock()
            .get(name)
            .is_some_and(|numbers| numbers.next > 1)
    }

    /// Tells whether no entry exists, nor may come to exist.
    pub(crate) fn is_idle(&self) -> bool {
        self.lock().is_empty()
    }

    /// Tells whether an entry with this number may exist: it is allocated, and not freed.
    pub(crate) fn is_in_use(&self, name: &LockName, number: u64) -> bool {
        self.lock()
            .get(name)
            .is_some_and(|numbers| number < numbers.next && !numbers.free.contains(&number))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LockName, Numbers>> {
        locked(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_number_is_used_and_idle_names_leave_nothing() {
        let numbers = EntryNumbers::default();
        let a = "a".parse().unwrap();
        let b = "b".parse().unwrap();
        let allocated = [&a, &a, &b, &a].map(|name| numbers.allocate(name));
        assert_eq!(allocated, [0, 1, 0, 2]);
        assert!(numbers.are_contended(&a) && !numbers.are_contended(&b));
        numbers.free(&a, 1);
        assert!(numbers.is_in_use(&a, 2) && !numbers.is_in_use(&a, 1) && !numbers.is_in_use(&a, 3));
        assert_eq!([numbers.allocate(&a), numbers.allocate(&a)], [1, 3]);
        for number in [3, 0, 2, 1] {
            numbers.free(&a, number);
        }
        numbers.free(&b, 0);
        assert!(numbers.lock().is_empty());
    }
}
