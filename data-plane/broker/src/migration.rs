//! From the form that acknowledgements had before: one cursor log, named like the cluster, for all bundles of a process.

use std::time::Duration;

use geminga_ledger::cursor_log::LogLedger;
use geminga_metadata::LeaseOutcome;
use geminga_model::BundleName;

use crate::broker::Broker;
use crate::cursors::Cursors;
use crate::error::Result;

/// Held by the one broker that moves acknowledgements, while others wait.
const LEASE: &str = "cursor-log-migration";
const LEASE_TIME: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

impl Broker {
    /// Gives each bundle what the old log has of its topics, before any is served. After a crash in between all of it is done
    /// again, which changes nothing.
    pub(crate) async fn migrate_cursor_log(&self) -> Result<()> {
        let metadata = &self.shared.metadata;
        let cluster = &self.shared.config.cluster;
        while metadata.get_cursor_log::<Vec<LogLedger>>(cluster).await?.is_some() {
            let me = format!("broker-{}", self.life());
            match metadata.store().acquire_lease(LEASE, &me, LEASE_TIME).await? {
                LeaseOutcome::Held(_) => tokio::time::sleep(PAUSE).await,
                LeaseOutcome::Acquired(lease) => {
                    self.move_acknowledgements(cluster).await?;
                    metadata.store().release_lease(&lease).await?;
                }
            }
        }
        Ok(())
    }

    async fn move_acknowledgements(&self, cluster: &str) -> Result<()> {
        let shared = &self.shared;
        let open = |name: String| {
            Cursors::open(name, shared.metadata.clone(), shared.ledgers.clone(), shared.pending_acks.clone())
        };
        let old = open(cluster.to_owned()).await?;
        let mut moved = 0;
        for tenant in shared.metadata.list_tenants().await? {
            for namespace in shared.metadata.list_namespaces(&tenant).await? {
                let policies = self.namespace_policies(&namespace).await?;
                for range in policies.bundle_ranges() {
                    let bundle = BundleName { namespace: namespace.clone(), range };
                    let kept = self.kept_for(&old, &bundle).await?;
                    if !kept.is_empty() {
                        moved += kept.len();
                        open(bundle.to_string()).await?.adopt(kept).await?;
                    }
                }
            }
        }
        shared.metadata.delete_cursor_log(cluster, &old.ledger_ids()).await?;
        tracing::info!(cursors = moved, "acknowledgements moved to the cursor logs of their bundles");
        Ok(())
    }
}
