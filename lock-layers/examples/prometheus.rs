//! Serves the metrics of a few locks to Prometheus: `cargo run -p lock-layers --example prometheus`,
//! with another address than 127.0.0.1:9464 as its argument.
//!
//! Tasks take turns at three locks in memory. One of them is lost now and then, and one wait times
//! out, so that every metric has values.

use std::{error::Error, sync::Arc, time::Duration};

use lock_core::{AcquireOptions, DistributedLock, DistributedLockExt, ErrorKind};
use lock_layers::{Faults, Metrics, Stack, metric_names};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::sleep,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1);
    let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:9464")).await?;
    // First, so that the layers find it.
    let exporter = PrometheusBuilder::new()
        .set_buckets(&metric_names::BUCKETS)?
        .install_recorder()?;
    let faults = Faults::new();
    let locks = Stack::new()
        .with(Metrics::new())
        .with(faults.clone())
        .over(Arc::new(lock_mem::MemLock::new()));
    for task in 0..6 {
        tokio::spawn(work(Arc::clone(&locks), format!("orders/{}", task % 3)));
    }
    tokio::spawn(trouble(locks, faults));
    println!("http://{}/metrics", listener.local_addr()?);
    loop {
        let (connection, _) = listener.accept().await?;
        exporter.run_upkeep();
        tokio::spawn(answer(connection, exporter.clone()));
    }
}

/// Takes a lock again and again, for long enough to be renewed.
async fn work(locks: Arc<dyn DistributedLock>, name: String) {
    let options = AcquireOptions::new().with_ttl(Duration::from_millis(150));
    loop {
        if let Ok(guard) = locks.acquire_with(&name, options.clone()).await {
            sleep(Duration::from_millis(100)).await;
            // The error has been counted.
            let _ = guard.release().await;
        }
    }
}

async fn trouble(locks: Arc<dyn DistributedLock>, faults: Faults) {
    loop {
        sleep(Duration::from_millis(500)).await;
        faults.lose("orders/0");
        let _ = locks
            .acquire_timeout("orders/1", Duration::from_millis(1))
            .await;
        faults.fail_next(1, ErrorKind::Unavailable);
    }
}

/// Answers any request with the metrics.
async fn answer(mut connection: TcpStream, exporter: PrometheusHandle) {
    let mut request = [0; 4096];
    let _ = connection.read(&mut request).await;
    let metrics = exporter.render();
    let length = metrics.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    let _ = connection.write_all(head.as_bytes()).await;
    let _ = connection.write_all(metrics.as_bytes()).await;
}
