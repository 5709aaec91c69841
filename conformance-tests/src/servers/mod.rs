//! Real servers for tests.
//!
//! ```no_run
//! use lock_conformance::servers::{self, EtcdOptions};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let server = servers::etcd(EtcdOptions::new().own())?;
//! println!("listens at {}", server.url());
//! server.freeze()?;
//! server.thaw()?;
//! server.restart().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Clusters
//!
//! [`etcd_cluster`] starts several etcd members. Each link to another member or to clients can be
//! disturbed on its own, without root. [`redis_cluster`] and [`redis_sentinel`] do the same for
//! Redis, but only for the links to clients. With TLS, these Redis servers also use it among
//! themselves.
//!
//! # Sources of a server
//!
//! The first of these that the machine has is used:
//!
//! | | etcd | Redis |
//! |---|---|---|
//! | a running server, by its URL | `LOCK_TEST_ETCD` | `LOCK_TEST_REDIS` |
//! | a program, by its path | `LOCK_TEST_ETCD_BIN` | `LOCK_TEST_REDIS_BIN` |
//! | a Docker image, by its name (feature `docker`) | `LOCK_TEST_ETCD_IMAGE` | `LOCK_TEST_REDIS_IMAGE` |
//! | a program on `PATH` | `etcd` | `redis-server` |
//! | the image `lock-test-servers:local`, which `scripts/test-image.sh` builds | `etcd` | `redis-server` |
//!
//! A running server is used only if the options are the default ones: it cannot be frozen, killed
//! or restarted, and it is shared with other tests, so use names that no other test uses. If there
//! is no source, the caller gets a [`Skip`] with the reason; with `LOCK_TEST_REQUIRE_SERVERS=1`
//! that is a panic instead. A server that could be started but does not start is always a panic,
//! with the end of its log.

mod certificates;
#[cfg(feature = "docker")]
mod docker;
mod etcd;
mod etcd_cluster;
mod etcd_member;
mod fake_server;
mod http;
mod peer_network;
mod poll;
mod ports;
mod process;
mod process_state;
mod pump;
mod redis;
mod redis_cluster;
mod redis_group;
mod redis_sentinel;
mod resolve;
mod resp;
mod server;
mod service;
mod skip;
mod source;
mod start;
mod supervisor;
mod tcp_proxy;
pub mod tools;

pub use certificates::Certificates;
pub use etcd::EtcdOptions;
pub use etcd_cluster::EtcdCluster;
pub use fake_server::FakeServer;
pub use redis::RedisOptions;
pub use redis_cluster::RedisCluster;
pub use redis_sentinel::RedisSentinel;
pub use server::Server;
pub use skip::Skip;
pub use start::{
    etcd, etcd_cluster, etcd_obstacle, redis, redis_cluster, redis_obstacle, redis_sentinel,
};
pub use tcp_proxy::{TcpProxy, Trouble};
