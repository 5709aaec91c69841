use std::collections::HashMap;

use lock_conformance::servers::Server;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Counters of a server at one moment. Reading them is not counted.
#[derive(Clone, Debug)]
pub(crate) struct Metrics(HashMap<String, f64>);

impl Metrics {
    pub(crate) async fn of(server: &Server) -> Self {
        let mut stream = TcpStream::connect(server.endpoint()).await.unwrap();
        // Without keep-alive and chunks, so that the body ends with the connection.
        stream
            .write_all(b"GET /metrics HTTP/1.0\r\n\r\n")
            .await
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.trim().parse().ok()?))
        };
        Self(
            text.lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(sample)
                .collect(),
        )
    }

    /// The sum over all series of a metric whose labels have `label`.
    fn sum(&self, metric: &str, label: &str) -> u64 {
        let wanted = |series: &str| {
            series
                .strip_prefix(metric)
                .is_some_and(|rest| rest.starts_with('{') && rest.contains(label))
        };
        self.0
            .iter()
            .filter(|(series, _)| wanted(series))
            .map(|(_, value)| *value as u64)
            .sum()
    }

    fn value(&self, metric: &str) -> u64 {
        self.0.get(metric).map_or_else(
            || panic!("the server has no metric {metric}"),
            |value| *value as u64,
        )
    }

    /// Messages that clients sent for a method: requests of a unary one, and what went up a stream.
    pub(crate) fn received(&self, method: &str) -> u64 {
        self.sum(
            "grpc_server_msg_received_total",
            &format!("grpc_method=\"{method}\""),
        )
    }

    /// Messages that clients were sent by a method: answers, and events.
    pub(crate) fn sent(&self, method: &str) -> u64 {
        self.sum(
            "grpc_server_msg_sent_total",
            &format!("grpc_method=\"{method}\""),
        )
    }

    /// Messages that clients sent, for whatever method.
    pub(crate) fn all_received(&self) -> u64 {
        self.sum("grpc_server_msg_received_total", "grpc_method=")
    }

    pub(crate) fn watchers(&self) -> u64 {
        self.value("etcd_debugging_mvcc_watcher_total")
    }

    pub(crate) fn watch_streams(&self) -> u64 {
        self.value("etcd_debugging_mvcc_watch_stream_total")
    }

    pub(crate) fn puts(&self) -> u64 {
        self.value("etcd_mvcc_put_total")
    }

    pub(crate) fn events(&self) -> u64 {
        self.value("etcd_debugging_mvcc_events_total")
    }
}
