//! Clusters, tenants, namespaces and policies: changes to them are checked here, stored, and reach the loaded topics.

use geminga_ledger::cursor_log::LogLedger;
use geminga_metadata::policies::BundlesData;
use geminga_metadata::{ClusterData, MetadataError, Policies, TenantInfo, TopicPolicies};
use geminga_model::{BundleName, NamespaceName, TopicDomain, TopicName, check_entity_name};

use crate::broker::Broker;
use crate::error::{BrokerError, Result};

/// Bundles of a namespace that is created without saying how many (Pulsar's `defaultNumberOfNamespaceBundles`).
pub const DEFAULT_BUNDLES: u32 = 4;
/// More bundles than any namespace needs.
const BUNDLES_MAX: u32 = 1024;

impl Broker {
    pub async fn create_cluster(&self, name: &str, data: &ClusterData) -> Result<()> {
        check_entity_name(name).map_err(|_| BrokerError::InvalidName("Cluster name is not valid".into()))?;
        match self.shared.metadata.create_cluster(name, data).await {
            Err(MetadataError::AlreadyExists { .. }) => {
                Err(BrokerError::AlreadyExists("Cluster already exists".into()))
            }
            other => Ok(other?),
        }
    }

    pub async fn update_cluster(&self, name: &str, change: impl Fn(&mut ClusterData) + Send + Sync) -> Result<()> {
        let updated = self
            .shared
            .metadata
            .update_cluster(name, |cluster| {
                change(cluster);
                Ok(())
            })
            .await;
        match updated {
            Err(error) if error.is_not_found() => Err(BrokerError::NotFound("Cluster does not exist".into())),
            other => Ok(other.map(drop)?),
        }
    }

    pub async fn delete_cluster(&self, name: &str) -> Result<()> {
        for tenant in self.shared.metadata.list_tenants().await? {
            for namespace in self.shared.metadata.list_namespaces(&tenant).await? {
                // It may have been deleted meanwhile.
                let Some(policies) = self.shared.metadata.get_namespace(&namespace).await? else { continue };
                if policies.value.replication_clusters.contains(name) {
                    return Err(BrokerError::PreconditionFailed("Cluster not empty".into()));
                }
            }
        }
        match self.shared.metadata.delete_cluster(name).await {
            Err(error) if error.is_not_found() => Err(BrokerError::NotFound("Cluster does not exist".into())),
            other => Ok(other?),
        }
    }

    pub async fn create_tenant(&self, name: &str, info: &TenantInfo) -> Result<()> {
        check_entity_name(name).map_err(|_| BrokerError::InvalidName("Tenant name is not valid".into()))?;
        self.check_tenant(info).await?;
        match self.shared.metadata.create_tenant(name, info).await {
            Err(MetadataError::AlreadyExists { .. }) => Err(BrokerError::AlreadyExists("Tenant already exist".into())),
            other => Ok(other?),
        }
    }

    pub async fn update_tenant(&self, name: &str, info: &TenantInfo) -> Result<()> {
        self.check_tenant(info).await?;
        let updated = self
            .shared
            .metadata
            .update_tenant(name, |tenant| {
                tenant.clone_from(info);
                Ok(())
            })
            .await;
        match updated {
            Err(error) if error.is_not_found() => Err(BrokerError::NotFound(format!("Tenant {name} not found"))),
            other => Ok(other.map(drop)?),
        }
    }

    async fn check_tenant(&self, info: &TenantInfo) -> Result<()> {
        if info.admin_roles.iter().any(|role| role.trim() != role) {
            return Err(BrokerError::PreconditionFailed(
                "AdminRoles contains whitespace in the beginning or end.".into(),
            ));
        }
        if info.allowed_clusters.is_empty() || info.allowed_clusters.iter().any(|name| name.trim().is_empty()) {
            return Err(BrokerError::PreconditionFailed("Clusters cannot be empty or blank".into()));
        }
        for cluster in &info.allowed_clusters {
            if self.shared.metadata.get_cluster(cluster).await?.is_none() {
                return Err(BrokerError::PreconditionFailed("Clusters do not exist".into()));
            }
        }
        Ok(())
    }

