//! Keys that a configuration may have.

use std::fmt;

use lock_core::Secret;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, IntoDeserializer, MapAccess, Visitor},
    forward_to_deserialize_any,
};

/// Reads a struct and refuses every key that it does not have, with the nearest one that it has.
pub(super) struct KnownKeys<D>(pub(super) D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for KnownKeys<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        keys: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0
            .deserialize_struct(name, keys, Keys { keys, of: visitor })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Looks at the keys before the struct's own visitor, or its map, sees them.
struct Keys<T> {
    keys: &'static [&'static str],
    of: T,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Keys<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.of.expecting(f)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        let Self { keys, of } = self;
        of.visit_map(Keys { keys, of: map })
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Keys<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        let Some(key) = self.of.next_key::<String>()? else {
            return Ok(None);
        };
        if !self.keys.contains(&&*key) {
            return Err(A::Error::custom(unknown(&key, self.keys)));
        }
        seed.deserialize(key.into_deserializer()).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        self.of.next_value_seed(seed)
    }
}

fn unknown(key: &str, known: &[&str]) -> String {
    let likeness = |known: &&&str| strsim::damerau_levenshtein(key, known);
    match known.iter().min_by_key(likeness) {
        Some(nearest) if likeness(&nearest) <= 1 + nearest.len() / 3 => {
            format!("there is no key `{key}`; did you mean `{nearest}`?")
        }
        _ => format!("there is no key `{key}`; known are: {}", known.join(", ")),
    }
}

pub(super) fn secret<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Secret>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(Secret::new))
}
