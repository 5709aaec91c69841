//! Settings and permissions of etcd.

use etcd_client::{
    AlarmAction, AlarmType, Certificate, Client, Compare, CompareOp, ConnectOptions, Error,
    GetOptions, Identity, StatusResponse, TlsOptions, Txn, TxnOp,
};
use polylock::LockUrl;

use super::{LIMIT, http, report::Report};

/// What one lock cycle leaves until the next compaction, in bytes.
const BYTES_PER_CYCLE: f64 = 218.0;

/// A store below this revision tells nothing about compaction yet.
const YOUNG: i64 = 1_000;

/// A quota below this is filled by a million cycles.
const SMALL_QUOTA: f64 = 256.0 * 1024.0 * 1024.0;

pub(super) async fn examine(url: &LockUrl, probe: &str, report: &mut Report) {
    let options = match options(url) {
        Ok(options) => options,
        Err(error) => return report.bad("settings", error),
    };
    let namespace = url.param("namespace").unwrap_or(url.path());
    let prefix = match namespace.trim_matches('/') {
        "" => String::new(),
        namespace => format!("{namespace}/"),
    };
    let key = format!("{prefix}{probe}/0");
    if url.endpoints().len().is_multiple_of(2) {
        report.warn(
            "members",
            "an even number of endpoints; give all members, of which there should be 3 or 5",
        );
    }
    for (at, endpoint) in url.endpoints().iter().enumerate() {
        let authority = endpoint.authority(2379);
        let scheme = if url.scheme() == "etcds" {
            "https"
        } else {
            "http"
        };
        let address = format!("{scheme}://{authority}");
        let mut client = match Client::connect([address], Some(options.clone())).await {
            Ok(client) => client,
            Err(error) => {
                report.bad(format!("status {authority}"), error.to_string());
                continue;
            }
        };
        member(&mut client, &authority, scheme == "http", &key, report).await;
        if at == 0 {
            permissions(&mut client, &prefix, &key, report).await;
            alarms(&mut client, report).await;
        }
    }
    report.note(
        "clock",
        "etcd tells no clock; its leases do not depend on clocks that agree",
    );
}

fn options(url: &LockUrl) -> Result<ConnectOptions, String> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(LIMIT)
        .with_timeout(LIMIT);
    if let (Some(user), Some(password)) = url.credentials("LOCK_ETCD") {
        options = options.with_user(user, password.expose());
    }
    if url.scheme() == "etcds" {
        let pem = url
            .tls_pem("LOCK_ETCD")
            .map_err(|error| error.to_string())?;
        let mut tls = match &pem.ca {
            Some(ca) => TlsOptions::new().ca_certificate(Certificate::from_pem(ca)),
            None => TlsOptions::new().with_enabled_roots(),
        };
        if let Some((cert, key)) = &pem.identity {
            tls = tls.identity(Identity::from_pem(cert, key.expose()));
        }
        options = options.with_tls(tls);
    }
    Ok(options)
}

async fn member(
    client: &mut Client,
    authority: &str,
    is_plain: bool,
    key: &str,
    report: &mut Report,
) {
    let status = match client.status().await {
        Ok(status) => status,
        Err(error) => return report.bad(format!("status {authority}"), error.to_string()),
    };
    let check = format!("status {authority}");
    report.good(
        &*check,
        format!("etcd {}, {} MiB", status.version(), status.db_size() >> 20),
    );
    if status.is_learner() {
        report.warn(&*check, "a learner, which serves no locks; leave it out");
    }
    if status.leader() == 0 {
        report.bad(
            &*check,
            "the member has no leader; look at its log and at the other members",
        );
    }
    for error in status.errors() {
        report.warn(&*check, error);
    }
    let metrics = match is_plain {
        true => http::page(authority, "/metrics").await,
        false => None,
    };
    quota(&status, metrics.as_deref(), authority, report);
    compaction(client, &status, is_plain.then_some(authority), key, report).await;
}

