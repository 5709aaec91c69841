use std::{
    sync::OnceLock,
    time::{Duration, UNIX_EPOCH},
};

use lock_core::{FencingToken, LockInfo, OwnerId};
use redis::{Cmd, Script, Value};

use crate::{error::Failure, keys::Keys};

/// A Lua script that gets a lock's two keys: one round trip, one atomic step.
pub(crate) struct LockScript {
    number: u8,
    code: &'static str,
    hash: OnceLock<String>,
}

/// Ends a script whose `holder` is no string: no lock of this kind is in the key.
macro_rules! unless_foreign {
    () => {
        r"
if type(holder) == 'table' then
  local kind = redis.call('TYPE', KEYS[1]).ok
  if kind == 'string' then return holder end
  return redis.error_reply('NOTALOCK the key holds a ' .. kind)
end
"
    };
}

/// `owner, ttl in ms, companion's ttl in ms, metadata, track[, floor]` -> `{1, token}`, or `{0, holder's PTTL, holder}`.
///
/// - A repeated request finds its own owner id: it extends the lease, so that the deadline counts from the repetition,
///   and returns the token that was minted.
/// - `HINCRBY` and not a read of the counter, so that a connection that tracks what it reads is not told about it.
/// - With `track` set the lock's key is read last: the server then reports the next change to it.
/// - The token is at least the server's clock in microseconds, or `floor` where servers are to agree on one.
/// - Numbers stay below 2^53, where Lua's are exact, until the year 2255.
pub(crate) static ACQUIRE: LockScript = LockScript::new(0, include_str!("scripts/acquire.lua"));

/// `owner, token, companion's ttl in ms` -> 1, or 0 if the lock is not this owner's: the counter is then at least `token`.
pub(crate) static RAISE: LockScript = LockScript::new(
    1,
    r"
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if tonumber(redis.call('HGET', KEYS[2], 'token') or 0) < tonumber(ARGV[2]) then redis.call('HSET', KEYS[2], 'token', ARGV[2]) end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
",
);

/// `owner, ttl in ms, companion's ttl in ms` -> 1, or 0 if the lock is not this owner's.
pub(crate) static RENEW: LockScript = LockScript::new(
    2,
    r"
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
",
);

/// `owner` -> 1, or 0 if the lock is not this owner's. The counter stays; the holder's note goes, if it is there: made anew it would
/// have no TTL.
pub(crate) static RELEASE: LockScript = LockScript::new(3, include_str!("scripts/release.lua"));

/// -> nothing, or `{value, PTTL, companion's owner, token, since, metadata}`.
pub(crate) static INSPECT: LockScript = LockScript::new(
    4,
    concat!(
        r"
local holder = redis.pcall('GET', KEYS[1])
if not holder then return false end",
        unless_foreign!(),
        r"
local last = redis.pcall('HMGET', KEYS[2], 'owner', 'token', 'since', 'metadata')
if last.err then last = {false, false, false, false} end
return {holder, redis.call('PTTL', KEYS[1]), last[1], last[2], last[3], last[4]}
"
    ),
);

