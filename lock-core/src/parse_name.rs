use std::{borrow::Cow, str::FromStr, sync::Arc};

use crate::{ErrorKind, LockError, LockName};

impl LockName {
    /// Parses a name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidName`] if the name is empty, longer than [`LockName::MAX_LEN`] bytes, or
    /// holds a control character.
    pub fn new(name: impl Into<Arc<str>>) -> Result<Self, LockError> {
        let name = name.into();
        let invalid = |message: String| Err(LockError::new(ErrorKind::InvalidName, message));
        if name.is_empty() {
            return invalid(
                "the name is empty; give the lock a name of at least one character".into(),
            );
        }
        if name.len() > Self::MAX_LEN {
            let shown = shown(&name);
            let length = name.len();
            let most = Self::MAX_LEN;
            return invalid(format!(
                "the name {shown} has {length} bytes; at most {most} are allowed, hash longer ones"
            ));
        }
        if let Some((at, found)) = name.char_indices().find(|(_, c)| c.is_control()) {
            let shown = shown(&name);
            return invalid(format!(
                "the name {shown} holds the control character {found:?} at byte {at}; remove or encode it"
            ));
        }
        Ok(Self(name))
    }
}

/// Quotes and shortens a text of any kind.
pub(crate) fn shown(text: &str) -> String {
    const MOST: usize = 64;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

impl FromStr for LockName {
    type Err = LockError;

    fn from_str(name: &str) -> Result<Self, LockError> {
        Self::new(name)
    }
}

impl TryFrom<&str> for LockName {
    type Error = LockError;

    fn try_from(name: &str) -> Result<Self, LockError> {
        Self::new(name)
    }
}

impl TryFrom<String> for LockName {
    type Error = LockError;

    fn try_from(name: String) -> Result<Self, LockError> {
        Self::new(name)
    }
}

impl TryFrom<&String> for LockName {
    type Error = LockError;

    fn try_from(name: &String) -> Result<Self, LockError> {
        Self::new(name.as_str())
    }
}

impl TryFrom<&&str> for LockName {
    type Error = LockError;

    fn try_from(name: &&str) -> Result<Self, LockError> {
        Self::new(*name)
    }
}

impl TryFrom<Cow<'_, str>> for LockName {
    type Error = LockError;

    fn try_from(name: Cow<'_, str>) -> Result<Self, LockError> {
        Self::new(name)
    }
}

impl TryFrom<Box<str>> for LockName {
    type Error = LockError;

    fn try_from(name: Box<str>) -> Result<Self, LockError> {
        Self::new(name)
    }
}

impl TryFrom<Arc<str>> for LockName {
    type Error = LockError;

    fn try_from(name: Arc<str>) -> Result<Self, LockError> {
        Self::new(name)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    #[test]
    fn accepts_what_users_write() {
        let long = "長".repeat(1000);
        for name in [
            "a",
            "a/b",
            "/a/",
            "A",
            "{tag}x",
            "a}b",
            "na me",
            "\\",
            "🔒",
            "jmf://x?y=z",
            long.as_str(),
        ] {
            assert_eq!(LockName::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn refuses_with_what_to_do() {
        for (name, hint) in [
            ("", "empty"),
            ("a\0b", "control"),
            ("a\nb", "control"),
            ("\u{1f}", "control"),
            ("\u{85}", "control"),
        ] {
            let error = LockName::new(name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidName);
            assert!(error.to_string().contains(hint), "{error}");
        }
        let error = LockName::new("x".repeat(LockName::MAX_LEN + 1)).unwrap_err();
        assert!(
            error.to_string().contains("4097 bytes") && error.to_string().contains("\"xxxx"),
            "{error}"
        );
        assert!(error.to_string().len() < 250, "{error}");
        let error = LockName::new("orders\n42").unwrap_err();
        assert!(error.to_string().contains(r#""orders\n42""#), "{error}");
    }

    #[test]
    fn every_kind_of_text_is_taken() {
        fn name<N: TryInto<LockName, Error: fmt::Debug>>(name: N) -> LockName {
            name.try_into().unwrap()
        }
        let owned = name(String::from("a"));
        for other in [
            name("a"),
            name(&"a"),
            name(&owned),
            name(Cow::from("a")),
            name(Box::<str>::from("a")),
            name(Arc::<str>::from("a")),
        ] {
            assert_eq!(other, owned);
        }
    }
}