fn quota(status: &StatusResponse, metrics: Option<&str>, authority: &str, report: &mut Report) {
    let check = format!("quota {authority}");
    let told = Some(status.db_size_quota() as f64).filter(|quota| *quota > 0.0);
    let told = told.or_else(|| http::metric(metrics?, "etcd_server_quota_backend_bytes"));
    let Some(quota) = told else {
        return report.note(check, "not told to this client; see --quota-backend-bytes, and alert on etcd_mvcc_db_total_size_in_bytes");
    };
    let shown = format!("{:.0} MiB", quota / 1_048_576.0);
    if status.db_size() as f64 > quota * 0.8 {
        report.bad(check, format!("{shown}, more than 80 % used: compact and defragment now; a full etcd grants no locks"));
    } else if quota < SMALL_QUOTA {
        let cycles = quota / BYTES_PER_CYCLE / 1e6;
        report.warn(check, format!("{shown}, filled by {cycles:.1} million lock cycles between two compactions; raise --quota-backend-bytes"));
    } else {
        report.good(check, shown);
    }
}

async fn compaction(
    client: &mut Client,
    status: &StatusResponse,
    authority: Option<&str>,
    key: &str,
    report: &mut Report,
) {
    const ADVICE: &str = "each lock cycle keeps 218 bytes until compacted; set --auto-compaction-retention, such as 10m with --auto-compaction-mode=periodic";
    let revision = status
        .header()
        .map_or(0, etcd_client::ResponseHeader::revision);
    // The beginning of the store is there for as long as it has never been compacted.
    let first = client
        .get(key, Some(GetOptions::new().with_revision(1)))
        .await;
    if matches!(&first, Err(Error::GRpcStatus(status)) if status.message().contains("compacted")) {
        return report.good("compaction", "the store has been compacted");
    }
    let variables = match authority {
        Some(authority) => http::page(authority, "/debug/vars").await,
        None => None,
    };
    let is_asked_for = variables.as_deref().map(asks_for_compaction);
    match is_asked_for {
        Some(true) => report.good("compaction", "automatic, as the server was started"),
        Some(false) => report.warn(
            "compaction",
            format!("not automatic, as the server was started, and never done; {ADVICE}"),
        ),
        None if revision > YOUNG => report.warn(
            "compaction",
            format!("never done in {revision} revisions; {ADVICE}"),
        ),
        None => report.note(
            "compaction",
            format!("the store is too young to tell; {ADVICE}"),
        ),
    }
}

/// Looks at the server's command line. A configuration file may ask for it as well.
fn asks_for_compaction(variables: &str) -> bool {
    let variables: serde_json::Value = serde_json::from_str(variables).unwrap_or_default();
    let line = variables["cmdline"].to_string();
    ["auto-compaction-retention", "config-file"]
        .iter()
        .any(|option| line.contains(option))
}

/// Asks for each permission by a request that changes nothing.
async fn permissions(client: &mut Client, prefix: &str, key: &str, report: &mut Report) {
    let missing = |permission: &str, error: &Error| {
        format!(
            "missing permission: {permission} on keys that begin with `{prefix}` (etcdctl role grant-permission ROLE readwrite '{prefix}' --prefix=true): {error}"
        )
    };
    match client.get(key, None).await {
        Ok(_) => report.good("may read", format!("keys that begin with `{prefix}`")),
        Err(error) => report.bad("may read", missing("read", &error)),
    }
    // No key has this version, so nothing is put; that it may be put is checked all the same.
    let never = Compare::version(key, CompareOp::Less, 0);
    let put = Txn::new()
        .when([never])
        .and_then([TxnOp::put(key, "", None)]);
    match client.txn(put).await {
        Ok(_) => report.good("may write", format!("keys that begin with `{prefix}`")),
        Err(error) => report.bad("may write", missing("write", &error)),
    }
}

async fn alarms(client: &mut Client, report: &mut Report) {
    // A user without the role root may not ask.
    let Ok(alarms) = client.alarm(AlarmAction::Get, AlarmType::None, None).await else {
        return;
    };
    for alarm in alarms.alarms() {
        report.bad(
            "alarm",
            format!(
                "{:?} on member {:x}; see `etcdctl alarm list`",
                alarm.alarm(),
                alarm.member_id()
            ),
        );
    }
}
