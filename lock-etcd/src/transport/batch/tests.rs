use lock_conformance::servers::{self, EtcdOptions};

use super::*;

/// The state with these jobs: `-` for a removal, else the prefix below which an entry is made;
/// lower case if it can wait.
async fn queued(
    kv: &KvClient,
    jobs: &[&str],
) -> (State, Vec<oneshot::Receiver<Result<Answer, EtcdError>>>) {
    let mut state = State::default();
    let waiting = jobs.iter().map(|creates| {
        let (answer, answered) = oneshot::channel();
        let due = Instant::now()
            + if creates.contains(char::is_lowercase) {
                MERGE_WAIT
            } else {
                Duration::ZERO
            };
        let merging = if *creates == "-" {
            Merging::Any
        } else {
            Merging::OnePerPrefix((*creates).to_owned())
        };
        let when = Compare::create_revision("k", etcd_client::CompareOp::Equal, 0);
        let request = Request {
            when,
            then: Vec::new(),
            otherwise: Vec::new(),
            merging,
            contended: true,
        };
        state.queue.push_back(QueuedTxn {
            request,
            kv: kv.clone(),
            due,
            answer,
        });
        answered
    });
    let waiting = waiting.collect();
    (state, waiting)
}

async fn unconnected() -> KvClient {
    etcd_client::Client::connect(["127.0.0.1:1"], None)
        .await
        .unwrap()
        .kv_client()
}

fn kinds(batch: &[QueuedTxn]) -> Vec<String> {
    let kind = |job: &'_ QueuedTxn| match &job.request.merging {
        Merging::OnePerPrefix(prefix) => prefix.clone(),
        _ => "-".to_owned(),
    };
    batch.iter().map(kind).collect()
}

#[tokio::test]
async fn removals_go_first_and_one_entry_of_each_lock() {
    let (mut state, _waiting) =
        queued(&unconnected().await, &["A/", "-", "A/", "B/", "-", "A/"]).await;
    assert_eq!(kinds(&state.take()), ["-", "-", "A/", "B/"]);
    assert_eq!(kinds(&state.take()), ["A/"]);
    assert_eq!(kinds(&state.take()), ["A/"]);
    assert!(state.take().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_can_wait_goes_with_others_or_when_it_is_due() {
    let kv = unconnected().await;
    let (mut state, _waiting) = queued(&kv, &["a/", "-"]).await;
    assert_eq!(kinds(&state.take()), ["-", "a/"]);
    let (mut state, _waiting) = queued(&kv, &["a/"]).await;
    assert!(state.take().is_empty());
    tokio::time::advance(MERGE_WAIT).await;
    assert_eq!(kinds(&state.take()), ["a/"]);
}

fn request(key: &str, then: TxnOp, merging: Merging) -> Request {
    let when = Compare::create_revision(key, etcd_client::CompareOp::Greater, -1);
    Request {
        when,
        then: vec![then],
        otherwise: Vec::new(),
        merging,
        contended: true,
    }
}

#[test]
fn a_sender_that_is_dropped_leaves_its_place() {
    let home = tokio::runtime::Runtime::new().unwrap();
    let (_server, batcher) = home.block_on(async {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let kv = etcd_client::Client::connect([silent.local_addr().unwrap().to_string()], None)
            .await
            .unwrap()
            .kv_client();
        let batcher = Batcher::new(Tasks::current());
        let asking = Arc::clone(&batcher);
        tokio::spawn(async move {
            asking
                .txn(kv, request("k", TxnOp::delete("k", None), Merging::Any))
                .await
        });
        while batcher.tasks.running() == 0 {
            tokio::task::yield_now().await;
        }
        (silent, batcher)
    });
    drop(home);
    assert_eq!(batcher.state().senders, 0);
}

#[tokio::test]
async fn a_removal_goes_through_although_what_goes_with_it_finds_no_space() {
    let options = EtcdOptions::new()
        .own()
        .with_argument("--quota-backend-bytes=1048576");
    let server = match servers::etcd(options) {
        Ok(server) => server,
        Err(skip) => return eprintln!("{skip}"),
    };
    let mut kv = etcd_client::Client::connect([server.endpoint()], None)
        .await
        .unwrap()
        .kv_client();
    kv.put("held", "", None).await.unwrap();
    while kv.put("ballast", vec![0; 100 * 1024], None).await.is_ok() {}
    let batcher = Batcher::new(Tasks::current());
    let put = request(
        "new",
        TxnOp::put("new", "", None),
        Merging::OnePerPrefix("new".to_owned()),
    );
    let removal = request("held", TxnOp::delete("held", None), Merging::Any);
    let (refused, removed) = tokio::join!(
        batcher.txn(kv.clone(), put),
        batcher.txn(kv.clone(), removal)
    );
    assert_eq!(
        Failure::of(refused.unwrap_err(), "").error.kind(),
        lock_core::ErrorKind::Exhausted
    );
    let removed = removed.unwrap();
    assert!(removed.succeeded && removed.indeterminate, "{removed:?}");
    assert_eq!(kv.get("held", None).await.unwrap().count(), 0);
}

#[tokio::test]
async fn no_more_than_the_server_takes_and_nothing_for_nobody() {
    let jobs: Vec<_> = (0..MAX_MERGED + 5).map(|_| "-").collect();
    let (mut state, mut waiting) = queued(&unconnected().await, &jobs).await;
    waiting.remove(0);
    assert_eq!((state.take().len(), state.take().len()), (MAX_MERGED, 4));
}
