//! What a fresh standalone has: its cluster, the tenant `public` and the namespace `public/default`.

use std::collections::BTreeSet;

use geminga_metadata::{ClusterData, Metadata, MetadataError, Policies, TenantInfo};
use geminga_model::{DEFAULT_NAMESPACE, NamespaceName, PUBLIC_TENANT};

/// Hash ranges of a new namespace, as in Pulsar.
const BUNDLES: u32 = 4;

/// Creates what is missing and leaves alone what is there. The cluster's addresses follow the settings.
pub async fn bootstrap(
    metadata: &Metadata,
    cluster: &str,
    service_url: &str,
    broker_service_url: &str,
) -> Result<(), MetadataError> {
    let data = ClusterData {
        service_url: Some(service_url.to_owned()),
        broker_service_url: Some(broker_service_url.to_owned()),
        ..ClusterData::default()
    };
    match metadata.get_cluster(cluster).await? {
        None => or_exists(metadata.create_cluster(cluster, &data).await)?,
        Some(current)
            if current.value.service_url == data.service_url
                && current.value.broker_service_url == data.broker_service_url => {}
        Some(_) => {
            let change = |current: &mut ClusterData| {
                current.service_url.clone_from(&data.service_url);
                current.broker_service_url.clone_from(&data.broker_service_url);
                Ok(())
            };
            metadata.update_cluster(cluster, change).await?;
        }
    }
    if metadata.get_tenant(PUBLIC_TENANT).await?.is_none() {
        let tenant = TenantInfo { allowed_clusters: BTreeSet::from([cluster.to_owned()]), ..TenantInfo::default() };
        or_exists(metadata.create_tenant(PUBLIC_TENANT, &tenant).await)?;
        // With the tenant, so that a namespace that was deleted stays so.
        let namespace = NamespaceName::new(PUBLIC_TENANT, DEFAULT_NAMESPACE)?;
        or_exists(metadata.create_namespace(&namespace, &Policies::new_namespace(cluster, BUNDLES)).await)?;
    }
    Ok(())
}

fn or_exists(outcome: Result<(), MetadataError>) -> Result<(), MetadataError> {
    match outcome {
        Err(MetadataError::AlreadyExists { .. }) => Ok(()),
        other => other,
    }
}
