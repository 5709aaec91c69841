use std::{collections::VecDeque, io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::watch,
    time::{Instant, sleep_until},
};

use super::Trouble;

const CHUNK: usize = 16 * 1024;
/// Bounds the data that a delay holds back, as a network would.
const CHUNKS: usize = 1024;

/// Direction in which the bytes of a [`pump`] go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Requests,
    Replies,
}

/// Forwards one direction of a connection until it ends, whatever trouble there is.
pub(super) async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    direction: Direction,
    mut trouble: watch::Receiver<Trouble>,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut line = Line::default();
    while !line.is_finished() {
        let now = *trouble.borrow_and_update();
        line.check_gap(now)?;
        let flows = now != Trouble::Blackhole;
        let due = line.due();
        tokio::select! {
            biased;
            changed = trouble.changed() => changed.map_err(io::Error::other)?,
            () = until(due), if flows && due.is_some() => to.write_all(&line.take()).await?,
            read = from.read(&mut buffer), if flows && line.has_room() => match (read?, now) {
                (0, _) => line.at_end = true,
                (_, Trouble::DropReplies) if direction == Direction::Replies => line.has_gap = true,
                (length, Trouble::Delay(delay)) => line.put(&buffer[..length], delay),
                (length, _) if line.chunks.is_empty() => to.write_all(&buffer[..length]).await?,
                (length, _) => line.put(&buffer[..length], Duration::ZERO),
            },
        }
    }
    to.shutdown().await
}

/// Data under way in one direction.
#[derive(Debug, Default)]
struct Line {
    chunks: VecDeque<(Instant, Vec<u8>)>,
    at_end: bool,
    has_gap: bool,
}

impl Line {
    fn is_finished(&self) -> bool {
        self.at_end && self.chunks.is_empty()
    }

    fn has_room(&self) -> bool {
        !self.at_end && self.chunks.len() < CHUNKS
    }

    fn put(&mut self, bytes: &[u8], delay: Duration) {
        self.chunks
            .push_back((Instant::now() + delay, bytes.to_vec()));
    }

    fn take(&mut self) -> Vec<u8> {
        self.chunks
            .pop_front()
            .map(|(_, bytes)| bytes)
            .unwrap_or_default()
    }

    fn due(&self) -> Option<Instant> {
        self.chunks.front().map(|&(due, _)| due)
    }

    fn check_gap(&self, now: Trouble) -> io::Result<()> {
        let goes_on = self.has_gap && now != Trouble::DropReplies;
        if goes_on {
            Err(io::Error::other("bytes of this stream were dropped"))
        } else {
            Ok(())
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