    /// Deletes a tenant. Unless forced, it must not have namespaces.
    pub async fn delete_tenant(&self, name: &str, force: bool) -> Result<()> {
        if force {
            for namespace in self.shared.metadata.list_namespaces(name).await? {
                self.delete_namespace(&namespace, true).await?;
            }
        }
        match self.shared.metadata.delete_tenant(name).await {
            Err(error) if error.is_not_found() => Err(BrokerError::NotFound("Tenant doesn't exist".into())),
            Err(error) if error.is_conflict() => {
                Err(BrokerError::Conflict("The tenant still has active namespaces".into()))
            }
            other => Ok(other?),
        }
    }

    /// Names of a tenant's namespaces.
    pub async fn namespaces(&self, tenant: &str) -> Result<Vec<NamespaceName>> {
        if self.shared.metadata.get_tenant(tenant).await?.is_none() {
            return Err(BrokerError::NotFound("Tenant not found".into()));
        }
        Ok(self.shared.metadata.list_namespaces(tenant).await?)
    }

    /// Creates a namespace; what the policies leave open gets its default.
    pub async fn create_namespace(&self, name: &NamespaceName, mut policies: Policies) -> Result<()> {
        let metadata = &self.shared.metadata;
        let Some(tenant) = metadata.get_tenant(name.tenant()).await? else {
            return Err(BrokerError::TenantNotFound(name.tenant().to_owned()));
        };
        if policies.replication_clusters.is_empty() {
            policies.replication_clusters.insert(self.shared.config.cluster.clone());
        }
        for cluster in &policies.replication_clusters {
            if !tenant.value.allowed_clusters.contains(cluster) {
                return Err(BrokerError::NotAllowed(format!(
                    "Cluster [{cluster}] is not in the list of allowed clusters list for tenant [{}]",
                    name.tenant()
                )));
            }
        }
        let bundles = policies.bundles.as_ref().map_or(DEFAULT_BUNDLES, |bundles| bundles.bundle_count);
        if bundles == 0 || bundles > BUNDLES_MAX {
            return Err(BrokerError::BadRequest(format!(
                "Invalid number of bundles. Number of bundles has to be in the range of (0, {BUNDLES_MAX}]."
            )));
        }
        if policies.bundles.as_ref().is_none_or(|bundles| bundles.boundaries.len() != bundles.bundle_count as usize + 1)
        {
            policies.bundles = Some(BundlesData::even(bundles));
        }
        match metadata.create_namespace(name, &policies).await {
            Err(MetadataError::AlreadyExists { .. }) => {
                Err(BrokerError::AlreadyExists("Namespace already exists".into()))
            }
            Err(error) if error.is_not_found() => Err(BrokerError::TenantNotFound(name.tenant().to_owned())),
            other => Ok(other?),
        }
    }

    /// Deletes a namespace. Unless forced, it must not have topics.
    pub async fn delete_namespace(&self, name: &NamespaceName, force: bool) -> Result<()> {
        let gone = || BrokerError::NotFound(format!("Namespace {name} does not exist."));
        let Some(policies) = self.shared.metadata.get_namespace(name).await? else { return Err(gone()) };
        if force {
            self.update_namespace_policies(name, |policies| {
                policies.deleted = true;
                Ok(())
            })
            .await?;
            self.delete_topics_of(name).await?;
        }
        self.check_is_empty(name).await?;
        let ledgers = self.retire_bundles(name, &policies.value).await?;
        match self.shared.metadata.delete_namespace(name, &ledgers).await {
            Err(error) if error.is_not_found() => Err(gone()),
            Err(error) if error.is_conflict() => Err(not_empty()),
            other => Ok(other?),
        }
    }

    async fn check_is_empty(&self, name: &NamespaceName) -> Result<()> {
        for domain in TopicDomain::ALL {
            let metadata = &self.shared.metadata;
            if !metadata.list_topics_page(name, domain, None, 1).await?.items.is_empty()
                || !metadata.list_partitioned_topics(name, domain).await?.is_empty()
            {
                return Err(not_empty());
            }
        }
        Ok(())
    }

