//! Locks of programs without a runtime, in memory and on a real Redis.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
#![cfg(all(feature = "blocking", feature = "mem"))]

#[cfg(all(unix, feature = "redis"))]
mod common;

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use polylock::{
    AcquireOptions, ErrorKind, GuardState, LossReason,
    blocking::{self, Locks},
};

const TTL: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(30);

fn two_clients_exclude_each_other(ours: &Locks, theirs: &Locks) {
    let guard = ours
        .acquire_with("job", AcquireOptions::new().with_ttl(TTL))
        .unwrap();
    let first = guard.token().unwrap();
    assert!(theirs.try_acquire("job").unwrap().is_none());
    let busy = theirs.acquire_timeout("job", Duration::from_millis(100));
    assert_eq!(busy.unwrap_err().kind(), ErrorKind::TimedOut);
    let info = theirs.inspect("job").unwrap().unwrap();
    assert_eq!(&info.holder().owner, guard.owner());
    // Renewed in the background, while this thread does nothing.
    assert_eq!(guard.lost_within(TTL + TTL / 2).unwrap(), None);
    guard.ensure_held().unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| theirs.acquire("job").unwrap());
        guard.release().unwrap();
        let next = waiter.join().unwrap();
        assert!(next.token().unwrap() > first);
    });
    await_free(ours);
    let guard = ours.acquire("job").unwrap();
    assert_eq!(theirs.list("jo").unwrap().len(), 1);
    let mut watch = theirs.watch("job").unwrap();
    assert!(watch.next().unwrap().unwrap().is_some());
    theirs
        .force_release_from("job", guard.owner())
        .unwrap()
        .unwrap();
    let lost = guard.lost_within(LIMIT).unwrap();
    assert_eq!(lost, Some(LossReason::Removed));
    assert_eq!(guard.release().unwrap_err().kind(), ErrorKind::Lost);
    let guard = ours.acquire("job").unwrap();
    ours.shutdown().unwrap();
    assert_eq!(guard.state(), GuardState::Lost(LossReason::Shutdown));
    await_free(theirs);
}

/// A dropped guard is released in the background.
fn await_free(locks: &Locks) {
    let until = Instant::now() + LIMIT;
    while locks.inspect("job").unwrap().is_some() {
        assert!(Instant::now() < until);
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn in_memory() {
    let [ours, theirs] = [(); 2].map(|()| blocking::connect("mem://blocking").unwrap());
    two_clients_exclude_each_other(&ours, &theirs);
}

#[cfg(all(unix, feature = "redis"))]
#[test]
fn on_redis() {
    let Some(server) = common::Server::redis() else {
        return;
    };
    let [ours, theirs] = [(); 2].map(|()| blocking::connect(server.url()).unwrap());
    two_clients_exclude_each_other(&ours, &theirs);
    // A guard that is alive at the end of its client is released.
    let guard = blocking::connect(server.url())
        .unwrap()
        .acquire("job")
        .unwrap();
    drop(guard);
    assert!(theirs.try_acquire("job").unwrap().is_some());
}

#[test]
fn inside_a_runtime_every_call_is_refused_and_nothing_panics() {
    let locks = blocking::connect("mem://").unwrap();
    let guard = locks.acquire("a").unwrap();
    let (send, receive) = mpsc::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        for error in [
            blocking::connect("mem://").unwrap_err(),
            locks.acquire("b").unwrap_err(),
            locks.shutdown().unwrap_err(),
            guard.release().unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains("asynchronous"), "{error}");
        }
        drop(locks);
        send.send(()).unwrap();
    });
    receive.recv().unwrap();
}
