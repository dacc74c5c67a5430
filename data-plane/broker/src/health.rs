//! Whether the broker could take a message now.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::broker::Broker;
use crate::error::{BrokerError, Result};
use crate::shared::now_ms;

/// No cursor has this id.
const PROBE_KEY: u64 = 0;
const PATIENCE: Duration = Duration::from_secs(10);

impl Broker {
    /// Writes a record through storage and waits until it is durable.
    pub async fn check_storage(&self) -> Result<()> {
        let (sender, durable) = oneshot::channel();
        let done = Box::new(move |result| {
            // Whoever asked may have lost patience.
            let _ = sender.send(result);
        });
        self.shared.cursors.put_blob(PROBE_KEY, now_ms().to_be_bytes().to_vec().into(), done);
        match tokio::time::timeout(PATIENCE, durable).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(BrokerError::ServiceNotReady("the broker is shutting down".into())),
            Err(_) => Err(BrokerError::ServiceNotReady(format!("nothing became durable within {PATIENCE:?}"))),
        }
    }
}