    /// Nobody serves the bundles of the namespace any more. Answers the ledgers of their cursor logs.
    async fn retire_bundles(&self, name: &NamespaceName, policies: &Policies) -> Result<Vec<u64>> {
        let ranges = policies.bundle_ranges();
        self.give_up_namespace(name, &ranges).await?;
        self.shared.departed.forget(name);
        let mut ledgers = Vec::new();
        for range in ranges {
            let bundle = BundleName { namespace: name.clone(), range };
            let log = self.shared.metadata.get_cursor_log::<Vec<LogLedger>>(&bundle.to_string()).await?;
            ledgers.extend(log.iter().flat_map(|log| &log.value).map(|ledger| ledger.ledger_id));
        }
        Ok(ledgers)
    }

    async fn delete_topics_of(&self, name: &NamespaceName) -> Result<()> {
        for domain in TopicDomain::ALL {
            for (topic, _) in self.shared.metadata.list_partitioned_topics(name, domain).await? {
                self.delete_partitioned(&topic, true).await?;
            }
            for topic in self.shared.metadata.list_topics(name, domain).await? {
                match self.delete_topic(&topic, true).await {
                    Ok(()) | Err(BrokerError::TopicNotFound(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    pub async fn namespace_policies(&self, name: &NamespaceName) -> Result<Policies> {
        let found = self.shared.metadata.get_namespace(name).await?;
        found.map(|policies| policies.value).ok_or_else(|| BrokerError::NamespaceNotFound(name.to_string()))
    }

    /// Changes a namespace's policies; its loaded topics follow before this returns.
    pub async fn update_namespace_policies(
        &self,
        name: &NamespaceName,
        mut change: impl FnMut(&mut Policies) -> Result<()> + Send,
    ) -> Result<Policies> {
        let mut refused = None;
        let updated = self
            .shared
            .metadata
            .update_namespace(name, |policies| change(policies).map_err(|error| keep(&mut refused, error)))
            .await;
        let policies = match (updated, refused) {
            (Ok(updated), _) => updated.value,
            (Err(_), Some(refused)) => return Err(refused),
            (Err(error), None) if error.is_not_found() => {
                return Err(BrokerError::NamespaceNotFound(name.to_string()));
            }
            (Err(error), None) => return Err(error.into()),
        };
        self.apply_policies(name, |_| true).await?;
        Ok(policies)
    }

    /// A topic's own policies; of a partitioned topic they hold for its partitions.
    pub async fn topic_policies(&self, name: &TopicName) -> Result<TopicPolicies> {
        let found = self.shared.metadata.get_topic_policies(&name.partitioned_base()).await?;
        Ok(found.map(|policies| policies.value).unwrap_or_default())
    }

    /// Changes a topic's own policies; the topic, or its partitions, follow before this returns.
    pub async fn update_topic_policies(
        &self,
        name: &TopicName,
        mut change: impl FnMut(&mut TopicPolicies) -> Result<()> + Send,
    ) -> Result<TopicPolicies> {
        let base = name.partitioned_base();
        let mut refused = None;
        let updated = self
            .shared
            .metadata
            .update_topic_policies(&base, |policies| change(policies).map_err(|error| keep(&mut refused, error)))
            .await;
        let policies = match (updated, refused) {
            (Ok(updated), _) => updated.value,
            (Err(_), Some(refused)) => return Err(refused),
            (Err(error), None) => return Err(error.into()),
        };
        self.apply_policies(base.namespace(), |topic| topic.partitioned_base() == base).await?;
        Ok(policies)
    }

    /// Loaded topics take up what metadata say now.
    pub(crate) async fn apply_policies(
        &self,
        name: &NamespaceName,
        concerned: impl Fn(&TopicName) -> bool + Send,
    ) -> Result<()> {
        let mut outcome = Ok(());
        for topic in self.loaded_topics() {
            if topic.name().namespace() == name && concerned(topic.name()) {
                let applied = async { topic.set_policies(self.policies(topic.name()).await?).await };
                // The others have theirs all the same.
                outcome = outcome.and(applied.await);
            }
        }
        outcome
    }
}

fn not_empty() -> BrokerError {
    BrokerError::Conflict("Cannot delete non empty namespace".into())
}

/// Sets the broker's own error aside while a metadata error ends the update.
fn keep(refused: &mut Option<BrokerError>, error: BrokerError) -> MetadataError {
    let text = error.to_string();
    *refused = Some(error);
    MetadataError::Invalid(text)
}
