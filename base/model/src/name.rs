//! Tenants' and namespaces' names, by the rules of Pulsar's `NamedEntity` and `NamespaceName`.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a name was refused, in Pulsar's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(pub(crate) String);

impl InvalidName {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        InvalidName(reason.into())
    }
}

/// Refuses what Pulsar's `NamedEntity` refuses: names of tenants, namespaces and clusters are made of ASCII
/// letters, digits and `-=:._`. Empty names are refused as well.
pub fn check_entity_name(name: &str) -> Result<(), InvalidName> {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'=' | b':' | b'.' | b'_');
    if name.is_empty() || !name.bytes().all(allowed) {
        return Err(InvalidName(format!("Invalid named entity: {name}")));
    }
    Ok(())
}

/// `tenant/namespace`. Cloning shares the text.
#[derive(Clone)]
pub struct NamespaceName {
    full: Arc<str>,
    tenant_length: u32,
}

impl NamespaceName {
    pub fn new(tenant: &str, local: &str) -> Result<Self, InvalidName> {
        if tenant.is_empty() || local.is_empty() {
            return Err(InvalidName(format!("Invalid namespace format. namespace: {tenant}/{local}")));
        }
        check_entity_name(tenant)?;
        check_entity_name(local)?;
        let tenant_length = u32::try_from(tenant.len()).map_err(|_| InvalidName::new("Namespace name is too long"))?;
        Ok(NamespaceName { full: format!("{tenant}/{local}").into(), tenant_length })
    }

    /// Reads `tenant/namespace`. The old `tenant/cluster/namespace` is refused.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(tenant), Some(local), None, None) => NamespaceName::new(tenant, local),
            (Some(_), Some(_), Some(_), None) => Err(InvalidName(format!(
                "Invalid namespace format. namespace: {text}: V1 names with a cluster are not supported, use <tenant>/<namespace>"
            ))),
            _ => Err(InvalidName(format!("Invalid namespace format. expected <tenant>/<namespace> but got: {text}"))),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.full
    }

    pub fn tenant(&self) -> &str {
        &self.full[..self.tenant_length as usize]
    }

    /// The part after the tenant.
    pub fn local_name(&self) -> &str {
        &self.full[self.tenant_length as usize + 1..]
    }
}

impl PartialEq for NamespaceName {
    fn eq(&self, other: &Self) -> bool {
        self.full == other.full
    }
}

impl Eq for NamespaceName {}

impl Hash for NamespaceName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.full.hash(state);
    }
}

impl PartialOrd for NamespaceName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for NamespaceName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.full.cmp(&other.full)
    }
}

impl fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

impl fmt::Debug for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

impl FromStr for NamespaceName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        NamespaceName::parse(text)
    }
}

impl Serialize for NamespaceName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.full)
    }
}

impl<'de> Deserialize<'de> for NamespaceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        NamespaceName::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_parse_as_pulsar_does() {
        let name = NamespaceName::parse("my-tenant/ns=a:b.c_1").unwrap();
        assert_eq!((name.tenant(), name.local_name()), ("my-tenant", "ns=a:b.c_1"));
        assert_eq!(name.to_string(), "my-tenant/ns=a:b.c_1");
        for bad in ["", "a", "/", "a/", "/b", "a/b/c", "a/b/c/d", "a b/c", "a/ü", "a/b$"] {
            assert!(NamespaceName::parse(bad).is_err(), "{bad}");
        }
        assert!(NamespaceName::parse("a/b/c").unwrap_err().to_string().contains("V1"));
    }
}
