//! What a broker does about metadata that were restored from an older dump: nothing, until `geminga doctor` has settled it. Storage
//! nodes notice it and say so in metadata.

use std::time::Duration;

use geminga_metadata::{Metadata, MetadataError};
use tokio::time::Instant;

/// A storage node that found metadata to be current says so more often than this.
const FRESH: Duration = Duration::from_secs(5);
/// How long a start waits for one to say so. A broker without any storage node may start: there is nothing that it could do.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often a broker that serves looks without being told.
const LOOK_WITHOUT_NEWS: Duration = Duration::from_secs(2);

/// Waits as long as some node says that metadata were restored, and at a start until some node has looked.
///
/// # Errors
/// Metadata could not be read.
pub async fn wait_until_settled(metadata: &Metadata) -> Result<(), MetadataError> {
    let began = Instant::now();
    let mut said = None;
    loop {
        let nodes = nodes(metadata).await?;
        if nodes.is_empty() {
            if is_witnessed(metadata).await? {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                tracing::warn!("no storage node has looked whether metadata are current; going on without");
                return Ok(());
            }
        } else if said.as_ref() != Some(&nodes) {
            tracing::error!(
                nodes = nodes.join(", "),
                "metadata were restored from an older dump, as storage nodes remember: this broker waits until 'geminga doctor' has settled it"
            );
            said = Some(nodes);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether a storage node has found these metadata current a moment ago, or none ever said so, as those of older versions.
async fn is_witnessed(metadata: &Metadata) -> Result<bool, MetadataError> {
    let witnesses = metadata.list_witnesses().await?;
    let since_ms = metadata.store().now_ms().saturating_sub(FRESH.as_millis() as u64);
    Ok(witnesses.is_empty() || witnesses.iter().any(|(_, witness)| witness.at_ms >= since_ms))
}

async fn nodes(metadata: &Metadata) -> Result<Vec<String>, MetadataError> {
    Ok(metadata.restored().await?.into_iter().map(|(node, _)| node).collect())
}

/// Returns when some node says that metadata were restored under this broker.
pub async fn noticed(metadata: &Metadata) {
    let mut watch = metadata.watch_restored().await.ok();
    loop {
        let news = async {
            match &mut watch {
                Some(watch) => watch.next().await,
                None => None,
            }
        };
        if let Ok(None) = tokio::time::timeout(LOOK_WITHOUT_NEWS, news).await {
            // Nobody tells.
            tokio::time::sleep(LOOK_WITHOUT_NEWS).await;
        }
        // Metadata that are away are nothing new to a broker.
        if metadata.is_restored().await.unwrap_or(false) {
            return;
        }
    }
}
