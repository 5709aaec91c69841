use std::{sync::OnceLock, time::SystemTime};

/// Describes this process for whoever finds it as the holder of a lock, such as
/// `host=web-7 pid=4711 started=2026-11-22T08:30:00Z`.
///
/// The host is the machine's node name, on Windows `COMPUTERNAME`. The time is that of the first
/// call, which is that of the first layer that needs it: it tells two processes with the same
/// number apart.
#[must_use]
pub fn process_metadata() -> &'static str {
    static METADATA: OnceLock<String> = OnceLock::new();
    METADATA.get_or_init(|| {
        let host = host_name();
        let pid = std::process::id();
        let started = humantime::format_rfc3339_seconds(SystemTime::now());
        format!("host={host} pid={pid} started={started}")
    })
}

#[cfg(unix)]
fn host_name() -> String {
    let system = rustix::system::uname();
    system.nodename().to_string_lossy().into_owned()
}

#[cfg(not(unix))]
fn host_name() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_else(|_| "unknown".to_owned())
}
