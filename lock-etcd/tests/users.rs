//! Users with few permissions, and tokens that run out, on servers with authentication.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::time::{Duration, Instant};

use etcd_client::{Client, ConnectOptions, Permission, RoleRevokePermissionOptions};
use lock_conformance::servers::{self, Certificates, EtcdOptions, Server, TcpProxy, Trouble};
use lock_core::{
    AcquireOptions, DistributedLock, DistributedLockExt, ErrorKind, GuardState, LossReason,
    RetryAdvice,
};
use lock_etcd::{EtcdLock, EtcdLockBuilder};

mod common;
use common::{NEVER, Operator, Waiter, address, name, promptly, until};

const ROOT_PASSWORD: &str = "pw-r00t";
const PASSWORD: &str = "pw-s3cret-7";

fn options() -> EtcdOptions {
    EtcdOptions::new()
        .own()
        .with_root_password(ROOT_PASSWORD)
        .with_argument("--bcrypt-cost=4")
}

async fn root(server: &Server) -> Operator {
    let options = ConnectOptions::new()
        .with_user("root", ROOT_PASSWORD)
        .with_auto_token_refresh(true);
    Operator(
        Client::connect([server.endpoint()], Some(options))
            .await
            .unwrap(),
    )
}

/// A user whose role has one permission.
async fn user(operator: &Operator, name: &str, permission: Permission) {
    let mut auth = operator.0.auth_client();
    auth.user_add(name, PASSWORD, None).await.unwrap();
    auth.role_add(name).await.unwrap();
    auth.role_grant_permission(name, permission).await.unwrap();
    auth.user_grant_role(name, name).await.unwrap();
}

fn all_below(prefix: &str) -> Permission {
    Permission::read_write(prefix).with_prefix()
}

fn builder(endpoint: impl ToString, user: &str) -> EtcdLockBuilder {
    EtcdLock::builder([endpoint.to_string()])
        .with_ttl(NEVER)
        .with_credentials(user, PASSWORD)
}

/// All that locks need is to read and write the keys below the namespace.
#[tokio::test]
async fn a_role_for_the_namespace_is_enough_for_everything() {
    let server = or_skip!(servers::etcd(options()));
    let operator = root(&server).await;
    user(&operator, "team", all_below("team/")).await;
    let locks = builder(server.endpoint(), "team")
        .with_namespace("team")
        .connect()
        .await
        .unwrap();
    let other = builder(server.endpoint(), "team")
        .with_namespace("team")
        .connect()
        .await
        .unwrap();
    let baseline = locks.residue();
    let leases = operator.leases().await;
    let guard = locks.acquire("a").await.unwrap();
    assert!(other.try_acquire("a").await.unwrap().is_none());
    let waiter = Waiter::start(&other, "a");
    operator.until_entries("team/a", 2).await;
    assert_eq!(
        other.inspect(&name("a")).await.unwrap().unwrap().waiters,
        Some(1)
    );
    assert!(!other.force_release(&name("a")).await.unwrap().is_empty());
    assert_eq!(
        promptly("the loss", guard.lost()).await,
        LossReason::Removed
    );
    waiter.granted().await.release().await.unwrap();
    let single = locks
        .acquire_with(&name("a"), AcquireOptions::new().without_renewal())
        .await
        .unwrap();
    single.release().await.unwrap();
    drop(guard);
    until("the baseline", || async {
        locks.residue() == baseline && operator.leases().await == leases
    })
    .await;
    for locks in [locks, other] {
        locks.shutdown().await.unwrap();
    }
    assert_eq!(operator.leases().await, 0);
}

