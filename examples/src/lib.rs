//! Small complete applications that lock with `polylock`; what they share.

pub mod billing;

use std::{env, error::Error, fs, sync::Arc};

use polylock::{DistributedLock, LockConfig};

/// Connects to the locks that `LOCK_CONFIG` and `LOCK_URL` name.
///
/// # Errors
///
/// If the file cannot be read, has an unknown key, or the store cannot be reached.
pub async fn locks() -> Result<Arc<dyn DistributedLock>, Box<dyn Error>> {
    let mut config: LockConfig = match env::var_os("LOCK_CONFIG") {
        Some(file) => toml::from_str(&fs::read_to_string(file)?)?,
        None => LockConfig::new(),
    };
    if let Ok(url) = env::var("LOCK_URL") {
        config.url = Some(url);
    }
    Ok(config.connect().await?)
}
