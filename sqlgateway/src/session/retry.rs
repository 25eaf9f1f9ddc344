//! How often, and how long, a statement is tried again unseen.

use super::Limits;
use crate::error::{Result, SqlError};
use lineradb_common::clock::Stopwatch;
use lineradb_common::random;
use std::time::Duration;

/// Retries of a statement without `statement_timeout` end after this time.
const RETRY_TIME: Duration = Duration::from_secs(60);
const BACKOFF_MAX_MS: u64 = 64;

/// Waits before another try; answers an error when time is up.
pub(crate) struct Retry {
    watch: Stopwatch,
    limit: Duration,
    tries: u32,
}

impl Retry {
    pub fn new(limits: &Limits) -> Self {
        let limit = limits.deadline.map_or(RETRY_TIME, |at| {
            at.saturating_duration_since(lineradb_common::clock::deadline_after(Duration::ZERO))
        });
        Retry {
            watch: Stopwatch::start(),
            limit,
            tries: 0,
        }
    }

    /// Waits a little, or gives the error back.
    ///
    /// # Errors
    /// `error`, when it cannot be retried or time is up.
    pub async fn after(&mut self, error: SqlError) -> Result<()> {
        if !error.retryable || self.watch.elapsed() > self.limit {
            return Err(error);
        }
        self.tries += 1;
        let ceiling = (1_u64 << self.tries.min(6)).min(BACKOFF_MAX_MS);
        // A changed schema needs no pause, only a new plan.
        if self.tries > 1 || !error.is_schema_changed() {
            tokio::time::sleep(Duration::from_micros(random::below(ceiling * 1000) + 200)).await;
        }
        Ok(())
    }
}