/// Without a namespace a role may be for some names only.
#[tokio::test]
async fn a_role_for_one_name_is_enough_for_that_name() {
    let server = or_skip!(servers::etcd(options()));
    let operator = root(&server).await;
    user(&operator, "jobs", all_below("jobs/")).await;
    let locks = builder(server.endpoint(), "jobs").connect().await.unwrap();
    let guard = locks.acquire("jobs").await.unwrap();
    let waiter = Waiter::start(&locks, "jobs");
    operator.until_entries("jobs", 2).await;
    guard.release().await.unwrap();
    waiter.granted().await.release().await.unwrap();
    locks
        .acquire("jobs/nightly")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let error = locks.acquire("other").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::PermissionDenied, RetryAdvice::Never),
        "{error}"
    );
    assert!(
        error.to_string().contains("`other`") && error.to_string().contains("permission denied"),
        "{error}"
    );
    for error in [
        locks.try_acquire("other").await.unwrap_err(),
        locks.inspect(&name("other")).await.unwrap_err(),
        locks.force_release(&name("other")).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    }
    assert!(operator.entries("other").await.is_empty());
}

#[tokio::test]
async fn a_namespace_that_is_not_permitted_is_refused_at_once() {
    let server = or_skip!(servers::etcd(options()));
    let operator = root(&server).await;
    user(&operator, "team", all_below("team/")).await;
    let error = builder(server.endpoint(), "team")
        .with_namespace("other")
        .connect()
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::PermissionDenied, RetryAdvice::Never),
        "{error}"
    );
    assert!(!format!("{error:?}").contains(PASSWORD));
    user(&operator, "reader", Permission::read("team/").with_prefix()).await;
    let locks = builder(server.endpoint(), "reader")
        .with_namespace("team")
        .connect()
        .await
        .unwrap();
    assert!(locks.inspect(&name("a")).await.unwrap().is_none());
    assert_eq!(
        locks.acquire("a").await.unwrap_err().kind(),
        ErrorKind::PermissionDenied
    );
    assert_eq!(
        locks.try_acquire("a").await.unwrap_err().kind(),
        ErrorKind::PermissionDenied
    );
}

/// A permission that is taken away while its user waits: the next watch is refused.
#[tokio::test]
async fn a_refused_watch_ends_the_wait_with_an_error() {
    let server = or_skip!(servers::etcd(options()));
    let operator = root(&server).await;
    user(&operator, "team", all_below("team/")).await;
    let holder = builder(server.endpoint(), "team")
        .with_namespace("team")
        .connect()
        .await
        .unwrap();
    let proxy = TcpProxy::start(address(&server)).await.unwrap();
    let locks = builder(proxy.address(), "team")
        .with_namespace("team")
        .connect()
        .await
        .unwrap();
    let guard = holder.acquire("a").await.unwrap();
    let waiter = Waiter::start(&locks, "a");
    operator.until_entries("team/a", 2).await;
    // The permissions that are left are enough to remove the entry.
    operator
        .0
        .auth_client()
        .role_grant_permission("team", Permission::write("team/").with_prefix())
        .await
        .unwrap();
    proxy.cut().await;
    let error = waiter.outcome().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::PermissionDenied, RetryAdvice::Never),
        "{error}"
    );
    operator.until_entries("team/a", 1).await;
    operator
        .0
        .auth_client()
        .role_grant_permission("team", all_below("team/"))
        .await
        .unwrap();
    assert_eq!(guard.state(), GuardState::Held);
    guard.release().await.unwrap();
    promptly("the lock", locks.acquire("a"))
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
}

/// Tokens that run out between any two requests: every renewal, and every new watch, needs a new
/// one.
#[tokio::test]
async fn tokens_that_run_out_break_neither_locks_nor_watches() {
    let server = or_skip!(servers::etcd(options().with_argument("--auth-token-ttl=1")));
    let operator = root(&server).await;
    user(&operator, "team", all_below("team/")).await;
    let proxy = TcpProxy::start(address(&server)).await.unwrap();
    let connect = || {
        builder(proxy.address(), "team")
            .with_ttl(Duration::from_secs(9))
            .with_namespace("team")
            .connect()
    };
    let holder = connect().await.unwrap();
    let locks = connect().await.unwrap();
    let guard = holder.acquire("a").await.unwrap();
    let waiter = Waiter::start(&locks, "a");
    operator.until_entries("team/a", 2).await;
    // Every 3 s: three times as long as a token lasts.
    for _ in 0..2 {
        let before = guard.remaining();
        let mut least = before;
        until("a renewal", || {
            let left = guard.remaining();
            let renewed = left > least;
            least = least.min(left);
            async move { renewed }
        })
        .await;
    }
    proxy.cut().await;
    assert_eq!(guard.state(), GuardState::Held);
    guard.release().await.unwrap();
    waiter.granted().await.release().await.unwrap();
}

