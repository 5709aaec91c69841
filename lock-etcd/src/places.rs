use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard},
};

use lock_core::{LockName, backend::locked};

/// The numbers that tell apart the entries that one session has for one name; the lowest that is free is taken.
///
/// A key that is used again costs the server nothing, while each new one stays in its index until the next compaction,
/// and every look at the prefix passes it: with a new key for each acquisition a lock gets slower with every cycle.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<HashMap<LockName, Numbers>>);

#[derive(Debug, Default)]
struct Numbers {
    next: u64,
    free: BTreeSet<u64>,
}

impl Places {
    pub(crate) fn take(&self, name: &LockName) -> u64 {
        let mut places = self.lock();
        let numbers = match places.get_mut(name) {
            Some(numbers) => numbers,
            None => places.entry(name.clone()).or_default(),
        };
        numbers.free.pop_first().unwrap_or_else(|| {
            numbers.next += 1;
            numbers.next - 1
        })
    }

    /// Whether there were several entries at the same time, and at least one has been there ever since.
    pub(crate) fn are_shared(&self, name: &LockName) -> bool {
        self.lock().get(name).is_some_and(|numbers| numbers.next > 1)
    }

    /// Whether no entry is there, or may come to be.
    pub(crate) fn are_free(&self) -> bool {
        self.lock().is_empty()
    }

    /// Whether an entry of this number may be there: taken, and not given back.
    pub(crate) fn is_taken(&self, name: &LockName, number: u64) -> bool {
        self.lock().get(name).is_some_and(|numbers| number < numbers.next && !numbers.free.contains(&number))
    }

    /// Only for a number whose key is not in the store, and that no request on its way can put there.
    pub(crate) fn give_back(&self, name: &LockName, number: u64) {
        let mut places = self.lock();
        let Some(numbers) = places.get_mut(name) else { return };
        numbers.free.insert(number);
        if numbers.free.len() as u64 == numbers.next {
            places.remove(name);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LockName, Numbers>> {
        locked(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_number_is_taken_and_idle_names_leave_nothing() {
        let (places, a, b) = (Places::default(), "a".parse().unwrap(), "b".parse().unwrap());
        assert_eq!([places.take(&a), places.take(&a), places.take(&b), places.take(&a)], [0, 1, 0, 2]);
        assert!(places.are_shared(&a) && !places.are_shared(&b));
        places.give_back(&a, 1);
        assert!(places.is_taken(&a, 2) && !places.is_taken(&a, 1) && !places.is_taken(&a, 3));
        assert_eq!([places.take(&a), places.take(&a)], [1, 3]);
        for number in [3, 0, 2, 1] {
            places.give_back(&a, number);
        }
        places.give_back(&b, 0);
        assert!(places.lock().is_empty());
    }
}
