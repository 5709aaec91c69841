//! A short soak of a migration: with faults, and without any.

use std::process::Command;

use lock_conformance::servers::{self, EtcdOptions, RedisOptions};

/// Runs the soak; does nothing where there are no servers.
fn soak(arguments: &[&str]) {
    let redis = servers::redis(RedisOptions::new().own());
    let etcd = servers::etcd(EtcdOptions::new().own());
    if redis.is_err() || etcd.is_err() {
        return;
    }
    drop((redis, etcd));
    let outcome = Command::new(env!("CARGO_BIN_EXE_lock-soak"))
        .arg("migrate")
        .args(arguments)
        .output();
    let output = outcome.unwrap_or_else(|error| panic!("the soak did not start: {error}"));
    let told = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{failed}");
}

#[test]
fn a_fleet_goes_forward_and_back_in_faults() {
    soak(&["--seed", "1", "--minutes", "0.5", "--ttl", "2..4"]);
}

/// No acquire fails but by its own timeout, and increments go on all the time.
#[test]
fn without_faults_nobody_notices_a_migration() {
    soak(&["--seed", "2", "--minutes", "0.4", "--no-faults"]);
}