/// Tokens that no use prolongs, and that any change of users and roles makes void. Returns the
/// directory of their key, too.
fn signed_tokens(ttl: &str) -> (Result<Server, servers::Skip>, Certificates) {
    let certificates = Certificates::new().unwrap();
    // Any text will do for a secret.
    let secret = certificates.client_key();
    let tokens = format!(
        "--auth-token=jwt,sign-method=HS256,priv-key={},ttl={ttl}",
        secret.display()
    );
    (servers::etcd(options().with_argument(tokens)), certificates)
}

/// They run out within a second: many a stream is opened with one that has.
#[tokio::test]
async fn tokens_that_end_before_they_are_used_fail_no_waiter() {
    let (server, _secret) = signed_tokens("1s");
    let server = or_skip!(server);
    user(&root(&server).await, "team", all_below("team/")).await;
    let operator = root(&server).await;
    let proxy = TcpProxy::start(address(&server)).await.unwrap();
    let connect = |endpoint: String| builder(endpoint, "team").with_namespace("team").connect();
    let holder = connect(server.endpoint().to_owned()).await.unwrap();
    let locks = connect(proxy.address().to_string()).await.unwrap();
    for _ in 0..3 {
        let guard = holder.acquire("a").await.unwrap();
        let waiter = Waiter::start(&locks, "a");
        operator.until_entries("team/a", 2).await;
        // Until the client pauses for long between two attempts.
        let before = proxy.accepted();
        let start = Instant::now();
        proxy.set(Trouble::Refuse);
        until("attempts", || async {
            proxy.accepted() > before + 3 && start.elapsed() > Duration::from_secs(2)
        })
        .await;
        proxy.set(Trouble::None);
        let open = proxy.accepted();
        until("a connection", || async { proxy.accepted() > open }).await;
        guard.release().await.unwrap();
        waiter.granted().await.release().await.unwrap();
    }
}

#[tokio::test]
async fn tokens_that_a_change_of_roles_makes_void_are_replaced() {
    let (server, _secret) = signed_tokens("1h");
    let server = or_skip!(server);
    user(&root(&server).await, "team", all_below("team/")).await;
    let connect = || {
        builder(server.endpoint(), "team")
            .with_namespace("team")
            .connect()
    };
    let holder = connect().await.unwrap();
    let locks = connect().await.unwrap();
    for role in ["one", "two"] {
        let guard = promptly("the lock", holder.acquire("a")).await.unwrap();
        root(&server)
            .await
            .0
            .auth_client()
            .role_add(role)
            .await
            .unwrap();
        let waiter = Waiter::start(&locks, "a");
        root(&server).await.until_entries("team/a", 2).await;
        guard.release().await.unwrap();
        waiter.granted().await.release().await.unwrap();
    }
}

