//! Namespaces and their policies: `namespaces/<tenant>/<namespace>`.

use geminga_model::NamespaceName;

use super::{Metadata, Parent, Versioned, bundles, cursor_logs, garbage, partitioned, tenants, topics};
use crate::{Expect, MetadataError, Op, Policies, TenantInfo, codec};

pub(super) const WHAT: &str = "namespace";
pub(super) const PREFIX: &str = "namespaces/";

pub(super) fn key(name: &NamespaceName) -> String {
    format!("{PREFIX}{name}")
}

impl Metadata {
    /// Fails with [`MetadataError::NotFound`] of the tenant when there is no such tenant.
    pub async fn create_namespace(&self, name: &NamespaceName, policies: &Policies) -> Result<(), MetadataError> {
        let parent = Parent { what: tenants::WHAT, name: name.tenant(), key: tenants::key(name.tenant()) };
        self.create(WHAT, name.as_str(), &key(name), policies, Some(parent)).await.map(drop)
    }

    /// Creates a tenant together with its first namespace: both or none. Fails with [`MetadataError::AlreadyExists`] when
    /// one of them exists.
    pub async fn create_tenant_with_namespace(
        &self,
        tenant: &TenantInfo,
        name: &NamespaceName,
        policies: &Policies,
    ) -> Result<(), MetadataError> {
        let tenant_key = tenants::key(name.tenant());
        let ops = vec![
            Op::put(&*tenant_key, codec::encode(tenant)?, Expect::Absent),
            Op::put(key(name), codec::encode(policies)?, Expect::Absent),
        ];
        match self.store.commit(ops).await {
            Err(MetadataError::Conflict { key }) if key == tenant_key => {
                Err(MetadataError::AlreadyExists { what: tenants::WHAT, name: name.tenant().to_owned() })
            }
            Err(MetadataError::Conflict { .. }) => {
                Err(MetadataError::AlreadyExists { what: WHAT, name: name.to_string() })
            }
            other => other.map(drop),
        }
    }

    pub async fn get_namespace(&self, name: &NamespaceName) -> Result<Option<Versioned<Policies>>, MetadataError> {
        self.read(&key(name)).await
    }

    pub async fn update_namespace<F>(
        &self,
        name: &NamespaceName,
        change: F,
    ) -> Result<Versioned<Policies>, MetadataError>
    where
        F: FnMut(&mut Policies) -> Result<(), MetadataError> + Send,
    {
        self.update(WHAT, name.as_str(), &key(name), change).await
    }

    /// Refused with [`MetadataError::Conflict`] while the namespace has topics, partitioned or not. The ownership of its bundles
    /// and their cursor logs go with it; the ledgers of these are noted as garbage.
    pub async fn delete_namespace(&self, name: &NamespaceName, ledgers: &[u64]) -> Result<(), MetadataError> {
        let key = key(name);
        let mut ops = vec![
            Op::delete(&*key, Expect::Present),
            Op::check_empty(format!("{}{name}/", topics::PREFIX)),
            Op::check_empty(format!("{}{name}/", partitioned::PREFIX)),
            Op::delete_prefix(format!("{}{name}/", bundles::PREFIX)),
            Op::delete_prefix(format!("{}{name}/", bundles::REQUESTS)),
            Op::delete_prefix(format!("{}{name}/", cursor_logs::PREFIX)),
        ];
        ops.extend(garbage::note(ledgers)?);
        self.delete(WHAT, name.as_str(), &key, ops).await
    }

    pub async fn list_namespaces(&self, tenant: &str) -> Result<Vec<NamespaceName>, MetadataError> {
        let names = self.list_names(&format!("{PREFIX}{tenant}/")).await?;
        names.iter().map(|local| NamespaceName::new(tenant, local).map_err(MetadataError::from)).collect()
    }

    /// The prefix of the keys of all namespaces' policies, for [`crate::MetadataStore::watch`].
    pub const NAMESPACES_PREFIX: &str = PREFIX;
}
