use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{Client, CompactionOptions};
use lock_conformance::servers::{self, EtcdOptions, Server};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    Result,
    stores::{Counts, Requests, Store},
    subjects::etcd_raw,
};

/// One etcd member of our own, with its data on disk as in production.
pub(crate) struct EtcdStore {
    server: Server,
    client: Client,
}

const LIMIT: Duration = Duration::from_secs(10);

impl EtcdStore {
    pub(crate) async fn start() -> Result<Self> {
        // The start blocks until the server is ready.
        let server =
            tokio::task::spawn_blocking(|| servers::etcd(EtcdOptions::new().own())).await??;
        let client = etcd_raw::connect(server.url()).await?;
        Ok(Self { server, client })
    }

    async fn get(&self, path: &str) -> Result<String> {
        let fetch = async {
            let mut stream = TcpStream::connect(self.server.endpoint()).await?;
            // Version 1.0, so that the answer comes in one piece.
            stream
                .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
                .await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = tokio::time::timeout(LIMIT, fetch).await??;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        if head.split(' ').nth(1) == Some("200") {
            return Ok(body.to_owned());
        }
        Err(format!(
            "etcd answered {} to GET {path}",
            head.lines().next().unwrap_or("nothing")
        )
        .into())
    }
}

#[async_trait]
impl Store for EtcdStore {
    fn url(&self) -> &str {
        self.server.url()
    }

    async fn version(&self) -> Result<String> {
        let answer: serde_json::Value = serde_json::from_str(&self.get("/version").await?)?;
        Ok(format!(
            "etcd {}, one member",
            answer["etcdserver"]
                .as_str()
                .unwrap_or("of an unknown version")
        ))
    }

    async fn requests(&self) -> Result<Option<Requests>> {
        Ok(Some(parse(&self.get("/metrics").await?)))
    }

    async fn tidy(&self) -> Result<()> {
        let mut client = self.client.clone();
        let revision = client
            .get("tidy", None)
            .await?
            .header()
            .map_or(0, etcd_client::ResponseHeader::revision);
        // Leftovers of earlier measurements in the server's index would slow the later ones.
        match client
            .compact(revision, Some(CompactionOptions::new().with_physical()))
            .await
        {
            Err(etcd_client::Error::GRpcStatus(status))
                if status.message().contains("compacted") =>
            {
                Ok(())
            }
            outcome => Ok(outcome.map(drop)?),
        }
    }

    async fn leases(&self) -> Result<Option<u64>> {
        Ok(Some(
            self.client.clone().leases().await?.leases().len() as u64
        ))
    }
}

fn parse(metrics: &str) -> Requests {
    Requests {
        reads: None,
        cpu_s: None,
        calls: counts(metrics, "grpc_server_started_total{"),
        messages: counts(metrics, "grpc_server_msg_received_total{"),
    }
}

fn counts(metrics: &str, counter: &str) -> Counts {
    let mut counts = Counts::default();
    for line in metrics
        .lines()
        .filter_map(|line| line.strip_prefix(counter))
    {
        let Some((labels, count)) = line.rsplit_once("} ") else {
            continue;
        };
        let method = labels
            .split(',')
            .find_map(|label| label.strip_prefix("grpc_method=\"")?.strip_suffix('"'));
        if let (Some(method), Ok(count)) = (method, count.trim().parse::<f64>()) {
            *counts.0.entry(method.to_owned()).or_default() += count;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = r#"# TYPE grpc_server_msg_received_total counter
grpc_server_msg_received_total{grpc_method="Txn",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1.5e+06
grpc_server_msg_received_total{grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"} 12
grpc_server_msg_received_total{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 7
grpc_server_started_total{grpc_method="Txn",grpc_service="etcdserverpb.KV",grpc_type="unary"} 99
"#;

    #[test]
    fn counts_calls_and_messages_on_streams() {
        let now = parse(METRICS);
        assert_eq!(
            (
                now.calls.sum(),
                now.messages.sum(),
                now.messages.of("Watch")
            ),
            (99.0, 1_500_019.0, 12.0)
        );
        assert_eq!(now.clone().without("Put").messages.sum(), 1_500_012.0);
        assert_eq!(now.since(&now).messages.sum(), 0.0);
        assert_eq!(now.since(&Requests::default()), now);
    }
}
