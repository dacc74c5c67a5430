//! Settings that may change while the broker runs: kept in metadata, so that they outlive it, and looked up in memory.
//! Those of Pulsar's that mean nothing here are kept for the tools that set them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::broker::Broker;
use crate::config::BrokerConfig;
use crate::dynamic_names::WITHOUT_EFFECT;
use crate::error::{BrokerError, Result};

const CREATE_TOPICS: &str = "allowAutoTopicCreation";
const CREATE_SUBSCRIPTIONS: &str = "allowAutoSubscriptionCreation";

const FORCE_DELETE_NAMESPACES: &str = "forceDeleteNamespaceAllowed";
const FORCE_DELETE_TENANTS: &str = "forceDeleteTenantAllowed";

/// Those that have an effect.
const SETTINGS: &[&str] = &[CREATE_SUBSCRIPTIONS, CREATE_TOPICS, FORCE_DELETE_NAMESPACES, FORCE_DELETE_TENANTS];

/// Names of all settings that can be set, which are Pulsar's.
pub fn dynamic_settings() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().chain(WITHOUT_EFFECT).copied()
}

pub(crate) struct DynamicSettings {
    pub create_topics: AtomicBool,
    pub create_subscriptions: AtomicBool,
    pub force_delete_namespaces: AtomicBool,
    pub force_delete_tenants: AtomicBool,
}

impl DynamicSettings {
    /// What is stored, else what the broker was started with.
    pub fn new(config: &BrokerConfig, stored: &BTreeMap<String, String>) -> Self {
        let settings = Self {
            create_topics: AtomicBool::new(true),
            create_subscriptions: AtomicBool::new(true),
            force_delete_namespaces: AtomicBool::new(false),
            force_delete_tenants: AtomicBool::new(false),
        };
        for name in SETTINGS {
            settings.apply(config, name, stored.get(*name).map(String::as_str));
        }
        settings
    }

    /// A value that is none leaves the setting as the broker was started with.
    fn apply(&self, config: &BrokerConfig, name: &str, value: Option<&str>) {
        let (setting, configured) = match name {
            CREATE_TOPICS => (&self.create_topics, config.auto_create_topics),
            CREATE_SUBSCRIPTIONS => (&self.create_subscriptions, config.auto_create_subscriptions),
            FORCE_DELETE_NAMESPACES => (&self.force_delete_namespaces, false),
            FORCE_DELETE_TENANTS => (&self.force_delete_tenants, false),
            _ => return,
        };
        let wanted = value.and_then(|value| {
            let parsed = value.trim().to_ascii_lowercase().parse().ok();
            if parsed.is_none() {
                tracing::warn!(name, value, "dynamic setting is neither true nor false: the configured value applies");
            }
            parsed
        });
        setting.store(wanted.unwrap_or(configured), Ordering::Relaxed);
    }
}

impl Broker {
    /// Changes a setting for good, or without a value returns it to what the broker was started with.
    pub async fn set_dynamic(&self, name: &str, value: Option<&str>) -> Result<()> {
        if !dynamic_settings().any(|known| known == name) {
            let verb = if value.is_some() { "update" } else { "delete" };
            return Err(BrokerError::PreconditionFailed(format!("Can't {verb} non-dynamic configuration")));
        }
        if value.is_some() && WITHOUT_EFFECT.contains(&name) {
            tracing::warn!(name, "dynamic setting is kept but has no effect");
        }
        match value {
            Some(value) => self.shared.metadata.set_dynamic_configuration(name, value).await?,
            None => self.shared.metadata.delete_dynamic_configuration(name).await?,
        }
        self.shared.dynamic.apply(&self.shared.config, name, value);
        Ok(())
    }

    /// Takes up what is stored.
    pub(crate) async fn read_dynamic(&self) -> Result<()> {
        let stored = self.shared.metadata.dynamic_configuration().await?;
        for name in SETTINGS {
            self.shared.dynamic.apply(&self.shared.config, name, stored.get(*name).map(String::as_str));
        }
        Ok(())
    }

    /// Topics come into being when a client asks for them, where no namespace says otherwise.
    pub fn auto_creates_topics(&self) -> bool {
        self.shared.dynamic.create_topics.load(Ordering::Relaxed)
    }

    /// The same for subscriptions.
    pub fn auto_creates_subscriptions(&self) -> bool {
        self.shared.dynamic.create_subscriptions.load(Ordering::Relaxed)
    }

    /// Whether a namespace may be deleted together with its topics.
    pub fn forced_namespace_deletion_allowed(&self) -> bool {
        self.shared.dynamic.force_delete_namespaces.load(Ordering::Relaxed)
    }

    /// Whether a tenant may be deleted together with its namespaces.
    pub fn forced_tenant_deletion_allowed(&self) -> bool {
        self.shared.dynamic.force_delete_tenants.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_there_once() {
        let names: std::collections::BTreeSet<_> = dynamic_settings().collect();
        assert_eq!(names.len(), dynamic_settings().count());
    }

    #[test]
    fn what_is_stored_goes_before_the_configuration() {
        let config = BrokerConfig { auto_create_topics: false, ..Default::default() };
        let stored = BTreeMap::from([(CREATE_SUBSCRIPTIONS.to_owned(), "False".to_owned())]);
        let settings = DynamicSettings::new(&config, &stored);
        let shown = |settings: &DynamicSettings| {
            (settings.create_topics.load(Ordering::Relaxed), settings.create_subscriptions.load(Ordering::Relaxed))
        };
        assert_eq!(shown(&settings), (false, false));
        settings.apply(&config, CREATE_TOPICS, Some("true"));
        settings.apply(&config, CREATE_SUBSCRIPTIONS, Some("{}"));
        assert_eq!(shown(&settings), (true, true));
        settings.apply(&config, CREATE_TOPICS, None);
        assert_eq!(shown(&settings), (false, true));
    }
}
