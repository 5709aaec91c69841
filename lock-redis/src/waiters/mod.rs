//! Waiters of each lock, and how the server's reports reach them.
//!
//! # The queue of one client
//!
//! The waiters of one name in one client queue up in memory ([`local`]); only the first of them
//! sends requests, so a client is one waiter to the server.
//!
//! # The queue in the store
//!
//! The clients that wait for a lock stand in a sorted set in the lock's hash slot, by the server's
//! clock on their arrival. A member is the name of its *entry*, a key that the client sets when it
//! enters. While a waiter of it is polled it renews its *presence*, a second member of the set that
//! ends after 6 s, and is no TTL of the key: whoever sleeps on the key would be woken. The key
//! lasts for 30 s, and is set again when half of that has passed. All is done by one script,
//! `acquire.lua`:
//!
//! - A free lock is granted to the first entry, or to anybody if there is none. The winner's entry
//!   is deleted. Releasing knows no queue, so other libraries' releases, expiry and deletion by an
//!   operator do as well.
//! - Who is refused enters, unless there already, and is told which entry comes before its own. It
//!   then reads that entry over the tracking connection, or, as the first, the lock. The server
//!   reports the next change of this key, so a grant wakes one waiter, which then reads the lock,
//!   and so does a release, and this one takes it. What a hand-over costs does not depend on how
//!   many wait: five commands a cycle. Scripts do not go over the tracking connection, because
//!   servers before 7.2 then track every key that a script declares.
//! - A waiter that sleeps on an entry ignores what is reported of the lock, which it may have looked
//!   at earlier: otherwise a release wakes more and more of those that wait for long.
//! - An entry holds its arrival: a client that has left and come again is not taken for the one
//!   before.
//! - Entries without a presence are removed by whoever meets them.
//! - If the lock is free and the first entry's client does not come, whoever asks next leaves a
//!   mark; 300 ms later the entry is removed. Every waiter asks once in two seconds at least, so
//!   one that is dead, paused or not polled delays the others by 2.5 s at most.
//!
//! A client that gives up removes its entry over the connection by which it entered.
//!
//! Invariants, checked in `model.rs` over every interleaving of three clients:
//!
//! - A waiter that sleeps is told of the end of its predecessor's entry, or of the lock. What is
//!   reported between its request and the answer makes it ask again.
//! - While nobody fails or is slow exactly one waiter is told of a release.
//! - No lock stays free while somebody waits, unless the first is dead, and then timers end it.
//! - Whatever is lost (the queue, an entry, the lock), waiters enter again, and nothing is left when
//!   all have gone.
//!
//! Order: arrival at the server, among clients that are alive. Exceptions: a client hands the lock
//! on among its own waiters for 20 ms before others have their turn; other libraries take what they
//! find free; a queue that is lost is formed anew; a server's clock that is set back lets newcomers
//! pass.

pub(crate) mod contended;
pub(crate) mod local;
#[cfg(test)]
mod model;
pub(crate) mod pace;
pub(crate) mod tracking;
pub(crate) mod watched_keys;
