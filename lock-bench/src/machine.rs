use std::{fs, time::SystemTime};

/// Describes the machine that the figures come from, the store and the day, in one line.
pub(crate) fn describe(store: &str) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let processor = first_value("/proc/cpuinfo", "model name")
        .unwrap_or_else(|| "unknown processor".to_owned());
    let memory = first_value("/proc/meminfo", "MemTotal")
        .and_then(|text| text.trim_end_matches("kB").trim().parse::<u64>().ok());
    let memory = memory
        .map(|kib| format!(", {} GiB of memory", kib.div_ceil(1 << 20)))
        .unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let day = now.split('T').next().unwrap_or(&now);
    format!(
        "{day}: {cores} cores of {processor}{memory}, Linux {}; {store}; client and server on this machine.",
        kernel.trim()
    )
}

fn first_value(file: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| {
        line.strip_prefix(key)?
            .trim_start()
            .strip_prefix(':')
            .map(str::trim)
            .map(str::to_owned)
    });
    value.filter(|value| !value.is_empty())
}
