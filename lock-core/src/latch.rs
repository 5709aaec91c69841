use std::{
    fmt::Debug,
    marker::PhantomData,
    sync::atomic::{AtomicU8, Ordering},
};

/// A value that is set once, and then stays: as `OnceLock`, for what fits into a byte, and at the price of one atomic step.
#[derive(Debug)]
pub(crate) struct Latch<T>(AtomicU8, PhantomData<T>);

/// What fits into a byte.
pub(crate) trait Code: Copy + Debug {
    /// Not zero.
    fn code(self) -> u8;
    /// `None` for zero.
    fn decode(code: u8) -> Option<Self>;
}

impl<T: Code> Latch<T> {
    pub(crate) const fn new() -> Self {
        Self(AtomicU8::new(0), PhantomData)
    }

    pub(crate) fn get(&self) -> Option<T> {
        T::decode(self.0.load(Ordering::Acquire))
    }

    /// Returns what it is from now on: the first value that was set.
    pub(crate) fn set(&self, value: T) -> T {
        self.try_set(value).err().unwrap_or(value)
    }

    /// Fails with the first value if there is one already.
    pub(crate) fn try_set(&self, value: T) -> Result<(), T> {
        let set = self.0.compare_exchange(0, value.code(), Ordering::AcqRel, Ordering::Acquire);
        set.map(drop).map_err(|first| T::decode(first).unwrap_or(value))
    }
}

impl Code for bool {
    fn code(self) -> u8 {
        1 + u8::from(self)
    }

    fn decode(code: u8) -> Option<Self> {
        code.checked_sub(1).map(|bit| bit == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GuardState, LossReason};

    #[test]
    fn the_first_value_stays() {
        let latch = Latch::new();
        assert_eq!(latch.get(), None);
        assert_eq!((latch.set(false), latch.set(true), latch.get()), (false, false, Some(false)));
    }

    #[test]
    fn every_end_has_a_code_of_its_own() {
        let lost = [LossReason::Expired, LossReason::Removed, LossReason::MaxHold, LossReason::Shutdown].map(GuardState::Lost);
        for end in lost.into_iter().chain([GuardState::Held, GuardState::Released]) {
            assert_eq!(GuardState::decode(end.code()), Some(end));
        }
        assert_eq!((GuardState::decode(0), bool::decode(0)), (None, None));
    }
}
