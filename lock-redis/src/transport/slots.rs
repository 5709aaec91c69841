use std::{collections::HashSet, ops::RangeInclusive};

use redis::Value;

use crate::{error::Failure, transport::address::Address};

/// The number of hash slots a cluster has.
pub(crate) const SLOTS: u16 = 16384;

/// Servers of a cluster by hash slot, as far as they are known: synchronous, no I/O.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SlotMap {
    /// The master of each slot, by its place in `masters`.
    slots: Vec<Option<u16>>,
    masters: Vec<Address>,
}

impl SlotMap {
    pub(crate) fn new() -> Self {
        Self {
            slots: vec![None; usize::from(SLOTS)],
            masters: Vec::new(),
        }
    }

    /// Returns what a server answers to `CLUSTER SLOTS`: `{first, last, {host, port, ..} of the
    /// master, ..}` of each range. `asked` is that server's own host, for the ranges of which it
    /// does not know one.
    pub(crate) fn parse(answer: &Value, asked: &str) -> Result<Self, Failure> {
        let unexpected = || Failure::unexpected("no slots in answer to CLUSTER SLOTS");
        let Value::Array(ranges) = answer else {
            return Err(unexpected());
        };
        let mut map = Self::new();
        for range in ranges {
            let (slots, master) = parse_range(range, asked).ok_or_else(unexpected)?;
            let at = map.place(master);
            map.slots
                .get_mut(slots)
                .ok_or_else(unexpected)?
                .fill(Some(at));
        }
        Ok(map)
    }

    pub(crate) fn master(&self, slot: u16) -> Option<&Address> {
        let at = (*self.slots.get(usize::from(slot))?)?;
        self.masters.get(usize::from(at))
    }

    /// All that keep a slot.
    pub(crate) fn masters(&self) -> HashSet<&Address> {
        (0..SLOTS).filter_map(|slot| self.master(slot)).collect()
    }

    /// A server says that the slot has another master; whether that is news.
    pub(crate) fn moved(&mut self, slot: u16, master: Address) -> bool {
        if slot >= SLOTS || self.master(slot) == Some(&master) {
            return false;
        }
        let at = self.place(master);
        self.slots[usize::from(slot)] = Some(at);
        true
    }

    /// Returns whether any slot has another master than in `other`.
    pub(crate) fn differs_from(&self, other: &Self) -> bool {
        (0..SLOTS).any(|slot| self.master(slot) != other.master(slot))
    }

    fn place(&mut self, master: Address) -> u16 {
        let at = self
            .masters
            .iter()
            .position(|known| *known == master)
            .unwrap_or_else(|| {
                self.masters.push(master);
                self.masters.len() - 1
            });
        // There are no more masters than slots, unless servers lie: then the last one stands for
        // the others.
        u16::try_from(at).unwrap_or(u16::MAX)
    }
}

fn parse_range(range: &Value, asked: &str) -> Option<(RangeInclusive<usize>, Address)> {
    let Value::Array(parts) = range else {
        return None;
    };
    let [
        Value::Int(first),
        Value::Int(last),
        Value::Array(master),
        ..,
    ] = parts.as_slice()
    else {
        return None;
    };
    let [host, Value::Int(port), ..] = master.as_slice() else {
        return None;
    };
    let host = match host {
        Value::Nil => asked,
        Value::BulkString(host) if host.is_empty() || host == b"?" => asked,
        Value::BulkString(host) => str::from_utf8(host).ok()?,
        _ => return None,
    };
    let first = usize::try_from(*first).ok()?;
    let last = usize::try_from(*last).ok()?;
    (first <= last).then(|| {
        (
            first..=last,
            Address::new(host, u16::try_from(*port).unwrap_or_default()),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn range(first: i64, last: i64, host: Value, port: i64) -> Value {
        let node = |host: Value, port: i64| {
            Value::Array(vec![
                host,
                Value::Int(port),
                bulk("id"),
                Value::Array(vec![]),
            ])
        };
        Value::Array(vec![
            Value::Int(first),
            Value::Int(last),
            node(host, port),
            node(bulk("replica"), 9),
        ])
    }

    fn shown(map: &SlotMap, slot: u16) -> Option<String> {
        map.master(slot).map(ToString::to_string)
    }

    #[test]
    fn each_slot_has_the_master_of_its_range() {
        let answer = Value::Array(vec![
            range(0, 5, bulk("a"), 1),
            range(6, 6, Value::Nil, 2),
            range(100, 16383, bulk(""), 3),
        ]);
        let map = SlotMap::parse(&answer, "asked").unwrap();
        let expected = [
            (0, Some("a:1")),
            (5, Some("a:1")),
            (6, Some("asked:2")),
            (7, None),
            (16383, Some("asked:3")),
        ];
        for (slot, master) in expected {
            assert_eq!(shown(&map, slot).as_deref(), master, "{slot}");
        }
        assert_eq!(map.masters().len(), 3);
    }

    #[test]
    fn garbage_is_refused() {
        let wrong = [
            Value::Nil,
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![range(0, 16384, bulk("a"), 1)]),
            Value::Array(vec![range(5, 4, bulk("a"), 1)]),
            Value::Array(vec![range(-1, 4, bulk("a"), 1)]),
        ];
        for answer in wrong {
            assert!(SlotMap::parse(&answer, "asked").is_err(), "{answer:?}");
        }
    }

    #[test]
    fn a_moved_slot_is_news_once() {
        let mut map =
            SlotMap::parse(&Value::Array(vec![range(0, 16383, bulk("a"), 1)]), "").unwrap();
        let before =
            SlotMap::parse(&Value::Array(vec![range(0, 16383, bulk("a"), 1)]), "").unwrap();
        assert!(!map.differs_from(&before));
        assert!(
            !map.moved(7, Address::new("a", 1))
                && map.moved(7, Address::new("b", 2))
                && !map.moved(7, Address::new("b", 2))
        );
        assert!(
            !map.moved(SLOTS, Address::new("b", 2)),
            "there is no such slot"
        );
        assert_eq!(
            (shown(&map, 7).as_deref(), shown(&map, 8).as_deref()),
            (Some("b:2"), Some("a:1"))
        );
        assert!(map.differs_from(&before) && before.differs_from(&map));
    }
}
