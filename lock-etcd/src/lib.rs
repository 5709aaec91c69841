//! etcd backend of the distributed-lock framework.
//!
//! Builds the revision-ordered lock itself, from a raw transaction and a watch; never through the
//! server's Lock RPC.
//!
//! # How it works
//!
//! A client has one *session*: a lease that keeps all its locks, renewed every third of its TTL. An
//! acquisition is a key `<namespace><name>/<lease in hex>[-<number in hex>]` under that lease.
//! Whoever has the key with the lowest create revision owns the lock. That is the layout of Go's
//! `clientv3/concurrency`, of `etcdctl lock`, of jetcd and of the server's Lock RPC: all of them
//! exclude each other. Unlike there, a lock `a` is not blocked by a lock `a/b`.
//!
//! - *Acquire, free:* one transaction, which creates the key and looks whether it is alone.
//! - *Acquire, taken:* the key stays as the place in the queue. A watch that was open before the
//!   queue was read tells when every older key is gone; no read is needed then. All waiters of a
//!   client for one name share the watch.
//! - *Try-acquire:* one transaction, which creates the key only if no other is there.
//! - *Release:* one transaction, which deletes the key if its create revision is still the same.
//!
//! The fencing token is a store revision at which the holder was seen to own the lock.
//!
//! # Limits
//!
//! A TTL is a whole number of seconds, at least 2. A guard shares its deadline with the session: it
//! is valid for at least two thirds of the TTL from the acquisition, not for all of it. An
//! acquisition without renewal, or with a maximum hold, has a lease of its own, and costs two
//! requests more. Tokens go back if the cluster is rebuilt, or restored from a snapshot without a
//! revision bump.
//!
//! A lock that somebody else removes from the store is told lost within a moment, but not in the
//! first 200 ms of its hold: until then nothing watches it, so that short holds cost no watch.
//!
//! While there is no leader nobody can renew a lease. With etcd's default timing an election takes
//! 1 to 2 s, so a lock with a TTL below 5 s may be lost when the leader fails: it then ends at its
//! deadline, before anybody else can have it. When another member fails, locks with any TTL are
//! kept.
//!
//! # A store that goes back
//!
//! A data directory or a snapshot is restored, a single member is made to lead alone, the data is
//! thrown away, or another cluster gets the address: then revisions repeat, entries that were
//! removed are back, and entries that are held are gone. A client notices it by the first answer
//! that is behind what it had been told, or that comes from another cluster, and at the latest some
//! ten seconds after by entries of its own that are back. It then starts over: all its guards are
//! lost, its leases are revoked, and calls under way fail with
//! [`Unavailable`](lock_core::ErrorKind::Unavailable) and say from which revision to which the
//! store went. After that it takes no lock for as long as its longest TTL: an acquire waits, a
//! try-acquire fails. A holder whose link is silent cannot be told, and keeps its guard until its
//! deadline; after this time no such guard is valid.
//!
//! What no client can prevent: one that connects after the restore knows of nothing, and one that
//! was told nothing since the backup has nothing to compare. Either may be granted a lock that is
//! free in the restored store, with a token that was handed out before, while a holder of before
//! has not noticed yet: for a second or two if its link is up, until its deadline if it is silent.
//! To exclude that, keep clients away from a restored store for one TTL, and restore with a
//! revision bump (`etcdutl snapshot restore --bump-revision 1000000000 --mark-compacted`, in
//! versions that have it).
//!
//! # What else is in the store
//!
//! A key directly below a lock's name that is not an entry, such as data of an application, blocks
//! the lock for as long as it is there, as it does for Go's mutex: ours could ignore it only by
//! being granted together with Go's. A warning is logged, and inspect and the error of an acquire
//! that timed out name the key. Force-release refuses to remove it.
//!
//! # Which servers
//!
//! etcd 3.4.31, 3.5.13 or later, for a cluster. In an older one a leader that was paused for longer
//! than a TTL, by a suspended machine or a stopped process, revokes leases that are alive when it
//! goes on, before it notices that it is not the leader any more. No client can prevent that two
//! then hold a lock for a moment: the first is told that it lost it as soon as the deletion is
//! seen, and the fencing tokens tell the two apart. A single server cannot be deposed, and is not
//! affected.
//!
//! # Building
//!
//! `etcd-client` needs `protoc` and the protobuf includes (`protobuf-compiler` and
//! `libprotobuf-dev` on Debian).

mod acquire;
mod capabilities;
mod client;
mod config;
mod core;
mod entry;
mod entry_numbers;
mod entry_value;
mod error;
mod held_entry;
mod inspect;
mod key;
mod listing;
mod loss_monitor;
mod observe;
mod orphans;
mod pending_entry;
mod queue;
mod records;
mod restored_entries;
mod session;
mod transport;

pub use capabilities::capabilities;
pub use client::EtcdLock;
pub use config::{EtcdConnector, EtcdLockBuilder};
/// The client library of [`connect_with`](EtcdLockBuilder::connect_with).
#[cfg(feature = "etcd-client-0_21")]
pub use etcd_client;
pub use records::{
    EtcdRecord, EtcdRecordAction, EtcdRecordLease, EtcdRecordWatch, EtcdRecordWrite, EtcdRecords,
};

const BACKEND: &str = "etcd";

/// Compiles the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
