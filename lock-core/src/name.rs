use std::{fmt, sync::Arc};

/// The name of a lock: 1 to [`LockName::MAX_LEN`] bytes of UTF-8 without control characters,
/// compared byte by byte.
///
/// Case, slashes, braces, spaces and Unicode form all count: `a`, `A` and `a/b` are three locks.
/// Control characters are refused because backends use them to keep their own entries apart from
/// names, and because they garble logs. Cloning is cheap.
///
/// ```
/// use lock_core::LockName;
///
/// let name: LockName = "orders/42".try_into()?;
/// assert_eq!(name.as_str(), "orders/42");
/// assert!(LockName::new("").is_err());
/// # Ok::<(), lock_core::LockError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockName(pub(crate) Arc<str>);

impl LockName {
    /// Longest name, in bytes: a thousand characters of any script fit.
    pub const MAX_LEN: usize = 4096;

    /// This name after a prefix: for a layer that maps names. The result may be longer than
    /// [`MAX_LEN`](Self::MAX_LEN), by the prefix: every name is good for such a layer.
    #[must_use]
    pub fn after(&self, prefix: &Self) -> Self {
        Self([prefix.as_str(), self.as_str()].concat().into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl AsRef<str> for LockName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl From<&LockName> for LockName {
    fn from(name: &LockName) -> Self {
        name.clone()
    }
}
