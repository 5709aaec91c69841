use std::{
    sync::OnceLock,
    time::{Duration, UNIX_EPOCH},
};

use lock_core::{FencingToken, LockHolder, LockInfo, LockName, OwnerId};
use redis::{Cmd, Script, Value};

use crate::{error::Failure, keys::Keys};

/// A Lua script that gets a lock's keys: one round trip, one atomic step.
pub(crate) struct LockScript {
    number: u8,
    /// It gets the queue's key, too.
    queue: bool,
    code: &'static str,
    hash: OnceLock<String>,
}

/// Ends a script whose `holder` no lock of this kind wrote, or any other library's.
///
/// A lock is a string with a TTL, whoever wrote it. Without a TTL it must look like an owner of
/// ours or of redis-py, whose locks have none unless asked for: 32 hexadecimal digits. An
/// acquisition waits for any string, for some libraries add the TTL later.
macro_rules! unless_foreign {
    () => {
        r"
if type(holder) == 'table' then
  local kind = redis.call('TYPE', KEYS[1]).ok
  if kind == 'string' then return holder end
  return redis.error_reply('NOTALOCK the key holds a ' .. kind)
end
if redis.call('PTTL', KEYS[1]) == -1 and not (#holder == 32 and not string.find(holder, '[^0-9a-f]')) then
  return redis.error_reply('NOTALOCK the key holds a string without a TTL')
end
"
    };
}

/// `owner, ttl in ms, companion's ttl in ms, metadata[, floor[, entry, mode]]` -> `{1, token}`, or
/// `{0, holder's PTTL, holder, entry before, its arrival}`.
///
/// - A repeated request finds its own owner id: it extends the lease, so that the deadline counts
///   from the repetition, and returns the token that was minted.
/// - The token is at least the server's clock in microseconds, or `floor` where servers are to
///   agree on one; a floor counts as far as it is within half a second of the server's clock.
/// - A counter that is ahead of the server's clock is kept longer, by as much: where it ended,
///   tokens would go back.
/// - Numbers stay below 2^53, where Lua's are exact. A counter that has got there, or holds no
///   number, ends the script with nothing done.
/// - A free lock is refused while the `entry` of another client is first in the queue, unless the
///   `mode` is `pass`. In the modes `wait` and `renew` a refused client enters the queue, and is
///   told which entry comes before its own, if any. In the mode `enter` it does so without asking
///   for the lock, and gives the entry alone; in the mode `keep` the winner's entry stays. See [`crate::waiters`].
pub(crate) static ACQUIRE: LockScript =
    LockScript::new(0, include_str!("scripts/acquire.lua")).with_queue();

/// The same without the queue, for a slot that is on its way to another server: there a script fails
/// (`TRYAGAIN`) if one of its keys is missing, and a queue mostly is.
pub(crate) static ACQUIRE_UNQUEUED: LockScript =
    LockScript::new(7, include_str!("scripts/acquire.lua"));

/// `entry` -> 1, or 0 if the client did not wait.
pub(crate) static LEAVE: LockScript =
    LockScript::new(6, include_str!("scripts/leave.lua")).with_queue();

/// `owner, token, companion's ttl in ms` -> what the counter then is, at least `token`; 0 if the
/// lock is not this owner's.
pub(crate) static RAISE: LockScript = LockScript::new(
    1,
    r"
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local number = math.max(tonumber(redis.call('HGET', KEYS[2], 'token') or 0), tonumber(ARGV[2]))
local token = string.format('%.0f', number)
redis.call('HSET', KEYS[2], 'token', token)
local time = redis.call('TIME')
local ahead = math.max(0, math.ceil((number - time[1] * 1000000 - time[2]) / 1000))
redis.call('PEXPIRE', KEYS[2], string.format('%.0f', ARGV[3] + ahead))
return token
",
);

/// `owner, ttl in ms, companion's ttl in ms` -> 1, or 0 if the lock is not this owner's. A
/// companion that is kept longer stays so: its counter may be ahead of the server's clock.
pub(crate) static RENEW: LockScript = LockScript::new(
    2,
    r"
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if redis.call('PTTL', KEYS[2]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[2], ARGV[3]) end
return 1
",
);

/// `owner` -> 1, or 0 if the lock is not this owner's. Of the companion only the counter stays.
pub(crate) static RELEASE: LockScript = LockScript::new(3, include_str!("scripts/release.lua"));

/// Ends a script if nobody has the lock, and describes the `holder` as `seen`.
macro_rules! look {
    () => {
        concat!(
            r"
local holder = redis.pcall('GET', KEYS[1])
if not holder then return false end",
            unless_foreign!(),
            r"
local last = redis.pcall('HMGET', KEYS[2], 'owner', 'token', 'since', 'metadata')
if last.err then last = {false, false, false, false} end
local seen = {holder, redis.call('PTTL', KEYS[1]), last[1], last[2], last[3], last[4]}
"
        )
    };
}

/// -> nothing, or `{value, PTTL, companion's owner, token, since, metadata}`.
pub(crate) static INSPECT: LockScript = LockScript::new(4, concat!(look!(), "return seen\n"));

/// `[owner[, the bytes that are shown like that]]` -> as [`INSPECT`] tells whom it has removed:
/// whoever has the lock, or only that owner.
pub(crate) static FORCE: LockScript = LockScript::new(
    5,
    concat!(
        look!(),
        r"
if ARGV[1] and ARGV[1] ~= holder and ARGV[2] ~= holder then return false end
redis.call('DEL', KEYS[1])
redis.pcall('HDEL', KEYS[2], 'owner', 'since', 'metadata')
return seen
"
    ),
);

/// The arguments of [`FORCE`].
pub(crate) fn add_owner(command: &mut Cmd, only: Option<&OwnerId>) {
    if let Some(owner) = only {
        command.arg(owner.as_str());
        if let Some(bytes) = unreadable(owner.as_str()) {
            command.arg(bytes);
        }
    }
}

impl LockScript {
    /// `number` tells the scripts apart; below 8.
    const fn new(number: u8, code: &'static str) -> Self {
        Self {
            number,
            queue: false,
            code,
            hash: OnceLock::new(),
        }
    }

    const fn with_queue(mut self) -> Self {
        self.queue = true;
        self
    }

    /// The script in a set of scripts.
    pub(crate) fn bit(&self) -> u8 {
        1 << self.number
    }

    /// The script by its hash, which the server knows after the first use.
    pub(crate) fn by_hash(&self, keys: &Keys) -> Cmd {
        let hash = self
            .hash
            .get_or_init(|| Script::new(self.code).get_hash().to_owned());
        invocation("EVALSHA", hash, keys, self.queue)
    }

    /// The script in full, for a server that has forgotten it.
    pub(crate) fn in_full(&self, keys: &Keys) -> Cmd {
        invocation("EVAL", self.code, keys, self.queue)
    }
}

/// Enough for what is sent apart from script, keys and metadata.
const WORDS: usize = 12;
const BYTES: usize = 96;

fn invocation(command: &str, script: &str, keys: &Keys, queue: bool) -> Cmd {
    // The arguments that follow are short: nothing has to grow.
    let words = WORDS;
    let bytes = script.len() + keys.lock.len() + keys.companion.len() + keys.queue.len() + BYTES;
    let mut cmd = Cmd::with_capacity(words, bytes);
    cmd.arg(command)
        .arg(script)
        .arg(2 + u8::from(queue))
        .arg(&*keys.lock)
        .arg(&*keys.companion);
    if queue {
        cmd.arg(&*keys.queue);
    }
    cmd
}

/// Durations as Redis takes them; never zero.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX)
        .max(1)
}

