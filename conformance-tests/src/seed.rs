use std::{env, sync::OnceLock};

use rand::{SeedableRng, rngs::StdRng};

/// Environment variable with the seed of the cases' random choices, a decimal number.
///
/// [`Suite::run`](crate::Suite::run) and [`Suite::judge`](crate::Suite::judge) choose one of their own
/// without it, and report it. [`run_case`](crate::run_case) then takes 0.
pub const SEED: &str = "LOCK_CONFORMANCE_SEED";

static CHOSEN: OnceLock<u64> = OnceLock::new();

/// Random numbers of this run; another stream has others.
pub(crate) fn random(stream: u64) -> StdRng {
    let seed = *CHOSEN.get_or_init(|| given().unwrap_or_default());
    StdRng::seed_from_u64(seed.rotate_left(32) ^ stream)
}

/// Chooses a fresh seed unless one is given or in use.
pub(crate) fn choose() -> u64 {
    // Few digits: it is typed in again.
    *CHOSEN.get_or_init(|| given().unwrap_or_else(|| u64::from(rand::random::<u32>())))
}

/// Takes this seed, if none is in use.
pub(crate) fn set(seed: u64) {
    // The first one stays: cases may have used it.
    let _ = CHOSEN.set(seed);
}

fn given() -> Option<u64> {
    env::var(SEED).ok()?.parse().ok()
}
