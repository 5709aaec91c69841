//! The proxy and the fake servers, with plain TCP.
#![cfg(feature = "servers")]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests are tests, too"
)]

use std::{io, net::SocketAddr, time::Duration};

use lock_conformance::servers::{FakeServer, TcpProxy, Trouble};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, timeout},
};

const LIMIT: Duration = Duration::from_secs(20);
/// Nothing is under way that could end the silence, so that a slow machine cannot make this too
/// short.
const SILENCE: Duration = Duration::from_millis(200);

/// Echoes each chunk, and reports it.
async fn echo_server() -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (received, reports) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(echo(stream, received.clone()));
        }
    });
    (address, reports)
}

async fn echo(mut stream: TcpStream, received: mpsc::UnboundedSender<String>) -> io::Result<()> {
    let mut buffer = [0; 1024];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let _ = received.send(String::from_utf8_lossy(&buffer[..length]).into_owned());
        stream.write_all(&buffer[..length]).await?;
    }
}

async fn proxied() -> (TcpProxy, mpsc::UnboundedReceiver<String>) {
    let (server, reports) = echo_server().await;
    (TcpProxy::start(server).await.unwrap(), reports)
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

async fn read(stream: &mut TcpStream, length: usize) -> io::Result<String> {
    let mut buffer = vec![0; length];
    timeout(LIMIT, stream.read_exact(&mut buffer))
        .await
        .map_err(io::Error::other)??;
    String::from_utf8(buffer).map_err(io::Error::other)
}

async fn ask(stream: &mut TcpStream, text: &str) -> io::Result<String> {
    stream.write_all(text.as_bytes()).await?;
    read(stream, text.len()).await
}

async fn is_silent(stream: &mut TcpStream) -> bool {
    timeout(SILENCE, stream.read_u8()).await.is_err()
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 64];
    match timeout(LIMIT, stream.read(&mut buffer))
        .await
        .expect("neither data nor an end")
    {
        Ok(length) => length == 0,
        Err(_) => true,
    }
}

#[tokio::test]
async fn forwards_both_ways_and_the_end() {
    let (proxy, _reports) = proxied().await;
    let mut stream = connect(proxy.address()).await;
    assert_eq!(ask(&mut stream, "one").await.unwrap(), "one");
    stream.write_all(b"two").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read(&mut stream, 3).await.unwrap(), "two");
    assert!(is_closed(&mut stream).await);
}

#[tokio::test]
async fn forwards_much_and_in_order() {
    let (proxy, mut reports) = proxied().await;
    tokio::spawn(async move { while reports.recv().await.is_some() {} });
    let (mut reader, mut writer) = connect(proxy.address()).await.into_split();
    let sent: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
    let copy = sent.clone();
    tokio::spawn(async move { writer.write_all(&copy).await });
    let mut received = vec![0; sent.len()];
    timeout(LIMIT, reader.read_exact(&mut received))
        .await
        .unwrap()
        .unwrap();
    assert!(received == sent);
}

#[tokio::test]
async fn a_cut_closes_all_and_serves_the_next() {
    let (proxy, _reports) = proxied().await;
    let mut streams = [
        connect(proxy.address()).await,
        connect(proxy.address()).await,
    ];
    for stream in &mut streams {
        assert_eq!(ask(stream, "a").await.unwrap(), "a");
    }
    proxy.cut().await;
    for stream in &mut streams {
        assert!(is_closed(stream).await);
    }
    assert_eq!(
        ask(&mut connect(proxy.address()).await, "b").await.unwrap(),
        "b"
    );
}

#[tokio::test]
async fn a_blackhole_holds_back_and_keeps_everything() {
    let (proxy, mut reports) = proxied().await;
    let mut old = connect(proxy.address()).await;
    assert_eq!(ask(&mut old, "a").await.unwrap(), "a");
    assert_eq!(reports.recv().await.unwrap(), "a");
    proxy.set(Trouble::Blackhole);
    let mut new = connect(proxy.address()).await;
    old.write_all(b"b").await.unwrap();
    new.write_all(b"c").await.unwrap();
    assert!(is_silent(&mut old).await && is_silent(&mut new).await);
    assert!(reports.try_recv().is_err(), "the server got nothing");
    proxy.set(Trouble::None);
    assert_eq!(read(&mut old, 1).await.unwrap(), "b");
    assert_eq!(read(&mut new, 1).await.unwrap(), "c");
}

