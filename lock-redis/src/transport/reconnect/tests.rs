use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::{net::TcpListener, task::JoinSet};

use super::*;

#[tokio::test]
async fn a_server_that_fails_is_asked_seldom_however_many_want_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            count.fetch_add(1, Relaxed);
        }
    });
    let info = Client::open(url).unwrap().get_connection_info().clone();
    let timeouts = Timeouts {
        connect: Duration::from_secs(1),
        response: Duration::from_secs(1),
    };
    let link = Arc::new(Link::new(
        Upstream::Fixed(info),
        timeouts,
        Tasks::current(),
        None,
        Arc::default(),
    ));
    let start = Instant::now();
    let mut names = JoinSet::new();
    for _ in 0..100 {
        let link = Arc::clone(&link);
        names.spawn(async move {
            for _ in 0..20 {
                link.connection().await.unwrap_err();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }
    names.join_all().await;
    // Short pauses at first, then two or three a second.
    let most = start.elapsed().as_millis() / 300 + 5;
    assert!(
        (2..=most).contains(&(asked.load(Relaxed) as u128)),
        "{asked:?} times in {:?}",
        start.elapsed()
    );
}
