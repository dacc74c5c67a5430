//! Topics that were closed while a commit of their records was under way, or whose outcome is not known. All of these commits expect
//! the version that the topic's record had: it gets another one before the topic is loaded again, so that they come to pass before
//! that or never.

use std::sync::Arc;

use geminga_metadata::{TopicRecord, Versioned};
use geminga_model::{BundleName, TopicName};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::broker::Broker;
use crate::bundle::Bundle;
use crate::error::{BrokerError, Result};
use crate::ownership::{Ownership, Tenure};

/// With the bundle by whose record they were written: once that has another version, they are refused for its sake.
#[derive(Default)]
pub(crate) struct Unsettled(Mutex<FxHashMap<TopicName, (BundleName, Tenure)>>);

impl Unsettled {
    pub fn add(&self, name: &TopicName, bundle: &Bundle) {
        self.0.lock().insert(name.clone(), (bundle.name.clone(), bundle.tenure));
    }

    fn contains(&self, name: &TopicName) -> bool {
        self.0.lock().contains_key(name)
    }

    fn remove(&self, name: &TopicName) {
        self.0.lock().remove(name);
    }

    /// Forgets those of bundles that this broker has lost.
    pub fn prune(&self, ownership: &Ownership) {
        self.0.lock().retain(|_, (bundle, tenure)| ownership.holds(bundle, *tenure));
    }
}

impl Broker {
    /// The record of a topic that is about to be loaded, when nothing that an earlier instance began can change it any more.
    pub(crate) async fn settle(
        &self,
        bundle: &Arc<Bundle>,
        name: &TopicName,
        mut record: Versioned<TopicRecord>,
    ) -> Result<Versioned<TopicRecord>> {
        if !self.shared.unsettled.contains(name) {
            return Ok(record);
        }
        loop {
            match bundle.metadata.replace_topic(name, &record.value, record.version, &[], None).await {
                Ok(version) => {
                    self.shared.unsettled.remove(name);
                    return Ok(Versioned { version, ..record });
                }
                // What was under way has come to pass.
                Err(error) if error.is_conflict() => {
                    let found = self.shared.metadata.get_topic(name).await?;
                    record = found.ok_or_else(|| BrokerError::TopicNotFound(name.to_string()))?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
