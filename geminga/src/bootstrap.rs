//! What a fresh cluster has: its record, the tenant `public` and the namespace `public/default`; and Pulsar's own `pulsar/system`, in
//! which clients look whether there are transactions.

use std::collections::BTreeSet;

use geminga_metadata::{ClusterData, Metadata, MetadataError, Policies, TenantInfo};
use geminga_model::{DEFAULT_NAMESPACE, NamespaceName, PUBLIC_TENANT};

const SYSTEM_TENANT: &str = "pulsar";
const SYSTEM_NAMESPACE: &str = "system";

/// Hash ranges of a new namespace, as in Pulsar.
const BUNDLES: u32 = 4;

/// Creates what is missing and leaves alone what is there.
pub async fn create_missing(metadata: &Metadata, cluster: &str) -> Result<(), MetadataError> {
    if metadata.get_cluster(cluster).await?.is_none() {
        or_exists(metadata.create_cluster(cluster, &ClusterData::default()).await)?;
    }
    for (name, local) in [(PUBLIC_TENANT, DEFAULT_NAMESPACE), (SYSTEM_TENANT, SYSTEM_NAMESPACE)] {
        if metadata.get_tenant(name).await?.is_none() {
            let tenant = TenantInfo { allowed_clusters: BTreeSet::from([cluster.to_owned()]), ..TenantInfo::default() };
            // With the tenant, so that a namespace that was deleted stays so.
            let namespace = NamespaceName::new(name, local)?;
            let policies = Policies::new_namespace(cluster, BUNDLES);
            or_exists(metadata.create_tenant_with_namespace(&tenant, &namespace, &policies).await)?;
        }
    }
    Ok(())
}

/// Makes the addresses of a cluster that exists follow the settings.
pub async fn announce(
    metadata: &Metadata,
    cluster: &str,
    service_url: &str,
    broker_service_url: &str,
) -> Result<(), MetadataError> {
    let (service_url, broker_service_url) = (Some(service_url.to_owned()), Some(broker_service_url.to_owned()));
    let current = metadata.get_cluster(cluster).await?.map(|current| current.value).unwrap_or_default();
    if current.service_url == service_url && current.broker_service_url == broker_service_url {
        return Ok(());
    }
    let change = |data: &mut ClusterData| {
        data.service_url.clone_from(&service_url);
        data.broker_service_url.clone_from(&broker_service_url);
        Ok(())
    };
    metadata.update_cluster(cluster, change).await.map(drop)
}

fn or_exists(outcome: Result<(), MetadataError>) -> Result<(), MetadataError> {
    match outcome {
        Err(MetadataError::AlreadyExists { .. }) => Ok(()),
        other => other,
    }
}
