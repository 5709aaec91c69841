//! Redis backend of the distributed-lock framework.
//!
//! ```no_run
//! use lock_core::DistributedLockExt;
//! use lock_redis::RedisLock;
//!
//! # async fn example() -> Result<(), lock_core::LockError> {
//! let locks = RedisLock::connect("redis://127.0.0.1:6379").await?;
//! let guard = locks.acquire("orders/42").await?;
//! // ... write, stamped with guard.token() ...
//! guard.release().await
//! # }
//! ```
//!
//! # What is in the store
//!
//! | key | value |
//! | --- | --- |
//! | prefix and name, exactly | the acquisition's owner id, 32 hexadecimal digits, with the TTL |
//! | the same, U+001F, and what keeps it in the same hash slot | a hash: `token`, `owner`, `since` (µs), `metadata` |
//! | the same, U+001F, `q`, .. | the queue, a sorted set of entries; only while clients wait |
//! | the same, U+001F, `w`, client, .. | the entry of a client that waits; ends within 30 s of its last renewal |
//!
//! The first key is what redis-py's `Lock`, redsync, node-redlock and rslock write, so this backend
//! excludes them and is excluded by them on the same key.
//!
//! Whatever string is in the key is taken for a lock: it is waited for, and shown by an inspection.
//! A value that is no string was written by no lock of this kind: every operation on it is an error
//! that names its type, [`Protocol`](lock_core::ErrorKind::Protocol). That goes for Redisson's
//! locks too, which are hashes. A forced release removes a string only if it has a TTL, as locks
//! have, or is made of 32 hexadecimal digits, as the locks are that redis-py makes without one. So
//! it does remove an application's string that has a TTL.
//!
//! Owners that are not text, such as the 20 random bytes of rslock, are shown as hexadecimal
//! digits. That is also how to name them to
//! [`force_release_from`](lock_core::DistributedLockExt::force_release_from): it removes a lock
//! whose owner is shown like that, be it these digits themselves or the bytes that they stand for.
//!
//! A *list* reads through all keys of the server, or of every master of a cluster one after the
//! other (`SCAN`, 500 keys at a time), and tells what an inspection would; what it would not take
//! for a lock is left out. Locks whose slot moves from one server to another meanwhile may be
//! missing.
//!
//! # What to rely on
//!
//! Redis replicates asynchronously: a failover to a replica that had not received a lock grants it
//! twice, and so does an eviction or a restart that loses writes. Where that must not happen use
//! the etcd backend, or check the fencing token at the resource. A *token* is one more than the
//! last of its name, and at least the server's clock in microseconds. While the counter is there
//! tokens grow whatever the clock does. It ends ten minutes after the lock did
//! ([`with_counter_ttl`](RedisLockBuilder::with_counter_ttl), `?counter_ttl=1h`), or with FLUSHALL,
//! eviction or an unsynced failover. Then tokens still grow as long as the clock of the server that
//! is in charge is not behind the last token. Who a lock's owner is, since when, and its metadata
//! go with the release; after a crash with the counter.
//!
//! A holder can [raise](lock_core::LockGuard::raise_token) it, up to 9,000,000,000,000,000. A
//! counter that is ahead of the server's clock is kept until ten minutes after the clock has caught
//! up with it. If it is lost before, tokens go back to the clock. At 2^53, where numbers in scripts
//! are no longer exact, acquisitions fail ([`Exhausted`](lock_core::ErrorKind::Exhausted)): the
//! counter is removed once nobody compares its tokens with older ones any more.
//!
//! # Several servers
//!
//! By URL or builder, the locks are on one server, on the master that *sentinels* name, or on a
//! *cluster*; see [`RedisConnector`].
//!
//! With sentinels, all of them are asked for the master, and the one that knows of the latest
//! failover is taken for current. The server must take itself for a master, too. A client hears of
//! a failover from the sentinels, or finds its connection broken or silent, or the server a
//! replica, and goes on at the new master.
//!
//! In a cluster each lock's keys are in one hash slot. Requests follow the slot as it moves and as
//! replicas take over. While a slot is on its way, locks that are held can be renewed and released,
//! except between the moves of their two keys; those that are free, or were never taken, cannot be
//! acquired until it has arrived: a server that has only one of the keys, or none, refuses scripts
//! for both (`TRYAGAIN`). A request is repeated for a third of a second, then a try or a release is
//! `Unavailable`, a renewal is tried again until the deadline, and to a waiter it is failures.
//!
//! Either way a waiter puts up with a minute of failures, such as having no server, or one TTL if
//! that is longer; then it is `Unavailable`. Guards whose locks the new master has stay valid if it
//! is found before their deadline; those whose locks it never received learn of their loss as soon
//! as it is read there. Until then, or until the deadline, there can be two holders. Replicas that
//! confirm (below) and `min-replicas-to-write` make that rarer, not impossible.
//!
//! The new master ends locks by its own clock, for expiries are replicated as instants. So guards
//! end earlier by the largest offset of the servers' clocks that is to be expected:
//! [`with_max_clock_offset`](RedisLockBuilder::with_max_clock_offset) or `max_clock_offset`, 500 ms
//! unless set. If the clocks are farther apart a lock can be granted twice.
//!
//! Another way to two holders: a master that is cut off together with some of its clients serves
//! those until it stops by itself (`min-replicas-max-lag`, `cluster-node-timeout`) or they reach a
//! sentinel.
//!
//! # Replicas that confirm
//!
//! With [`with_replicas`](RedisLockBuilder::with_replicas), or `?replicas=1`, an acquisition is
//! granted, and a renewal counts, only when so many replicas have received it (`WAIT`); else it is
//! given back, and is an error. Each confirmation has a connection to itself, of which there are 32
//! at most for acquisitions, and as many for renewals. So a failover to a replica that confirmed loses no lock that somebody relies on. What
//! is left: a replica that did not confirm may be promoted, unless *all* must; a replica confirms
//! what it has in memory, and forgets it when it restarts without having saved it; a partition may
//! leave a master that goes on serving some clients; and releases are not waited for, so that a
//! lock may come back until its TTL ends. A raised token is confirmed in the same way; if it is
//! not, the guard has the old one, and the next holder may get either. And nobody is granted
//! anything while the replicas are away.
//!
//! # A quorum of independent servers
//!
//! [`RedisQuorumLock`] (`redis+quorum://`) asks several servers that know nothing of each other for
//! a majority, after the Redlock algorithm. It says there what that is worth.
//!
//! # How a waiter is woken
//!
//! The waiters of one name queue up inside the client, and only the first competes. The clients
//! that wait queue up in the store, in the order in which they came, so a hand-over costs the same
//! however many wait. Each asks for the lock over a second connection with client-side caching on;
//! the server then reports the next change of what it has to wait for: the entry before its own in
//! the queue, or the lock itself if it is first, whoever changes it and however. Then it asks
//! again. A timer at the end of the holder's lease and a slow poll, every two seconds at most,
//! stand behind that. The same connection tells a guard that its entry was removed, and a
//! [watch](lock_core::LockWatch) that somebody else may have the lock.
//!
//! A try, and an acquisition that comes along, do not go before those who wait. Other libraries
//! know nothing of the queue, and take the lock when they find it free.
//!
//! A waiter whose caller keeps its future and does not poll it loses its place to the next, within
//! its TTL and mostly within two seconds of its turn; polled again, it takes the last place. What
//! it was granted meanwhile ends with its TTL. A client that is dead, paused or cut off when its
//! turn comes delays the others by 2.5 s at most.
//!
//! A guard that is released hands the lock on to the next waiter of its client, whose request
//! follows the release over the same connection. That goes on for 20 ms, before those who wait
//! elsewhere; then a release goes alone, and the first in the queue has the lock. So the order is
//! that of arrival among clients, and not among all their tasks.
//!
//! # Unknown outcomes
//!
//! A request that got no answer may still take effect. It is repeated with the same owner id, which
//! finds what the first one did; and an acquisition that was given up is removed in the background,
//! on the connection that may still carry its request. Where that connection is broken it is
//! removed over another one, and once more a second later. That is tried again until its TTL has
//! passed, for half a minute at least; what takes effect later still ends with its TTL.
//!
//! # Access rules
//!
//! A restricted user needs `+eval +evalsha +set +get +del +exists +pexpire +pttl +type +hget +hmget
//! +hset +hdel +hincrby +zadd +zpopmin +zrange +zrank +zrem +zscore +time +ping +client|tracking
//! +hello` (and `+wait` for replicas that confirm, `+scan` for lists) on the keys of its locks and
//! their companions, which begin like them, and `+select` for a database other than 0. With
//! sentinels it needs `+role`; in a cluster `+cluster|slots +asking`. The sentinels' own user needs
//! `+sentinel|master +subscribe +hello` and the channel `&+switch-master`. Without
//! `client|tracking` waiters poll five times a second, and a guard learns of its removal at its
//! renewal; tracking is asked for again every four seconds.

mod acquire;
mod backoff;
mod capabilities;
mod client;
mod config;
mod connector;
mod entry;
mod error;
mod keys;
mod list;
mod orphan;
mod pending;
mod queue_entry;
mod quorum;
mod renewal;
mod replicas;
mod scripts;
mod tls;
mod topology;
mod transport;
mod validity;
mod waiters;
mod watch;

pub use capabilities::capabilities;
pub use client::RedisLock;
pub use config::RedisLockBuilder;
pub use connector::RedisConnector;
pub use quorum::{
    RedisQuorumConnector, RedisQuorumLock, RedisQuorumLockBuilder, quorum_capabilities,
};
/// The client library of [`connect_with`](RedisLockBuilder::connect_with).
#[cfg(feature = "redis-1")]
pub use redis;

/// Compiles the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
