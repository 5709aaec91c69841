use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
};

use crate::{BoxError, client::Client, event::Ask, rng::Rng, ttls::Ttls, wire::Line};

/// Command line of a worker process.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Assignment {
    #[arg(long)]
    pub(crate) url: String,
    #[arg(long)]
    pub(crate) home: SocketAddr,
    #[arg(long)]
    pub(crate) process: u32,
    #[arg(long)]
    pub(crate) clients: u32,
    #[arg(long)]
    pub(crate) registers: u32,
    #[arg(long)]
    pub(crate) ttl: Ttls,
    /// Holds locks only briefly.
    #[arg(long)]
    pub(crate) brief: bool,
    #[arg(long)]
    pub(crate) seed: u64,
}

/// The word that tells a worker to finish.
pub(crate) const STOP: &str = "stop";
const PAUSE: Duration = Duration::from_millis(200);

/// Runs a worker from start to end.
pub(crate) async fn work(assignment: Assignment) -> Result<(), BoxError> {
    let (stopped, stop) = watch::channel(false);
    tokio::spawn(obey(stopped));
    let mut clients = JoinSet::new();
    for number in 0..assignment.clients {
        clients.spawn(live(assignment.clone(), number, stop.clone()));
    }
    while let Some(outcome) = clients.join_next().await {
        outcome??;
    }
    Ok(())
}

/// Waits for the order to stop; ends this process when the home is gone, however it ended.
async fn obey(stopped: watch::Sender<bool>) {
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(order)) = orders.next_line().await {
        if order == STOP {
            stopped.send_replace(true);
        }
    }
    std::process::exit(3);
}

async fn live(
    assignment: Assignment,
    number: u32,
    stop: watch::Receiver<bool>,
) -> Result<(), BoxError> {
    let Assignment {
        url,
        home,
        process,
        registers,
        ttl,
        brief,
        seed,
        ..
    } = assignment;
    let locks = loop {
        match polylock::connect(&url).await {
            Ok(locks) => break locks,
            Err(_) if *stop.borrow() => return Ok(()),
            // The store may be down while a killed process comes back, or the user may lack
            // permission.
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    };
    let identity = u64::from(process) << 8 | u64::from(number);
    let home = Line::new(TcpStream::connect(home).await?)?;
    let Ask(next_ask) = Ask::first(process, number);
    let rng = Rng::new(seed, identity);
    Client {
        locks,
        home,
        process,
        next_ask,
        registers,
        ttls: ttl,
        brief,
        rng,
        stop,
    }
    .live()
    .await
}