/// The largest number that a counter is raised to. Its scripts count exactly to 2^53, a few
/// trillion further.
pub(crate) const LAST_RAISED: u64 = 9_000_000_000_000_000;

/// The answer of [`RAISE`]: what the counter then is, nothing if the lock is not this owner's.
pub(crate) fn parse_raised(answer: &Value) -> Result<Option<u64>, Failure> {
    match answer {
        Value::Int(0) => Ok(None),
        token => number(token)
            .map(Some)
            .ok_or_else(|| Failure::unexpected("neither 0 nor a number from raising a counter")),
    }
}

/// The answer of [`ACQUIRE`]: the token, or when the holder's lease ends.
pub(crate) fn parse_acquired(answer: &Value) -> Result<Result<u64, Option<Duration>>, Failure> {
    let unexpected = || Failure::unexpected("neither a token nor a PTTL from an acquisition");
    let Value::Array(parts) = answer else {
        return Err(unexpected());
    };
    match parts.as_slice() {
        [Value::Int(1), token] => Ok(Ok(number(token).ok_or_else(unexpected)?)),
        [Value::Int(0), Value::Int(pttl), Value::BulkString(_), ..] => {
            Ok(Err(u64::try_from(*pttl).ok().map(Duration::from_millis)))
        }
        _ => Err(unexpected()),
    }
}

