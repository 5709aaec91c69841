use etcd_client::WatchRequestSender;
use tokio::{
    sync::mpsc::{self, UnboundedSender},
    task::JoinHandle,
};

use super::watch_request::{WatchTarget, request};

/// Sends requests on a stream from its own task: the queue to the server is bounded, and the reader
/// of answers must not wait for a server that waits for its answers to be read.
pub(super) struct WatchWriter {
    requests: UnboundedSender<(i64, Option<WatchTarget>)>,
    task: JoinHandle<()>,
}

impl WatchWriter {
    pub(super) fn start(mut sender: WatchRequestSender) -> Self {
        let (requests, mut queued) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Some((id, target)) = queued.recv().await {
                let sent = match target {
                    Some(target) => {
                        let (key, options) = request(id, &target);
                        sender.watch(key, Some(options)).await
                    }
                    None => sender.cancel(id).await,
                };
                if sent.is_err() {
                    // The reader sees the stream end as well.
                    return;
                }
            }
        });
        Self { requests, task }
    }

    pub(super) fn open(&self, id: i64, target: &WatchTarget) {
        let _ = self.requests.send((id, Some(target.clone())));
    }

    pub(super) fn close(&self, id: i64) {
        let _ = self.requests.send((id, None));
    }
}

impl Drop for WatchWriter {
    fn drop(&mut self) {
        self.task.abort();
    }
}
