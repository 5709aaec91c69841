use std::{
    fmt::Debug,
    marker::PhantomData,
    sync::atomic::{AtomicU8, Ordering},
};

use crate::{GuardState, LossReason};

/// A value that is set once and then stays: like `OnceLock`, for values that fit into a byte, at
/// the price of one atomic operation.
#[derive(Debug)]
pub(crate) struct Latch<T>(AtomicU8, PhantomData<T>);

/// A value that fits into a byte.
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

    /// Sets the value unless one is set, and returns the one that stays: the first.
    pub(crate) fn set(&self, value: T) -> T {
        self.try_set(value).err().unwrap_or(value)
    }

    /// Fails with the first value if there is one already.
    pub(crate) fn try_set(&self, value: T) -> Result<(), T> {
        let set = self
            .0
            .compare_exchange(0, value.code(), Ordering::AcqRel, Ordering::Acquire);
        set.map(drop)
            .map_err(|first| T::decode(first).unwrap_or(value))
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

impl Code for GuardState {
    fn code(self) -> u8 {
        match self {
            Self::Held => 1,
            Self::Released => 2,
            Self::Lost(LossReason::Expired) => 3,
            Self::Lost(LossReason::Removed) => 4,
            Self::Lost(LossReason::MaxHold) => 5,
            Self::Lost(LossReason::Shutdown) => 6,
        }
    }

    fn decode(code: u8) -> Option<Self> {
        Some(match code {
            0 => return None,
            1 => Self::Held,
            2 => Self::Released,
            3 => Self::Lost(LossReason::Expired),
            4 => Self::Lost(LossReason::Removed),
            5 => Self::Lost(LossReason::MaxHold),
            _ => Self::Lost(LossReason::Shutdown),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_stays() {
        let latch = Latch::new();
        assert_eq!(latch.get(), None);
        assert_eq!(
            (latch.set(false), latch.set(true), latch.get()),
            (false, false, Some(false))
        );
    }

    #[test]
    fn every_end_has_a_code_of_its_own() {
        let lost = [
            LossReason::Expired,
            LossReason::Removed,
            LossReason::MaxHold,
            LossReason::Shutdown,
        ]
        .map(GuardState::Lost);
        for end in lost
            .into_iter()
            .chain([GuardState::Held, GuardState::Released])
        {
            assert_eq!(GuardState::decode(end.code()), Some(end));
        }
        assert_eq!((GuardState::decode(0), bool::decode(0)), (None, None));
    }
}
