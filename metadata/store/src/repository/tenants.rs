//! Tenants: `tenants/<name>`.

use std::collections::BTreeSet;

use geminga_model::check_entity_name;
use serde::{Deserialize, Deserializer, Serialize};

use super::{Metadata, Versioned, namespaces};
use crate::policies::Extra;
use crate::{Expect, MetadataError, Op};

pub(super) const WHAT: &str = "tenant";
const PREFIX: &str = "tenants/";

/// Pulsar's `TenantInfo`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TenantInfo {
    #[serde(deserialize_with = "or_none")]
    pub admin_roles: BTreeSet<String>,
    pub allowed_clusters: BTreeSet<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// A list that may be given as null.
fn or_none<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeSet<String>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

pub(super) fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

impl Metadata {
    pub async fn create_tenant(&self, name: &str, info: &TenantInfo) -> Result<(), MetadataError> {
        check_entity_name(name)?;
        self.create(WHAT, name, &key(name), info, None).await.map(drop)
    }

    pub async fn get_tenant(&self, name: &str) -> Result<Option<Versioned<TenantInfo>>, MetadataError> {
        self.read(&key(name)).await
    }

    pub async fn update_tenant<F>(&self, name: &str, change: F) -> Result<Versioned<TenantInfo>, MetadataError>
    where
        F: FnMut(&mut TenantInfo) -> Result<(), MetadataError> + Send,
    {
        self.update(WHAT, name, &key(name), change).await
    }

    /// Refused with [`MetadataError::Conflict`] while the tenant has namespaces.
    pub async fn delete_tenant(&self, name: &str) -> Result<(), MetadataError> {
        let key = key(name);
        let ops = vec![Op::delete(&*key, Expect::Present), Op::check_empty(format!("{}{name}/", namespaces::PREFIX))];
        self.delete(WHAT, name, &key, ops).await
    }

    pub async fn list_tenants(&self) -> Result<Vec<String>, MetadataError> {
        self.list_names(PREFIX).await
    }
}