/// A client's entry in a queue: it may leave, and enter again under the same key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// Value of the key: tells it from the same client's later entries.
    pub(crate) arrival: Vec<u8>,
}

/// The entry before that of the client which [`ACQUIRE`] put into the queue.
pub(crate) fn parse_entry_before(answer: &Value) -> Option<Entry> {
    let Value::Array(parts) = answer else {
        return None;
    };
    match parts.as_slice() {
        [_, _, _, key, Value::BulkString(arrival)] => {
            let key = text(key).filter(|key| !key.is_empty())?.to_owned();
            let arrival = arrival.clone();
            Some(Entry { key, arrival })
        }
        _ => None,
    }
}

/// Adds the arguments of [`ACQUIRE`] that only have this `entry` enter the queue, or be renewed.
pub(crate) fn add_entering(command: &mut Cmd, entry: &str) {
    for unused in [""; 5] {
        command.arg(unused);
    }
    command.arg(entry).arg("enter");
}

/// Returns who holds the lock that [`ACQUIRE`] did not get.
pub(crate) fn parse_holder(answer: &Value) -> Option<Holder> {
    match answer {
        Value::Array(parts) => match parts.as_slice() {
            [
                Value::Int(0),
                Value::Int(pttl),
                Value::BulkString(value),
                ..,
            ] if !value.is_empty() => Some(Holder::of(value, *pttl == -1)),
            _ => None,
        },
        _ => None,
    }
}

/// Obstacle to an acquisition, for the error of a waiter that waits in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) owner: OwnerId,
    /// Value of the key, if no lock wrote it.
    pub(crate) value: Option<String>,
}

impl Holder {
    /// By the rule of `unless_foreign!`.
    pub(crate) fn of(value: &[u8], for_ever: bool) -> Self {
        let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        match for_ever && !(value.len() == 32 && value.iter().all(is_hex)) {
            true => Self {
                owner: OwnerId::new("a key without a TTL, which no lock wrote"),
                value: Some(readable(value)),
            },
            false => Self {
                owner: OwnerId::new(readable(value)),
                value: None,
            },
        }
    }
}

/// The answer of [`INSPECT`] and of [`FORCE`].
pub(crate) fn parse_info(name: &LockName, answer: &Value) -> Result<Option<LockInfo>, Failure> {
    let parts = match answer {
        Value::Nil => return Ok(None),
        Value::Array(parts) => parts.as_slice(),
        _ => &[],
    };
    let [
        Value::BulkString(value),
        Value::Int(pttl),
        owner,
        token,
        since,
        metadata,
    ] = parts
    else {
        return Err(Failure::unexpected("not a holder from an inspection"));
    };
    let mut info = LockHolder::new(OwnerId::new(readable(value)));
    info.expires_in = u64::try_from(*pttl).ok().map(Duration::from_millis);
    // What is written there may be about an earlier holder, who was followed by a client of another
    // library.
    if matches!(owner, Value::BulkString(owner) if owner == value) {
        info.token = number(token).map(FencingToken::new);
        info.since = number(since).map(|micros| UNIX_EPOCH + Duration::from_micros(micros));
        info.metadata = text(metadata)
            .and_then(|note| note.strip_prefix('='))
            .map(str::to_owned);
    }
    Ok(Some(LockInfo::new(name.clone(), info)))
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

/// Other libraries write bytes of any kind: those that are not text are shown in hexadecimal
/// digits.
pub(crate) fn readable(value: &[u8]) -> String {
    match str::from_utf8(value) {
        Ok(text) => text.to_owned(),
        Err(_) => value.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

/// The bytes that [`readable`] shows like this, other than the text itself, if there are any.
fn unreadable(shown: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| {
        char::from(*byte)
            .to_digit(16)
            .filter(|_| !byte.is_ascii_uppercase())
            .and_then(|digit| u8::try_from(digit).ok())
    };
    let digits: Vec<u8> = shown
        .bytes()
        .map(|byte| digit(&byte))
        .collect::<Option<_>>()?;
    let (pairs, []) = digits.as_chunks::<2>() else {
        return None;
    };
    let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
    str::from_utf8(&bytes).is_err().then_some(bytes)
}

#[cfg(test)]
mod tests;
