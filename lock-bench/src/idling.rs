use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::time::sleep;

use crate::{
    Result, cli,
    fleet::Fleet,
    measure::{median, unique_prefix},
    progress::Progress,
    protocol::Event,
    stores::Store,
};

/// Plan to measure the messages of a waiter while nothing happens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdlePlan {
    /// Appended to the store's URL; a long TTL keeps the holder quiet.
    pub(crate) parameters: &'static str,
    /// A kind of message that is counted although it is part of another.
    pub(crate) part: &'static str,
}

/// Messages of one waiter while the lock stays taken: medians.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Idle {
    pub(crate) messages_per_s: f64,
}

/// Time for one-off work of both to finish.
const SETTLE: Duration = Duration::from_secs(3);
const WINDOW: Duration = Duration::from_secs(9);

impl IdlePlan {
    /// Steps in each round.
    pub(crate) const STEPS: usize = 1;

    pub(crate) async fn measure(
        &self,
        store: &dyn Store,
        rounds: usize,
        progress: &Progress,
    ) -> Result<Idle> {
        let mut windows = Vec::new();
        for round in 1..=rounds {
            progress.begin(&format!("idle (round {round}): one waiter"));
            let messages_per_s = self.window(store).await?;
            progress.end(&format!("{messages_per_s:.2} messages/s"));
            windows.push(messages_per_s);
        }
        Ok(Idle {
            messages_per_s: median(windows.into_iter()).unwrap_or_default(),
        })
    }

    async fn window(&self, store: &dyn Store) -> Result<f64> {
        store.tidy().await?;
        let url = format!("{}{}", store.url(), self.parameters);
        let arguments =
            ["--url", &url, "--prefix", &unique_prefix(), "--names", "1"].map(str::to_owned);
        let program = cli::own_program("hold")?;
        let mut holder = Fleet::start(&program, [arguments.to_vec()]).await?;
        holder.say("start").await?;
        let Event::Holding { .. } = holder.event().await? else {
            return Err("the name is not held".into());
        };
        // The waiter wants the same name, so it says nothing more.
        let mut waiter = Fleet::start(&program, [arguments.to_vec()]).await?;
        waiter.say("start").await?;
        sleep(SETTLE).await;
        let before = store.requests().await?.unwrap_or_default();
        let opened = Instant::now();
        sleep(WINDOW).await;
        let length = opened.elapsed().as_secs_f64();
        let after = store.requests().await?.unwrap_or_default();
        holder.dismiss().await;
        waiter.dismiss().await;
        Ok(after.since(&before).without(self.part).messages.sum() / length)
    }
}
