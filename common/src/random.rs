//! The seam for chance. The system under simulation is handed a seeded source;
//! a process draws from the operating system once and goes on from there.
#![allow(clippy::disallowed_methods)] // the one place that may draw randomness

use parking_lot::Mutex;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use std::sync::LazyLock;

static SOURCE: LazyLock<Mutex<StdRng>> = LazyLock::new(|| Mutex::new(StdRng::from_os_rng()));

/// Makes every later draw of this process follow from `seed`.
pub fn seed(seed: u64) {
    *SOURCE.lock() = StdRng::seed_from_u64(seed);
}

/// Random bytes.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    SOURCE.lock().fill_bytes(&mut out);
    out
}

/// A random number in `[0, bound)`; 0 when `bound` is 0.
pub fn below(bound: u64) -> u64 {
    if bound == 0 {
        0
    } else {
        SOURCE.lock().random_range(0..bound)
    }
}

/// A random number in `[0, 1)`.
pub fn unit() -> f64 {
    SOURCE.lock().random()
}

/// A random (version 4) UUID.
pub fn uuid() -> uuid::Uuid {
    uuid::Builder::from_random_bytes(bytes()).into_uuid()
}

/// A new transaction id.
pub fn txn_id() -> crate::TxnId {
    crate::TxnId(bytes())
}
