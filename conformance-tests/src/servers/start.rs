use std::{io, path::PathBuf, time::Duration};

#[cfg(feature = "docker")]
use super::docker::Container;
use super::{
    EtcdCluster, EtcdOptions, RedisCluster, RedisOptions, RedisSentinel, Server, Skip,
    process::Process,
    service::{About, Service},
    source::{self, Source, source},
};

/// An etcd server.
///
/// # Errors
///
/// If there is none to be had here.
///
/// # Panics
///
/// If one does not start, or if there is none and [`REQUIRE_SERVERS`](crate::REQUIRE_SERVERS) is set.
pub fn etcd(options: EtcdOptions) -> Result<Server, Skip> {
    server(Box::new(options))
}

/// A cluster of `size` etcd members, healthy, with a network of its own between them and to its clients.
///
/// The members are always programs of this machine: one that runs already, or Docker, does not serve.
///
/// # Errors
///
/// If there is no such program here.
///
/// # Panics
///
/// If it does not get healthy, or if it cannot be had and [`REQUIRE_SERVERS`](crate::REQUIRE_SERVERS) is set.
pub fn etcd_cluster(options: EtcdOptions, size: usize) -> Result<EtcdCluster, Skip> {
    let program = program(options.about())?;
    match EtcdCluster::start_new(&options, size, &program) {
        Ok(cluster) => Ok(cluster),
        Err(error) => panic!("cannot start a cluster of {size} etcd members: {error}"),
    }
}

/// A Redis server.
///
/// # Errors
///
/// If there is none to be had here.
///
/// # Panics
///
/// If one does not start, or if there is none and [`REQUIRE_SERVERS`](crate::REQUIRE_SERVERS) is set.
pub fn redis(options: RedisOptions) -> Result<Server, Skip> {
    server(Box::new(options))
}

/// A cluster of Redis servers, healthy, with all slots on `masters` servers, and `replicas` more that replicate one of them
/// each.
///
/// The servers are always programs of this machine: one that runs already, or Docker, does not serve.
///
/// # Errors
///
/// If there is no such program here.
///
/// # Panics
///
/// If it does not get healthy, or if it cannot be had and [`REQUIRE_SERVERS`](crate::REQUIRE_SERVERS) is set.
pub fn redis_cluster(options: RedisOptions, masters: usize, replicas: usize) -> Result<RedisCluster, Skip> {
    let program = program(options.about())?;
    match RedisCluster::start_new(&options, masters, replicas, &program) {
        Ok(cluster) => Ok(cluster),
        Err(error) => panic!("cannot start a cluster of {masters} Redis servers and {replicas} replicas: {error}"),
    }
}

/// A Redis server with `replicas`, and sentinels, of which a majority must miss it for `down_after` until they make a replica
/// the master.
///
/// As [`redis_cluster`] otherwise.
///
/// # Errors
///
/// If there is no such program here.
///
/// # Panics
///
/// If they do not find each other, or if they cannot be had and [`REQUIRE_SERVERS`](crate::REQUIRE_SERVERS) is set.
pub fn redis_sentinel(options: RedisOptions, replicas: usize, sentinels: usize, down_after: Duration) -> Result<RedisSentinel, Skip> {
    let program = program(options.about())?;
    match RedisSentinel::start_new(&options, replicas, sentinels, down_after, &program) {
        Ok(servers) => Ok(servers),
        Err(error) => panic!("cannot start a Redis server with {replicas} replicas and {sentinels} sentinels: {error}"),
    }
}

/// The program itself, for servers that belong together.
fn program(about: &About) -> Result<PathBuf, Skip> {
    let About { program, program_variable, package, .. } = about;
    let missing = || format!("a cluster needs the program {program} itself; install Debian's {package} or set {program_variable}");
    source::program(program_variable, program).and_then(|found| found.ok_or_else(missing)).map_err(Skip::new)
}

/// Why [`etcd`] would skip, without starting one: for a runner that lists its cases first.
///
/// # Panics
///
/// If it would skip and [`REQUIRE_SERVERS`](crate::REQUIRE_SERVERS) is set.
#[must_use]
pub fn etcd_obstacle(options: &EtcdOptions) -> Option<Skip> {
    obstacle(options)
}

/// Why [`redis`] would skip, without starting one: for a runner that lists its cases first.
///
/// # Panics
///
/// If it would skip and [`REQUIRE_SERVERS`](crate::REQUIRE_SERVERS) is set.
#[must_use]
pub fn redis_obstacle(options: &RedisOptions) -> Option<Skip> {
    obstacle(options)
}

fn obstacle(service: &dyn Service) -> Option<Skip> {
    source(service.about(), service.is_default()).err().map(Skip::new)
}

fn server(service: Box<dyn Service>) -> Result<Server, Skip> {
    let about = service.about();
    let source = source(about, service.is_default()).map_err(Skip::new)?;
    match start(service, &source) {
        Ok(server) => Ok(server),
        Err(error) => panic!("cannot start {} from {source:?}: {error}", about.name),
    }
}

fn start(service: Box<dyn Service>, source: &Source) -> io::Result<Server> {
    match source {
        Source::Url(url) => Ok(Server::external(service.scheme(), url)),
        Source::Program(program) => Process::start_new(service, program).map(Server::process),
        #[cfg(feature = "docker")]
        Source::Image(image) => Container::start_new(service, image).map(Server::container),
    }
}
