//! Numbers that are unique in the cluster, taken from the metaservice in blocks.
//! A block that is not used up (a gateway stopped) is lost, which harms nobody.

use crate::error::{Result, SqlError};
use lineradb_client::Client;

/// A sequence of unique numbers.
pub struct IdBlock {
    client: Client,
    sequence: &'static str,
    block: u64,
    left: tokio::sync::Mutex<(u64, u64)>,
}

impl IdBlock {
    /// Numbers of `sequence`, fetched `block` at a time.
    pub fn new(client: Client, sequence: &'static str, block: u64) -> Self {
        IdBlock {
            client,
            sequence,
            block,
            left: tokio::sync::Mutex::new((0, 0)),
        }
    }

    /// The next `count` numbers: the first of them.
    ///
    /// # Errors
    /// 57P03 when the metaservice cannot be reached.
    pub async fn take(&self, count: u64) -> Result<u64> {
        let mut left = self.left.lock().await;
        if left.1 - left.0 < count {
            let wanted = count.max(self.block);
            let first = self.client.allocate_ids(self.sequence, wanted).await?;
            *left = (first, first + wanted);
        }
        let first = left.0;
        left.0 += count;
        Ok(first)
    }

    /// The next number as an OID of a user object.
    ///
    /// # Errors
    /// As [`IdBlock::take`]; 54000 when all OIDs are used up.
    pub async fn take_oid(&self) -> Result<u32> {
        let id = self.take(1).await?;
        u32::try_from(id)
            .ok()
            .and_then(|id| id.checked_add(super::store::FIRST_USER_OID))
            .ok_or_else(|| SqlError::new("54000", "all object identifiers are used up"))
    }
}
