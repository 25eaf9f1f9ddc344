//! Making the node known to the metaservice, which gives it its id. A node that
//! is known already starts without it, and makes itself known later; until it
//! has asked the time master, it answers no request that needs a clock.

use super::identity::Identity;
use crate::{Error, Result};
use lineradb_client::meta::MetaClient;
use lineradb_common::clock::deadline_after;
use lineradb_proto::meta::v1::RegisterNodeRequest;
use std::time::Duration;

/// One attempt takes at most this long.
const TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);

/// A node's introduction.
pub(super) struct Registration {
    pub(super) identity: Identity,
    pub(super) meta: MetaClient,
    /// What it says; the uuid is added from the identity.
    pub(super) request: RegisterNodeRequest,
    /// This process has been registered.
    pub(super) done: bool,
}

impl Registration {
    /// Registers. Goes on with what the folder knows when nobody answers.
    ///
    /// # Errors
    /// When the folder belongs to another cluster.
    pub(super) async fn start(&mut self) -> Result<()> {
        loop {
            match self.attempt().await {
                Ok(()) => return Ok(()),
                Err(error @ (Error::Refused(_) | Error::Io { .. } | Error::Corrupt(_))) => {
                    return Err(error);
                }
                Err(error) => {
                    if self.identity.is_registered() {
                        tracing::warn!(%error, "starting with what is known");
                        return Ok(());
                    }
                    tracing::warn!(%error, "waiting for the metaservice");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// One attempt.
    ///
    /// # Errors
    /// `Unavailable`: try again. Others are for good.
    pub(super) async fn attempt(&mut self) -> Result<()> {
        let request = RegisterNodeRequest {
            node_uuid: self.identity.uuid().into(),
            ..self.request.clone()
        };
        let reply = { self.meta.register_node(request, deadline_after(TIMEOUT)) }
            .await
            .map_err(|error| match error {
                lineradb_client::Error::Invalid { message } => Error::Refused(message),
                other => Error::Unavailable(other.to_string()),
            })?;
        self.identity.registered(&reply)?;
        self.done = true;
        Ok(())
    }
}