#[tokio::test]
async fn dropped_replies_follow_requests_that_took_effect() {
    let (proxy, mut reports) = proxied().await;
    let mut lossy = connect(proxy.address()).await;
    let mut idle = connect(proxy.address()).await;
    assert_eq!(ask(&mut lossy, "a").await.unwrap(), "a");
    assert_eq!(ask(&mut idle, "b").await.unwrap(), "b");
    proxy.set(Trouble::DropReplies);
    lossy.write_all(b"c").await.unwrap();
    while reports.recv().await.unwrap() != "c" {}
    assert!(is_silent(&mut lossy).await);
    proxy.set(Trouble::None);
    assert!(
        is_closed(&mut lossy).await,
        "a stream with a gap cannot go on"
    );
    assert_eq!(
        ask(&mut idle, "d").await.unwrap(),
        "d",
        "one without a gap can"
    );
}

#[tokio::test]
async fn a_delay_comes_twice_for_a_round_trip_but_not_per_chunk() {
    const DELAY: Duration = Duration::from_millis(200);
    let (proxy, _reports) = proxied().await;
    let mut stream = connect(proxy.address()).await;
    proxy.set(Trouble::Delay(DELAY));
    let start = Instant::now();
    assert_eq!(ask(&mut stream, "a").await.unwrap(), "a");
    assert!(start.elapsed() >= 2 * DELAY);
    proxy.set(Trouble::None);
    assert_eq!(ask(&mut stream, "b").await.unwrap(), "b");
}

#[tokio::test]
async fn refuses_old_and_new_until_it_is_over() {
    let (proxy, _reports) = proxied().await;
    let mut old = connect(proxy.address()).await;
    assert_eq!(ask(&mut old, "a").await.unwrap(), "a");
    proxy.set(Trouble::Refuse);
    assert!(is_closed(&mut old).await);
    assert!(is_closed(&mut connect(proxy.address()).await).await);
    proxy.set(Trouble::None);
    assert_eq!(
        ask(&mut connect(proxy.address()).await, "b").await.unwrap(),
        "b"
    );
}

#[tokio::test]
async fn a_blackhole_can_turn_into_a_refusal() {
    let (proxy, _reports) = proxied().await;
    proxy.set(Trouble::Blackhole);
    let mut stream = connect(proxy.address()).await;
    assert!(is_silent(&mut stream).await);
    proxy.set(Trouble::Refuse);
    assert!(is_closed(&mut stream).await);
}

#[tokio::test]
async fn a_server_that_is_away_ends_the_connection() {
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let proxy = TcpProxy::start(gone).await.unwrap();
    assert!(is_closed(&mut connect(proxy.address()).await).await);
}

#[tokio::test]
async fn ends_when_dropped() {
    let (proxy, _reports) = proxied().await;
    let mut stream = connect(proxy.address()).await;
    assert_eq!(ask(&mut stream, "a").await.unwrap(), "a");
    let address = proxy.address();
    drop(proxy);
    assert!(is_closed(&mut stream).await);
    assert_refused(address).await;
}

#[tokio::test]
async fn garbage_greets_and_answers() {
    let server = FakeServer::garbage().await.unwrap();
    let mut stream = connect(server.address()).await;
    let mut greeting = [0; 8];
    timeout(LIMIT, stream.read_exact(&mut greeting))
        .await
        .unwrap()
        .unwrap();
    assert!(String::from_utf8(greeting.to_vec()).is_err());
    stream.write_all(b"PING\r\n").await.unwrap();
    timeout(LIMIT, stream.read_exact(&mut greeting))
        .await
        .unwrap()
        .unwrap();
    let address = server.address();
    drop(server);
    assert_refused(address).await;
}

#[tokio::test]
async fn silence_takes_everything_and_says_nothing() {
    let server = FakeServer::silent().await.unwrap();
    let mut stream = connect(server.address()).await;
    stream.write_all(&[b'x'; 10_000]).await.unwrap();
    assert!(is_silent(&mut stream).await);
    drop(server);
    assert!(is_closed(&mut stream).await);
}

async fn assert_refused(address: SocketAddr) {
    let refused = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, refused)
        .await
        .expect("the listener is still there");
}
