use std::sync::Arc;

use lock_core::LockName;

use crate::slots::SLOTS;

/// The two keys of one lock: both are in the same hash slot of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Keys {
    /// Prefix and name, exactly: what other lock libraries use on the same server.
    pub(crate) lock: Arc<str>,
    /// A hash with the fencing counter and what is known of the last holder.
    pub(crate) companion: Arc<str>,
}

/// Separates a lock's key from what makes its companion: no lock name and no prefix holds a control character, so no
/// companion is another lock's key.
const SEPARATOR: &str = "\u{1f}";

impl Keys {
    pub(crate) fn new(prefix: &str, name: &LockName) -> Self {
        let lock: Arc<str> = [prefix, name.as_str()].concat().into();
        let companion = companion(&lock).into();
        Self { lock, companion }
    }
}

/// The lock's key comes first, so that a server's access rules by key prefix hold for the companion too.
fn companion(lock: &str) -> String {
    if hash_tag(lock.as_bytes()).is_some() {
        return [lock, SEPARATOR].concat();
    }
    if !lock.contains(['{', '}']) {
        return [lock, SEPARATOR, "{", lock, "}"].concat();
    }
    // Stray braces: no tag can be written, so a number is appended that makes the whole key hash to the same slot.
    let (wanted, stem) = (crc16(0, lock.as_bytes()) % SLOTS, [lock, SEPARATOR].concat());
    let number = number_to(wanted, crc16(0, stem.as_bytes()));
    format!("{stem}{number}")
}

/// The smallest decimal number that leads from a state of the checksum to a slot. One in 16,384 does.
fn number_to(slot: u16, state: u16) -> usize {
    // What each number so far leads to, so that the next ones cost a digit each.
    let mut states: Vec<u16> = Vec::new();
    loop {
        let number = states.len();
        let before = if number < 10 { state } else { states[number / 10] };
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

/// What a cluster hashes instead of the whole key: the text between the first `{` and the next `}`, if there is any.
fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|byte| *byte == b'{')? + 1;
    let length = key[open..].iter().position(|byte| *byte == b'}')?;
    (length > 0).then(|| &key[open..open + length])
}

/// CRC-16/XMODEM, as the cluster specification has it, continued from `state`.
fn crc16(state: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(state, |crc, byte| (crc << 8) ^ CRC16_TABLE[usize::from((crc >> 8) as u8 ^ byte)])
}

const CRC16_TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut crc = (at as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
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
        assert_eq!((&*keys.lock, &*keys.companion), ("prod:orders/42", "prod:orders/42\u{1f}{prod:orders/42}"));
    }

    #[test]
    fn braces_of_every_kind_keep_the_slot() {
        for name in ["a", "{a}", "x{tag}y", "a}b", "{}x", "{", "}", "}{", "a{b", "{}{b}", "a}{b", "{{a}}", "長{", &"}".repeat(4096)] {
            let keys = keys(name);
            assert_eq!(slot(&keys.lock), slot(&keys.companion), "{name}");
        }
    }

    proptest! {
        #[test]
        fn companions_share_the_slot_and_collide_with_nothing(a in "[a{}長]{1,12}", b in "[a{}長]{1,12}") {
            let (a, b) = (keys(&a), keys(&b));
            prop_assert_eq!(slot(&a.lock), slot(&a.companion));
            prop_assert!(a.companion.starts_with(&*a.lock) && a.companion.contains(SEPARATOR));
            prop_assert_eq!(a.lock == b.lock, a.companion == b.companion);
        }
    }
}
