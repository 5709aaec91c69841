use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use lock_core::{AcquireOptions, DistributedLockExt, backend::locked};
use lock_mem::{MemLock, MemStore};
use tracing_subscriber::fmt::{MakeWriter, format::FmtSpan};

use super::*;

/// Collects what a subscriber writes.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(locked(&self.0).clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// The one line that has all of these in it.
    fn line(&self, parts: &[&str]) -> String {
        let lines = self.lines();
        let mut found = lines
            .iter()
            .filter(|line| parts.iter().all(|part| line.contains(part)));
        let first = found.next();
        assert!(
            first.is_some() && found.next().is_none(),
            "{parts:?} in {lines:#?}"
        );
        first.unwrap().clone()
    }

    fn has(&self, part: &str) -> bool {
        self.lines().iter().any(|line| line.contains(part))
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        locked(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

fn log() -> (Log, tracing::subscriber::DefaultGuard) {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(log.clone())
        .with_max_level(Level::TRACE)
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(false)
        .finish();
    (log, tracing::subscriber::set_default(subscriber))
}

#[tokio::test(start_paused = true)]
async fn an_acquisition_has_three_spans() {
    let (log, _guard) = log();
    let locks = Trace::new().layer(Arc::new(MemLock::new()));
    let first = locks.acquire("orders").await.unwrap();
    let second = tokio::spawn({
        let locks = Arc::clone(&locks);
        async move { locks.acquire("orders").await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    log.line(&["lock queued"]);
    first.release().await.unwrap();
    let second = second.await.unwrap().unwrap();
    let owner = format!("lock.owner=\"{}\"", second.owner());
    drop(second);
    let line = log.line(&["lock.acquire{", "lock granted", &owner]);
    for attribute in [
        "lock.name=\"orders\"",
        "lock.backend=\"mem\"",
        "lock.operation=acquire",
        "lock.outcome=\"granted\"",
        "lock.token=2",
        "lock.mode=\"exclusive\"",
    ] {
        assert!(line.contains(attribute), "{attribute} in {line}");
    }
    log.line(&[
        "lock.hold{",
        "close",
        &owner,
        "lock.outcome=\"released\"",
        "lock.renewals=0",
    ]);
    log.line(&[
        "lock.release{",
        "lock released",
        "lock.outcome=\"released\"",
    ]);
}

#[tokio::test(start_paused = true)]
async fn every_end_of_an_acquire_is_told() {
    let (log, _guard) = log();
    let locks = Trace::new().layer(Arc::new(MemLock::new()));
    let guard = locks.acquire("a").await.unwrap();
    let acquire = locks.acquire("a");
    assert!(
        tokio::time::timeout(Duration::from_secs(1), acquire)
            .await
            .is_err()
    );
    log.line(&["lock.acquire{", "close", "lock.outcome=\"cancelled\""]);
    assert!(locks.try_acquire("a").await.unwrap().is_none());
    log.line(&[
        "close",
        "lock.operation=try-acquire",
        "lock.outcome=\"busy\"",
    ]);
    let options = AcquireOptions::new().with_timeout(Duration::from_secs(1));
    assert!(locks.acquire_with("a", options).await.is_err());
    let line = log.line(&[
        "close",
        "lock.outcome=\"timed_out\"",
        "error.type=\"timed_out\"",
    ]);
    assert!(
        line.contains("lock.timeout_s=1") && !line.contains("ERROR"),
        "{line}"
    );
    locks.force_release("a").await.unwrap();
    log.line(&["lock taken away by force", guard.owner().as_str()]);
}

#[tokio::test(start_paused = true)]
async fn a_loss_ends_the_span_and_is_warned_of_once() {
    let (log, _guard) = log();
    let store = MemStore::new();
    let locks = Trace::new().layer(Arc::new(store.client()));
    let guard = locks.acquire("a").await.unwrap();
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert!(log.has("lease renewed"));
    store.evict(guard.name());
    tokio::time::sleep(Duration::from_secs(30)).await;
    log.line(&[
        "lock.hold{",
        "close",
        "lock.outcome=\"lost\"",
        "lock.loss.reason=\"removed\"",
    ]);
    log.line(&["WARN", "lock lost"]);
    assert!(guard.release().await.is_err());
    log.line(&["lock released late", "error.type=\"lost\""]);
}

#[tokio::test(start_paused = true)]
async fn a_late_renewal_is_a_warning() {
    let (log, _guard) = log();
    let store = MemStore::new();
    let locks = Trace::new().layer(Arc::new(store.client()));
    let guard = locks.acquire("a").await.unwrap();
    store.freeze();
    tokio::time::sleep(Duration::from_secs(25)).await;
    store.thaw();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(guard.is_held());
    assert!(log.has("lease renewed late"), "{:#?}", log.lines());
}

#[tokio::test]
async fn the_process_is_told_to_whoever_inspects() {
    let locks = Trace::new()
        .with_process_metadata()
        .layer(Arc::new(MemLock::new()));
    let guard = locks.acquire("a").await.unwrap();
    let info = locks.inspect("a").await.unwrap().unwrap();
    let pid = format!(" pid={} started=", std::process::id());
    let metadata = info.holder().metadata.clone().unwrap();
    assert!(
        metadata.starts_with("host=") && metadata.contains(&pid),
        "{metadata}"
    );
    guard.release().await.unwrap();
    let own = AcquireOptions::new().with_metadata("mine");
    let guard = locks.acquire_with("a", own).await.unwrap();
    let info = locks.inspect("a").await.unwrap().unwrap();
    assert_eq!(info.holder().metadata.as_deref(), Some("mine"));
    drop(guard);
}
