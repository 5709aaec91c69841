use std::{io, sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusBuilder;
use polylock::layers::{Metrics, Stack, Trace, metric_names};

use crate::{
    Result,
    protocol::Job,
    subjects::{
        Client,
        ours::{OurContender, Ours},
    },
};

/// Our locks through traces and metrics, to which somebody listens or not.
pub(crate) struct Layered<const LISTENED: bool>(Ours);

/// Our locks through an empty stack.
pub(crate) struct Unlayered(Ours);

impl<const LISTENED: bool> Client for Layered<LISTENED> {
    type Contender = OurContender;

    async fn connect(job: &Job) -> Result<Self> {
        if LISTENED {
            listen()?;
        }
        let stack = Stack::new().with(Trace::new()).with(Metrics::new());
        let store = polylock::connect(&job.url).await?;
        Ok(Self(Ours::over(stack.over(store))))
    }

    async fn contender(&self, name: &str) -> Result<OurContender> {
        self.0.contender(name).await
    }

    async fn close(self) {
        self.0.close().await;
    }
}

impl Client for Unlayered {
    type Contender = OurContender;

    async fn connect(job: &Job) -> Result<Self> {
        let store = polylock::connect(&job.url).await?;
        Ok(Self(Ours::over(Stack::new().over(Arc::clone(&store)))))
    }

    async fn contender(&self, name: &str) -> Result<OurContender> {
        self.0.contender(name).await
    }

    async fn close(self) {
        self.0.close().await;
    }
}

/// What a service has in production: a log at `INFO`, here to nowhere, and the Prometheus exporter.
fn listen() -> Result<()> {
    tracing_subscriber::fmt().with_writer(io::sink).init();
    let exporter = PrometheusBuilder::new()
        .set_buckets(&metric_names::BUCKETS)?
        .install_recorder()?;
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            exporter.run_upkeep();
        }
    });
    Ok(())
}