/// -> 1, or 0 if nobody has the lock.
///
/// A lock is a string with a TTL, whoever wrote it. Without a TTL it must look like an owner of ours or of redis-py, whose locks have
/// none unless asked for: 32 hexadecimal digits.
pub(crate) static FORCE: LockScript = LockScript::new(
    5,
    concat!(
        r"
local holder = redis.pcall('GET', KEYS[1])
if not holder then return 0 end",
        unless_foreign!(),
        r"
if redis.call('PTTL', KEYS[1]) < 0 and not (#holder == 32 and not string.find(holder, '[^0-9a-f]')) then
  return redis.error_reply('NOTALOCK the key holds a string without a TTL')
end
redis.call('DEL', KEYS[1])
return 1
"
    ),
);

impl LockScript {
    /// `number` tells the scripts apart; below 8.
    const fn new(number: u8, code: &'static str) -> Self {
        Self { number, code, hash: OnceLock::new() }
    }

    /// The script in a set of scripts.
    pub(crate) fn bit(&self) -> u8 {
        1 << self.number
    }

    /// The script by its hash, which the server knows after the first use.
    pub(crate) fn by_hash(&self, keys: &Keys) -> Cmd {
        let hash = self.hash.get_or_init(|| Script::new(self.code).get_hash().to_owned());
        invocation("EVALSHA", hash, keys)
    }

    /// The script in full, for a server that has forgotten it.
    pub(crate) fn in_full(&self, keys: &Keys) -> Cmd {
        invocation("EVAL", self.code, keys)
    }
}

/// Enough for what is sent apart from script, keys and metadata.
const WORDS: usize = 10;
const BYTES: usize = 96;

fn invocation(command: &str, script: &str, keys: &Keys) -> Cmd {
    // The arguments that follow are short: nothing has to grow.
    let (words, bytes) = (WORDS, script.len() + keys.lock.len() + keys.companion.len() + BYTES);
    let mut cmd = Cmd::with_capacity(words, bytes);
    cmd.arg(command).arg(script).arg(2).arg(&*keys.lock).arg(&*keys.companion);
    cmd
}

/// Durations as Redis takes them; never zero.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// How long a name's counter is kept after its last acquisition or renewal: while it is there tokens grow whatever the
/// server's clock does, and afterwards as long as the clock has not gone back by this much.
const COUNTER_TTL: Duration = Duration::from_secs(24 * 3600);

/// What to set the companion's TTL to, in milliseconds, together with the lock's.
pub(crate) fn companion_ttl(ttl: Duration) -> u64 {
    millis(COUNTER_TTL.max(ttl * 2))
}

/// The answer of [`ACQUIRE`]: the token, or when the holder's lease ends.
pub(crate) fn parse_acquired(answer: &Value) -> Result<Result<u64, Option<Duration>>, Failure> {
    let unexpected = || Failure::unexpected("neither a token nor a PTTL from an acquisition");
    let Value::Array(parts) = answer else { return Err(unexpected()) };
    match parts.as_slice() {
        [Value::Int(1), token] => Ok(Ok(number(token).ok_or_else(unexpected)?)),
        [Value::Int(0), Value::Int(pttl), Value::BulkString(_)] => Ok(Err(u64::try_from(*pttl).ok().map(Duration::from_millis))),
        _ => Err(unexpected()),
    }
}

/// Who holds the lock that [`ACQUIRE`] did not get.
pub(crate) fn parse_holder(answer: &Value) -> Option<OwnerId> {
    match answer {
        Value::Array(parts) => match parts.as_slice() {
            [Value::Int(0), _, Value::BulkString(holder)] if !holder.is_empty() => Some(OwnerId::new(readable(holder))),
            _ => None,
        },
        _ => None,
    }
}

/// The answer of [`FORCE`].
pub(crate) fn parse_forced(answer: &Value) -> Result<bool, Failure> {
    match answer {
        Value::Int(removed @ 0..=1) => Ok(*removed == 1),
        _ => Err(Failure::unexpected("neither 0 nor 1 from a forced release")),
    }
}

/// The answer of [`INSPECT`].
pub(crate) fn parse_info(answer: &Value) -> Result<Option<LockInfo>, Failure> {
    let parts = match answer {
        Value::Nil => return Ok(None),
        Value::Array(parts) => parts.as_slice(),
        _ => &[],
    };
    let [Value::BulkString(value), Value::Int(pttl), owner, token, since, metadata] = parts else {
        return Err(Failure::unexpected("not a holder from an inspection"));
    };
    let mut info = LockInfo::new(OwnerId::new(readable(value)));
    info.expires_in = u64::try_from(*pttl).ok().map(Duration::from_millis);
    // What is written there may be about an earlier holder, who was followed by a client of another library.
    if matches!(owner, Value::BulkString(owner) if owner == value) {
        info.token = number(token).map(FencingToken::new);
        info.since = number(since).map(|micros| UNIX_EPOCH + Duration::from_micros(micros));
        info.metadata = text(metadata).and_then(|note| note.strip_prefix('=')).map(str::to_owned);
    }
    Ok(Some(info))
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => str::from_utf8(bytes).ok(),
        _ => None,
    }
}

fn number(value: &Value) -> Option<u64> {
    text(value)?.parse().ok()
}

/// Other libraries write bytes of any kind: those that are not text are shown in hexadecimal digits.
pub(crate) fn readable(value: &[u8]) -> String {
    match str::from_utf8(value) {
        Ok(text) => text.to_owned(),
        Err(_) => value.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn holder(value: &[u8], pttl: i64) -> Value {
        let last = [bulk("me"), bulk("1795212345678901"), bulk("1795212345678900"), bulk("=note")];
        Value::Array([Value::BulkString(value.to_vec()), Value::Int(pttl)].into_iter().chain(last).collect())
    }

    #[test]
    fn acquired_or_busy() {
        let granted = Value::Array(vec![Value::Int(1), bulk("1795212345678901")]);
        assert_eq!(parse_acquired(&granted).unwrap(), Ok(1_795_212_345_678_901));
        let busy = |pttl| Value::Array(vec![Value::Int(0), Value::Int(pttl), bulk("me")]);
        assert_eq!(parse_acquired(&busy(1500)).unwrap(), Err(Some(Duration::from_millis(1500))));
        assert_eq!(parse_acquired(&busy(-1)).unwrap(), Err(None), "no TTL");
        assert_eq!((parse_holder(&busy(1)), parse_holder(&granted)), (Some(OwnerId::new("me")), None));
        for garbage in [Value::Nil, Value::Okay, bulk("x"), Value::Array(vec![]), Value::Array(vec![Value::Int(1), bulk("x")])] {
            assert!(parse_acquired(&garbage).is_err(), "{garbage:?}");
        }
    }

    #[test]
    fn the_last_holders_note_is_not_a_strangers() {
        let info = parse_info(&holder(b"me", 900)).unwrap().unwrap();
        assert_eq!((info.token, info.metadata.as_deref()), (Some(FencingToken::new(1_795_212_345_678_901)), Some("note")));
        assert_eq!(info.since, Some(UNIX_EPOCH + Duration::from_micros(1_795_212_345_678_900)));
        let info = parse_info(&holder(b"stranger", -1)).unwrap().unwrap();
        assert_eq!((info.owner.as_str(), info.token, info.metadata, info.expires_in), ("stranger", None, None, None));
    }

    #[test]
    fn an_owner_that_is_not_text_is_shown_in_hexadecimal() {
        assert_eq!(parse_info(&holder(&[0xff, 0x00, 0x10], 1)).unwrap().unwrap().owner.as_str(), "ff0010");
        assert_eq!(parse_info(&Value::Nil).unwrap(), None);
        assert!(parse_info(&Value::Int(1)).is_err());
    }

    #[test]
    fn the_counter_outlives_the_lease() {
        assert_eq!(companion_ttl(Duration::from_secs(30)), 24 * 3600 * 1000);
        let month = Duration::from_secs(30 * 24 * 3600);
        assert_eq!(companion_ttl(month), 2 * millis(month));
    }
}