/// A restart forgets all tokens at once.
#[tokio::test]
async fn a_restart_that_forgets_tokens_breaks_neither_locks_nor_watches() {
    let server = or_skip!(servers::etcd(options()));
    let operator = root(&server).await;
    user(&operator, "team", all_below("team/")).await;
    let connect = || {
        builder(server.endpoint(), "team")
            .with_namespace("team")
            .connect()
    };
    let holder = connect().await.unwrap();
    let locks = connect().await.unwrap();
    let guard = holder.acquire("a").await.unwrap();
    let kept = locks.acquire("kept").await.unwrap();
    let waiter = Waiter::start(&locks, "a");
    operator.until_entries("team/a", 2).await;
    server.restart().await.unwrap();
    assert_eq!(
        (guard.state(), waiter.is_pending()),
        (GuardState::Held, true)
    );
    guard.release().await.unwrap();
    waiter.granted().await.release().await.unwrap();
    let operator = root(&server).await;
    operator
        .delete(&operator.entries("team/kept").await[0].key)
        .await;
    assert_eq!(promptly("the loss", kept.lost()).await, LossReason::Removed);
}

#[tokio::test]
async fn an_entry_that_could_not_be_removed_goes_although_its_client_lives_on() {
    let server = or_skip!(servers::etcd(options()));
    let operator = root(&server).await;
    user(&operator, "team", all_below("team/")).await;
    let locks = builder(server.endpoint(), "team")
        .with_namespace("team")
        .with_ttl(Duration::from_secs(2))
        .connect()
        .await
        .unwrap();
    let guard = locks.acquire("a").await.unwrap();
    let mut auth = operator.0.auth_client();
    auth.role_revoke_permission(
        "team",
        "team/",
        Some(RoleRevokePermissionOptions::new().with_prefix()),
    )
    .await
    .unwrap();
    assert_eq!(
        guard.release().await.unwrap_err().kind(),
        ErrorKind::PermissionDenied
    );
    auth.role_grant_permission("team", all_below("team/"))
        .await
        .unwrap();
    operator.until_entries("team/a", 0).await;
    promptly("the next one", locks.acquire("a"))
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
}

/// The other locks of the client keep its lease alive.
#[tokio::test]
async fn an_entry_whose_release_was_refused_goes_while_its_client_holds_another_lock() {
    let server = or_skip!(servers::etcd(options()));
    let operator = root(&server).await;
    user(&operator, "team", all_below("team/")).await;
    let locks = builder(server.endpoint(), "team")
        .with_namespace("team")
        .connect()
        .await
        .unwrap();
    let refused = locks.acquire("a").await.unwrap();
    let kept = locks.acquire("kept").await.unwrap();
    let mut auth = operator.0.auth_client();
    auth.role_revoke_permission(
        "team",
        "team/",
        Some(RoleRevokePermissionOptions::new().with_prefix()),
    )
    .await
    .unwrap();
    assert_eq!(
        refused.release().await.unwrap_err().kind(),
        ErrorKind::PermissionDenied
    );
    // The attempt in the background is refused as well.
    tokio::time::sleep(Duration::from_millis(300)).await;
    auth.role_grant_permission("team", all_below("team/"))
        .await
        .unwrap();
    operator.until_entries("team/a", 0).await;
    assert_eq!(kept.state(), GuardState::Held);
    // Under whichever key: what looks after the refused release does not take the next lock away.
    let again = promptly("the next one", locks.acquire("a")).await.unwrap();
    assert!(
        tokio::time::timeout(Duration::from_secs(3), again.lost())
            .await
            .is_err()
    );
    again.release().await.unwrap();
    kept.release().await.unwrap();
}

#[tokio::test]
async fn a_change_of_other_roles_fails_no_call() {
    let server = or_skip!(servers::etcd(options()));
    let operator = root(&server).await;
    user(&operator, "team", all_below("team/")).await;
    let locks = builder(server.endpoint(), "team")
        .with_namespace("team")
        .connect()
        .await
        .unwrap();
    let mut auth = operator.0.auth_client();
    let changes = tokio::spawn(async move {
        for change in 0..60 {
            auth.role_add(format!("other-{change}")).await.unwrap();
            auth.role_delete(format!("other-{change}")).await.unwrap();
        }
    });
    while !changes.is_finished() {
        promptly("the lock", locks.acquire("a"))
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    changes.await.unwrap();
    operator.until_entries("team/a", 0).await;
}
