//! Locks that somebody holds, as people read them.

use std::time::{Duration, SystemTime};

use comfy_table::Table;
use polylock::{LockHolder, LockInfo};

use super::LATEST_MS;

/// A row for each holder.
pub(crate) fn table(infos: &[LockInfo]) -> Table {
    let mut table = super::table([
        "name",
        "owner",
        "token",
        "held for",
        "expires in",
        "waiters",
        "note",
    ]);
    for info in infos {
        for it in &info.holders {
            table.add_row([
                plain(info.name.as_str()),
                plain(it.owner.as_str()),
                it.token.map(|token| token.to_string()).unwrap_or_default(),
                held_for(it).map(seconds).unwrap_or_default(),
                it.expires_in.map(seconds).unwrap_or_default(),
                info.waiters
                    .map(|count| count.to_string())
                    .unwrap_or_default(),
                it.metadata.as_deref().map(plain).unwrap_or_default(),
            ]);
        }
    }
    table
}

/// One line about a lock.
pub(crate) fn sentence(info: &LockInfo) -> String {
    let holders = info.holders.iter().map(|it| {
        let token = it.token.map(|token| format!(", token {token}"));
        let since = it.since.filter(|since| is_shown(*since));
        let since = since.map(|at| format!(", since {}", humantime::format_rfc3339_seconds(at)));
        let note = it
            .metadata
            .as_deref()
            .map(|note| format!(", {}", plain(note)));
        let parts = [token, since, note].into_iter().flatten();
        plain(it.owner.as_str()) + &parts.collect::<String>()
    });
    let holders: Vec<_> = holders.collect();
    let waiters = match info.waiters {
        Some(count) => format!("; {count} waiting"),
        None => String::new(),
    };
    format!("held by {}{waiters}", holders.join(" and "))
}

fn held_for(holder: &LockHolder) -> Option<Duration> {
    SystemTime::now().duration_since(holder.since?).ok()
}

fn is_shown(at: SystemTime) -> bool {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .is_ok_and(|at| at <= Duration::from_millis(LATEST_MS))
}

fn seconds(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

/// Text that anybody who writes to the store may choose, without what a terminal would obey.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
