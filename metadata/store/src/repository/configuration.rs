//! Dynamic configuration of brokers: `configuration/<name>`.

use std::collections::BTreeMap;

use super::Metadata;
use crate::{Expect, MetadataError, Op, codec};

pub(super) const PREFIX: &str = "configuration/";

impl Metadata {
    pub async fn set_dynamic_configuration(&self, name: &str, value: &str) -> Result<(), MetadataError> {
        let op = Op::put(format!("{PREFIX}{name}"), codec::encode(&value)?, Expect::Any);
        self.store.commit(vec![op]).await.map(drop)
    }

    pub async fn delete_dynamic_configuration(&self, name: &str) -> Result<(), MetadataError> {
        self.store.commit(vec![Op::delete(format!("{PREFIX}{name}"), Expect::Any)]).await.map(drop)
    }

    pub async fn dynamic_configuration(&self) -> Result<BTreeMap<String, String>, MetadataError> {
        let values = self.list::<String>(PREFIX).await?;
        Ok(values.into_iter().map(|(name, value)| (name, value.value)).collect())
    }
}
