//! Settings and permissions of a Redis or Valkey server.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use polylock::LockUrl;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo,
    IntoConnectionInfo, RedisConnectionInfo, RedisError, TlsCertificates,
    aio::MultiplexedConnection, cmd,
};

use super::{
    LIMIT,
    report::{Report, time},
};

pub(super) async fn examine(url: &LockUrl, probe: &str, report: &mut Report) {
    for endpoint in url.endpoints() {
        let authority = endpoint.authority(6379);
        let host = endpoint.host.trim_matches(['[', ']']);
        let connected = connect(url, host, endpoint.port.unwrap_or(6379)).await;
        let mut connection = match connected {
            Ok(connection) => connection,
            Err(error) => {
                report.bad(format!("settings {authority}"), error);
                continue;
            }
        };
        clock(&mut connection, &authority, report).await;
        settings(&mut connection, &authority, report).await;
        permissions(&mut connection, url, probe, &authority, report).await;
    }
}

async fn connect(url: &LockUrl, host: &str, port: u16) -> Result<MultiplexedConnection, String> {
    let is_encrypted = url.scheme().starts_with("rediss");
    let address = match is_encrypted {
        true => ConnectionAddr::TcpTls {
            host: host.to_owned(),
            port,
            insecure: false,
            tls_params: None,
        },
        false => ConnectionAddr::Tcp(host.to_owned(), port),
    };
    let (user, password) = url.credentials("LOCK_REDIS");
    let mut login = RedisConnectionInfo::default().set_db(url.path().parse().unwrap_or(0));
    if let Some(user) = user {
        login = login.set_username(user);
    }
    if let Some(password) = password {
        login = login.set_password(password.expose());
    }
    let text = |error: RedisError| error.to_string();
    let info: ConnectionInfo = address.into_connection_info().map_err(text)?;
    let info = info.set_redis_settings(login);
    let client = match is_encrypted {
        true => Client::build_with_tls(info, certificates(url)?),
        false => Client::open(info),
    };
    let limits = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(LIMIT))
        .set_response_timeout(Some(LIMIT));
    let client = client.map_err(text)?;
    let connected = client.get_multiplexed_async_connection_with_config(&limits);
    connected.await.map_err(text)
}

fn certificates(url: &LockUrl) -> Result<TlsCertificates, String> {
    let pem = url
        .tls_pem("LOCK_REDIS")
        .map_err(|error| error.to_string())?;
    Ok(TlsCertificates {
        client_tls: pem.identity.map(|(cert, key)| ClientTlsConfig {
            client_cert: cert.into_bytes(),
            client_key: key.expose().as_bytes().to_vec(),
        }),
        root_cert: pem.ca.map(String::into_bytes),
    })
}

/// A difference that a lock's expiry would show.
const LARGE_OFFSET: Duration = Duration::from_millis(500);

async fn clock(connection: &mut MultiplexedConnection, authority: &str, report: &mut Report) {
    let began = Instant::now();
    let told: Result<(u64, u32), _> = cmd("TIME").query_async(connection).await;
    let Ok((seconds, micros)) = told else {
        return;
    };
    let took = began.elapsed();
    let server = Duration::new(seconds, micros.saturating_mul(1_000));
    let here = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let here = here.saturating_sub(took / 2);
    let offset = here.abs_diff(server);
    let check = format!("clock {authority}");
    let shown = format!(
        "differs from this machine's by {}, give or take {}",
        time(offset),
        time(took / 2)
    );
    match offset > LARGE_OFFSET + took / 2 {
        true => report.warn(check, format!("{shown}; fencing tokens follow the server's clock, and after a failover locks end by the new server's: run NTP")),
        false => report.good(check, shown),
    }
}

