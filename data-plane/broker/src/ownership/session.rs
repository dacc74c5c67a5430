//! This broker's own session: a lease in metadata that it renews.

use std::sync::Arc;
use std::time::Duration;

use geminga_metadata::{Lease, LeaseOutcome, Metadata, MetadataError};

use super::member::Member;
use crate::error::{BrokerError, Result};

/// A process that starts again under the same id takes the session of its forerunner over at once; what that one owned is
/// then nobody's.
pub(super) async fn begin(metadata: &Metadata, id: &str, timeout: Duration) -> Result<Lease> {
    match metadata.acquire_broker(id, id, timeout).await? {
        LeaseOutcome::Acquired(lease) => Ok(lease),
        LeaseOutcome::Held(lease) => {
            Err(BrokerError::ServiceNotReady(format!("the session of broker {id} is held by {}", lease.owner)))
        }
    }
}

/// Renews the session for as long as the process lives. Metadata that do not answer are no reason to stop serving what is
/// owned, as nobody else can take it meanwhile.
pub(super) async fn keep(member: Arc<Member>) {
    let mut ticks = tokio::time::interval(member.session_timeout / 4);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match member.renew().await {
            Ok(()) => {}
            Err(MetadataError::LeaseLost { .. }) => {
                tracing::error!(
                    broker = member.id,
                    "another process has begun a session of this broker: is its address used twice? Nothing is served here now"
                );
                return member.end_session();
            }
            Err(error) => tracing::warn!(%error, "could not renew the session; what is owned is served all the same"),
        }
    }
}
