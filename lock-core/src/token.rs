use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

/// A number that grows with every acquisition of a name.
///
/// Send it along with every write to the protected resource, and let the resource refuse a number
/// smaller than the largest it has seen: then a holder that was paused past its deadline cannot
/// overwrite its successor's work. [`Capabilities::fencing`](crate::Capabilities::fencing) says how
/// long the growth is guaranteed.
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
#[derive(Clone)]
pub struct OwnerId(Id);

/// A short id is kept in place: on the path of every acquisition of a fast backend an allocation
/// counts.
#[derive(Clone)]
enum Id {
    Short { length: u8, bytes: [u8; SHORT] },
    Long(Arc<str>),
}

/// As much as fits where a shared pointer and its tag need the space anyway.
const SHORT: usize = 22;

impl OwnerId {
    /// Wraps an id that the backend knows to be unique.
    #[must_use]
    pub fn new(id: impl AsRef<str> + Into<Arc<str>>) -> Self {
        let text = id.as_ref();
        if text.len() > SHORT {
            return Self(Id::Long(id.into()));
        }
        let mut bytes = [0; SHORT];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Self(Id::Short {
            length: text.len() as u8,
            bytes,
        })
    }

    /// 128 random bits as 32 hexadecimal digits, the form that redis-py and node-redlock write too.
    #[must_use]
    pub fn random() -> Self {
        let random = rand::random::<u128>();
        // By hand: this is on the path of every acquisition, and several times as fast as
        // `format!`.
        let digits: [u8; 32] =
            std::array::from_fn(|at| b"0123456789abcdef"[(random >> (124 - 4 * at)) as usize & 15]);
        Self::new(str::from_utf8(&digits).unwrap_or_default())
    }

    /// The id as the store keeps it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match &self.0 {
            // It was text when it was copied.
            Id::Short { length, bytes } => {
                str::from_utf8(&bytes[..usize::from(*length)]).unwrap_or_default()
            }
            Id::Long(text) => text,
        }
    }
}

impl PartialEq for OwnerId {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for OwnerId {}

impl Hash for OwnerId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl fmt::Debug for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnerId").field(&self.as_str()).finish()
    }
}

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_its_text_however_long() {
        for text in [
            "",
            "7",
            "0123456789abcdef",
            &"0".repeat(22),
            &"0".repeat(23),
            "長い名前です",
            &"x".repeat(300),
        ] {
            let id = OwnerId::new(text);
            assert_eq!(id.as_str(), text);
            assert_eq!(id, id.clone());
        }
        assert_ne!(OwnerId::new("a"), OwnerId::new("b"));
        let random = OwnerId::random();
        assert_ne!(random, OwnerId::random());
        assert!(
            random.as_str().len() == 32 && u128::from_str_radix(random.as_str(), 16).is_ok(),
            "{random}"
        );
    }
}
