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

/// How to measure what a waiter sends while nothing happens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdlePlan {
    /// Appended to the store's URL; a long TTL keeps the holder quiet.
    pub(crate) parameters: &'static str,
    /// A kind of message that is counted although it is a part of another.
    pub(crate) part: &'static str,
}

/// What one waiter sends while the lock stays taken: medians.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Idle {
    pub(crate) messages_per_s: f64,
}

/// Until both have done what is done once.
const SETTLE: Duration = Duration::from_secs(3);
const WINDOW: Duration = Duration::from_secs(9);

impl IdlePlan {
    /// In each round.
    pub(crate) const STEPS: usize = 1;

    pub(crate) async fn measure(&self, store: &dyn Store, rounds: usize, progress: &Progress) -> Result<Idle> {
        let mut windows = Vec::new();
        for round in 1..=rounds {
            progress.begin(&format!("idle (round {round}): one waiter"));
            let messages_per_s = self.window(store).await?;
            progress.end(&format!("{messages_per_s:.2} messages/s"));
            windows.push(messages_per_s);
        }
        Ok(Idle { messages_per_s: median(windows.into_iter()).unwrap_or_default() })
    }

    async fn window(&self, store: &dyn Store) -> Result<f64> {
        store.tidy().await?;
        let url = format!("{}{}", store.url(), self.parameters);
        let arguments = ["--url", &url, "--prefix", &unique_prefix(), "--names", "1"].map(str::to_owned);
        let program = cli::own_program("hold")?;
        let mut holder = Fleet::start(&program, [arguments.to_vec()]).await?;
        holder.say("start").await?;
        let Event::Holding { .. } = holder.event().await? else { return Err("the name is not held".into()) };
        // It wants the same name, so that it says nothing more.
        let mut waiter = Fleet::start(&program, [arguments.to_vec()]).await?;
        waiter.say("start").await?;
        sleep(SETTLE).await;
        let (before, opened) = (store.requests().await?.unwrap_or_default(), Instant::now());
        sleep(WINDOW).await;
        let (length, after) = (opened.elapsed().as_secs_f64(), store.requests().await?.unwrap_or_default());
        holder.dismiss().await;
        waiter.dismiss().await;
        Ok(after.since(&before).without(self.part).messages.sum() / length)
    }
}
