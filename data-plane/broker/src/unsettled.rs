//! Topics and cursor logs that were closed while a commit of their records was under way, or whose outcome is not known. All of these
//! commits expect the version that the record had: it gets another one before the topic is loaded or the log is opened again, so that
//! they come to pass before that or never.

use std::sync::Arc;

use geminga_metadata::{Metadata, TopicRecord, Versioned};
use geminga_model::{BundleName, TopicName};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::broker::Broker;
use crate::bundle::Bundle;
use crate::cursors::Cursors;
use crate::error::{BrokerError, Result};
use crate::ownership::{Ownership, Tenure};

/// With the bundle by whose record they were written: once that has another version, they are refused for its sake.
#[derive(Default)]
pub(crate) struct Unsettled {
    topics: Mutex<FxHashMap<TopicName, (BundleName, Tenure)>>,
    logs: Mutex<FxHashMap<BundleName, Tenure>>,
}

impl Unsettled {
    pub fn add(&self, name: &TopicName, bundle: &Bundle) {
        self.topics.lock().insert(name.clone(), (bundle.name.clone(), bundle.tenure));
    }

    /// The cursor log of a bundle.
    pub fn add_log(&self, bundle: &Bundle) {
        self.logs.lock().insert(bundle.name.clone(), bundle.tenure);
    }

    fn contains(&self, name: &TopicName) -> bool {
        self.topics.lock().contains_key(name)
    }

    fn remove(&self, name: &TopicName) {
        self.topics.lock().remove(name);
    }

    /// Forgets those of bundles that this broker has lost.
    pub fn prune(&self, ownership: &Ownership) {
        self.topics.lock().retain(|_, (bundle, tenure)| ownership.holds(bundle, *tenure));
        self.logs.lock().retain(|bundle, tenure| ownership.holds(bundle, *tenure));
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

    /// So that nothing that an earlier instance began can change a cursor log that is about to be opened.
    pub(crate) async fn settle_log(&self, bundle: &BundleName, metadata: &Metadata) -> Result<()> {
        if self.shared.unsettled.logs.lock().contains_key(bundle) {
            Cursors::settle(&bundle.to_string(), metadata).await?;
            self.shared.unsettled.logs.lock().remove(bundle);
        }
        Ok(())
    }
}
