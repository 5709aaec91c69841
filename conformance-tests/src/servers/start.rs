use std::{io, path::PathBuf, time::Duration};

#[cfg(feature = "docker")]
use super::docker::Container;
use super::{
    EtcdCluster, EtcdOptions, RedisCluster, RedisOptions, RedisSentinel, Server, Skip,
    process::Process,
    service::{About, Service},
    source::{self, Source, source},
};

/// Starts an etcd server, or finds one.
///
/// # Errors
///
/// If there is none to be had here.
///
/// # Panics
///
/// If one does not start, or if there is none and [`REQUIRE_SERVERS`](crate::REQUIRE_SERVERS) is
/// set.
pub fn etcd(options: EtcdOptions) -> Result<Server, Skip> {
    server(Box::new(options))
}

/// Starts a cluster of `size` etcd members and waits until it is healthy. It has a network of its
/// own between the members and to its clients.
///
/// The members are always programs of this machine: neither a server that runs already nor Docker
/// will do.
///
/// # Errors
///
/// If there is no such program here.
///
/// # Panics
///
/// If it does not become healthy, or if it cannot be had and
/// [`REQUIRE_SERVERS`](crate::REQUIRE_SERVERS) is set.
pub fn etcd_cluster(options: EtcdOptions, size: usize) -> Result<EtcdCluster, Skip> {
    let program = program(options.about())?;
    match EtcdCluster::start_new(&options, size, &program) {
        Ok(cluster) => Ok(cluster),
        Err(error) => panic!("cannot start a cluster of {size} etcd members: {error}"),
    }
}

/// Starts a Redis server, or finds one.
///
/// # Errors
///
/// If there is none to be had here.
///
/// # Panics
///
/// If one does not start, or if there is none and [`REQUIRE_SERVERS`](crate::REQUIRE_SERVERS) is
/// set.
pub fn redis(options: RedisOptions) -> Result<Server, Skip> {
    server(Box::new(options))
}

/// Starts a cluster of Redis servers and waits until it is healthy. All slots are on `masters`
/// servers; `replicas` more servers replicate one of these each.
///
/// The servers are always programs of this machine: neither a server that runs already nor Docker
/// will do.
///
/// # Errors
///
/// If there is no such program here.
///
/// # Panics
///
/// If it does not become healthy, or if it cannot be had and
/// [`REQUIRE_SERVERS`](crate::REQUIRE_SERVERS) is set.
pub fn redis_cluster(
    options: RedisOptions,
    masters: usize,
    replicas: usize,
) -> Result<RedisCluster, Skip> {
    let program = program(options.about())?;
    match RedisCluster::start_new(&options, masters, replicas, &program) {
        Ok(cluster) => Ok(cluster),
        Err(error) => panic!(
            "cannot start a cluster of {masters} Redis servers and {replicas} replicas: {error}"
        ),
    }
}

/// Starts a Redis server with `replicas`, and with sentinels. A majority of the sentinels must miss
/// the server for `down_after` before they make a replica the master.
///
/// Otherwise as [`redis_cluster`].
///
/// # Errors
///
/// If there is no such program here.
///
/// # Panics
///
/// If they do not find each other, or if they cannot be had and
/// [`REQUIRE_SERVERS`](crate::REQUIRE_SERVERS) is set.
pub fn redis_sentinel(
    options: RedisOptions,
    replicas: usize,
    sentinels: usize,
    down_after: Duration,
) -> Result<RedisSentinel, Skip> {
    let program = program(options.about())?;
    match RedisSentinel::start_new(&options, replicas, sentinels, down_after, &program) {
        Ok(servers) => Ok(servers),
        Err(error) => panic!(
            "cannot start a Redis server with {replicas} replicas and {sentinels} sentinels: {error}"
        ),
    }
}

/// Finds the program itself, for servers that belong together.
fn program(about: &About) -> Result<PathBuf, Skip> {
    let About {
        program,
        program_variable,
        package,
        ..
    } = about;
    let missing = || {
        format!(
            "a cluster needs the program {program} itself; install Debian's {package} or set {program_variable}"
        )
    };
    source::program(program_variable, program)
        .and_then(|found| found.ok_or_else(missing))
        .map_err(Skip::new)
}

/// Says why [`etcd`] would skip, without starting a server: for a runner that lists its cases
/// first.
///
/// # Panics
///
/// If it would skip and [`REQUIRE_SERVERS`](crate::REQUIRE_SERVERS) is set.
#[must_use]
pub fn etcd_obstacle(options: &EtcdOptions) -> Option<Skip> {
    obstacle(options)
}

/// Says why [`redis`] would skip, without starting a server: for a runner that lists its cases
/// first.
///
/// # Panics
///
/// If it would skip and [`REQUIRE_SERVERS`](crate::REQUIRE_SERVERS) is set.
#[must_use]
pub fn redis_obstacle(options: &RedisOptions) -> Option<Skip> {
    obstacle(options)
}

fn obstacle(service: &dyn Service) -> Option<Skip> {
    source(service.about(), service.is_default())
        .err()
        .map(Skip::new)
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
