use std::{fmt, sync::Arc};

/// A number that grows with every acquisition of a name.
///
/// Send it along with every write to the protected resource, and let the resource refuse a number smaller than the
/// largest it has seen: then a holder that was paused past its deadline cannot overwrite its successor's work. How
/// long the growth is guaranteed is in [`Capabilities::fencing`](crate::Capabilities::fencing).
///
/// ```
/// use lock_core::FencingToken;
///
/// let (earlier, later) = (FencingToken::new(41), FencingToken::new(42));
/// assert!(earlier < later);
/// assert_eq!(later.as_u64(), 42);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(u64);

impl FencingToken {
    /// Wraps a number that a store handed out.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number to send to the protected resource.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identifies one acquisition in the store: unique per grant, never reused, opaque to applications.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OwnerId(Arc<str>);

impl OwnerId {
    /// Wraps an id that the backend knows to be unique.
    #[must_use]
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }

    /// 128 random bits as 32 hexadecimal digits, the form that redis-py and node-redlock write too.
    #[must_use]
    pub fn random() -> Self {
        Self::new(format!("{:032x}", rand::random::<u128>()))
    }

    /// The id as the store keeps it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