async fn settings(connection: &mut MultiplexedConnection, authority: &str, report: &mut Report) {
    let info: Result<String, RedisError> = cmd("INFO").query_async(connection).await;
    let Ok(info) = info else {
        return report.note(format!("settings {authority}"), "this user may not ask for them (+info); look at maxmemory-policy, appendonly and the replicas yourself");
    };
    let value = |key: &str| {
        info.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
    };
    let version = value("valkey_version")
        .or(value("redis_version"))
        .unwrap_or("of unknown version");
    report.good(format!("version {authority}"), version);
    let check = format!("settings {authority}");
    let most = value("maxmemory").unwrap_or("0");
    match value("maxmemory_policy").unwrap_or("unknown") {
        "noeviction" => report.good(&*check, "nothing is evicted (maxmemory-policy noeviction)"),
        policy if most == "0" => report.warn(&*check, format!("maxmemory-policy is {policy}: as soon as maxmemory is set, locks may be evicted while they are held; use noeviction")),
        policy => report.bad(&*check, format!("maxmemory-policy is {policy}: locks may be evicted while they are held; use noeviction")),
    }
    if value("role") != Some("master") {
        report.bad(
            &*check,
            "the server is a replica, and takes no locks; give its master",
        );
    }
    if value("aof_enabled") == Some("0") {
        report.warn(&*check, "appendonly is off: a restart forgets locks that are held; use appendonly yes with appendfsync always, or accept it");
    }
    if value("loading") == Some("1") {
        report.warn(&*check, "the server still loads its data");
    }
}

/// What a restricted user needs, as commands that change nothing but the probe's keys.
fn requests(key: &str, hash: &str, queue: &str) -> Vec<(&'static str, Cmd)> {
    let on = |name: &str, key: &str, arguments: &[&str]| {
        let mut request = cmd(name);
        request.arg(key).arg(arguments);
        request
    };
    let plain = |name: &str, arguments: &[&str]| {
        let mut request = cmd(name);
        request.arg(arguments);
        request
    };
    vec![
        ("eval", plain("EVAL", &["return 1", "1", key])),
        ("evalsha", plain("EVALSHA", &["0", "1", key])),
        ("set", on("SET", key, &["probe", "NX", "PX", "1000"])),
        ("get", on("GET", key, &[])),
        ("exists", on("EXISTS", key, &[])),
        ("pexpire", on("PEXPIRE", key, &["1000"])),
        ("pttl", on("PTTL", key, &[])),
        ("type", on("TYPE", key, &[])),
        ("hset", on("HSET", hash, &["token", "1"])),
        ("hincrby", on("HINCRBY", hash, &["token", "1"])),
        ("hget", on("HGET", hash, &["token"])),
        ("hmget", on("HMGET", hash, &["token"])),
        ("hdel", on("HDEL", hash, &["token"])),
        ("zadd", on("ZADD", queue, &["1", "probe"])),
        ("zrange", on("ZRANGE", queue, &["0", "0"])),
        ("zrank", on("ZRANK", queue, &["probe"])),
        ("zscore", on("ZSCORE", queue, &["probe"])),
        ("zrem", on("ZREM", queue, &["probe"])),
        ("zpopmin", on("ZPOPMIN", queue, &[])),
        ("del", plain("DEL", &[key, hash, queue])),
        ("time", cmd("TIME")),
        ("ping", cmd("PING")),
        ("client|tracking", plain("CLIENT", &["TRACKING", "OFF"])),
        ("scan (for lists)", plain("SCAN", &["0", "COUNT", "1"])),
    ]
}

async fn permissions(
    connection: &mut MultiplexedConnection,
    url: &LockUrl,
    probe: &str,
    authority: &str,
    report: &mut Report,
) {
    let namespace = url.param("namespace").unwrap_or_default();
    let separator = match namespace.ends_with(char::is_alphanumeric) {
        true => ":",
        false => "",
    };
    // One slot of a cluster for all.
    let key = format!("{namespace}{separator}{{{probe}}}");
    let [hash, queue] = ["h", "q"].map(|kind| format!("{key}\u{1f}{kind}"));
    let mut missing = Vec::new();
    for (permission, request) in requests(&key, &hash, &queue) {
        let answer: Result<redis::Value, _> = request.query_async(connection).await;
        if let Err(error) = answer
            && error.code() == Some("NOPERM")
        {
            let detail = error.detail().unwrap_or_default();
            match detail.contains("key") {
                true => missing.push(format!(
                    "the keys ~{namespace}{separator}* (for {permission})"
                )),
                false => missing.push(format!("+{permission}")),
            }
        }
    }
    let check = format!("permissions {authority}");
    match missing.is_empty() {
        true => report.good(check, "all that locks need"),
        false => report.bad(
            check,
            format!("missing: {}; see ACL SETUSER", missing.join(", ")),
        ),
    }
}
