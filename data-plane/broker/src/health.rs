//! Whether the broker could take a message now.

use std::time::Duration;

use bytes::Bytes;
use geminga_ledger_client::AppendClass;
use tokio::sync::oneshot;

use crate::broker::Broker;
use crate::error::{BrokerError, Result};
use crate::shared::now_ms;

const PATIENCE: Duration = Duration::from_secs(10);

impl Broker {
    /// Writes an entry to a ledger of its own, waits until it is durable, and deletes it.
    pub async fn check_storage(&self) -> Result<()> {
        let ledger = self.shared.metadata.next_ledger_id(0).await?;
        let checked = self.write_probe(ledger).await;
        if let Err(error) = self.shared.ledgers.delete(vec![ledger]).await {
            tracing::debug!(ledger, %error, "could not delete the ledger of a health check");
        }
        checked
    }

    async fn write_probe(&self, ledger: u64) -> Result<()> {
        let (sender, durable) = oneshot::channel();
        let done = Box::new(move |result| {
            // Whoever asked may have lost patience.
            let _ = sender.send(result);
        });
        let probe = [Bytes::from(now_ms().to_be_bytes().to_vec()), Bytes::new()];
        self.shared.ledgers.append(ledger, 0, vec![probe], AppendClass::Reserved, done);
        match tokio::time::timeout(PATIENCE, durable).await {
            Ok(Ok(result)) => result.map_err(BrokerError::from),
            Ok(Err(_)) => Err(BrokerError::ServiceNotReady("the broker is shutting down".into())),
            Err(_) => Err(BrokerError::ServiceNotReady(format!("nothing became durable within {PATIENCE:?}"))),
        }
    }
}
