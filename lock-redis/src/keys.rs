use std::sync::Arc;

use lock_core::LockName;

use crate::transport::slots::SLOTS;

/// The keys of one lock: all are in the same hash slot of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Keys {
    /// Prefix and name, exactly: what other lock libraries use on the same server.
    pub(crate) lock: Arc<str>,
    /// A hash with the fencing counter and what is known of the last holder.
    pub(crate) companion: Arc<str>,
    /// A sorted set with the entries of the clients that wait, in arrival order; only while any do.
    pub(crate) queue: Arc<str>,
}

/// Separates a lock's key from what makes its companion: no lock name and no prefix holds a control
/// character, so no companion is another lock's key.
const SEPARATOR: &str = "\u{1f}";

/// Suffixes of the keys of a queue and of its entries, after the separator.
const QUEUE: char = 'q';
const ENTRY: char = 'w';

impl Keys {
    pub(crate) fn new(prefix: &str, name: &LockName) -> Self {
        let lock: Arc<str> = [prefix, name.as_str()].concat().into();
        let companion = beside(&lock, None, "").into();
        let queue = beside(&lock, Some(QUEUE), "").into();
        Self {
            lock,
            companion,
            queue,
        }
    }

    /// The key that a waiting client has, and renews, for as long as it waits.
    pub(crate) fn entry(&self, client: &str) -> String {
        beside(&self.lock, Some(ENTRY), client)
    }
}

/// The lock whose waiters a change of this key concerns: its own, or that of a client that waits.
/// Nothing for its other keys.
pub(crate) fn lock_of(key: &str) -> Option<&str> {
    match key.split_once(SEPARATOR) {
        None => Some(key),
        Some((lock, rest)) => rest.starts_with(ENTRY).then_some(lock),
    }
}

/// A key in the lock's slot. The lock's own comes first, so that a server's access rules by key
/// prefix hold for it too.
fn beside(lock: &str, kind: Option<char>, id: &str) -> String {
    let kind = kind.map(String::from).unwrap_or_default();
    let stem = [lock, SEPARATOR, &kind, id].concat();
    if hash_tag(lock.as_bytes()).is_some() {
        return stem;
    }
    if !lock.contains(['{', '}']) {
        return [&stem, "{", lock, "}"].concat();
    }
    // Stray braces: no tag can be written, so a number is appended that makes the whole key hash to
    // the same slot.
    let wanted = crc16(0, lock.as_bytes()) % SLOTS;
    let number = number_to(wanted, crc16(0, stem.as_bytes()));
    format!("{stem}{number}")
}

/// The smallest decimal number that leads from a state of the checksum to a slot. One in 16,384
/// does.
fn number_to(slot: u16, state: u16) -> usize {
    // What each number so far leads to, so that the next ones cost a digit each.
    let mut states: Vec<u16> = Vec::new();
    loop {
        let number = states.len();
        let before = if number < 10 {
            state
        } else {
            states[number / 10]
        };
        let after = crc16(before, &[b"0123456789"[number % 10]]);
        if after % SLOTS == slot {
            return number;
        }
        states.push(after);
    }
}

/// The hash slot in which a cluster keeps a key.
pub(crate) fn slot(key: &str) -> u16 {
    crc16(0, hash_tag(key.as_bytes()).unwrap_or(key.as_bytes())) % SLOTS
}

/// Returns what a cluster hashes instead of the whole key: the text between the first `{` and the
/// next `}`, if there is any.
fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|byte| *byte == b'{')? + 1;
    let length = key[open..].iter().position(|byte| *byte == b'}')?;
    (length > 0).then(|| &key[open..open + length])
}

/// CRC-16/XMODEM, as the cluster specification has it, continued from `state`.
fn crc16(state: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(state, |crc, byte| {
        (crc << 8) ^ CRC16_TABLE[usize::from((crc >> 8) as u8 ^ byte)]
    })
}

const CRC16_TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut crc = (at as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            };
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(name: &str) -> Keys {
        Keys::new("", &LockName::new(name).unwrap())
    }

    #[test]
    fn crc_is_that_of_the_cluster_specification() {
        assert_eq!(crc16(0, b"123456789"), 0x31c3);
        assert_eq!((slot("foo"), slot("{user1000}.following")), (12182, 3443));
        assert_eq!(slot("foo{}{bar}"), crc16(0, b"foo{}{bar}") % SLOTS);
        assert_eq!(slot("foo{{bar}}zap"), crc16(0, b"{bar") % SLOTS);
    }

    #[test]
    fn the_lock_key_is_prefix_and_name() {
        let keys = Keys::new("prod:", &LockName::new("orders/42").unwrap());
        assert_eq!(
            (&*keys.lock, &*keys.companion),
            ("prod:orders/42", "prod:orders/42\u{1f}{prod:orders/42}")
        );
    }

    #[test]
    fn braces_of_every_kind_keep_the_slot() {
        for name in [
            "a",
            "{a}",
            "x{tag}y",
            "a}b",
            "{}x",
            "{",
            "}",
            "}{",
            "a{b",
            "{}{b}",
            "a}{b",
            "{{a}}",
            "長{",
            &"}".repeat(4096),
        ] {
            let keys = keys(name);
            for key in [
                &*keys.companion,
                &*keys.queue,
                &keys.entry("0123456789abcdef"),
            ] {
                assert_eq!(slot(&keys.lock), slot(key), "{name}");
            }
        }
    }

    proptest! {
        #[test]
        fn companions_share_the_slot_and_collide_with_nothing(a in "[a{}長]{1,12}", b in "[a{}長]{1,12}") {
            let a = keys(&a);
            let b = keys(&b);
            prop_assert_eq!(slot(&a.lock), slot(&a.companion));
            prop_assert!(a.companion.starts_with(&*a.lock) && a.companion.contains(SEPARATOR));
            prop_assert_eq!(a.lock == b.lock, a.companion == b.companion);
        }
    }
}
