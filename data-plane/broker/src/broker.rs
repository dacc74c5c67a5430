//! The broker: which topics there are, loading them, and what is asked about them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{StreamExt, TryStreamExt, stream};
use geminga_balance::Balancer;
use geminga_ledger_client::LedgerClient;
use geminga_metadata::{Metadata, MetadataError, PartitionedTopicRecord, TopicRecord, Versioned};
use geminga_model::{BundleName, NamespaceName, TopicDomain, TopicName};
use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::bundle::{Bundle, bundle_of};
use crate::completions::Completions;
use crate::config::BrokerConfig;
use crate::connections::Connections;
use crate::cursors::PendingAcks;
use crate::dynamic::DynamicSettings;
use crate::error::{BrokerError, Result};
use crate::memory::Memory;
use crate::ownership::{Owner, Ownership, not_served_here};
use crate::partitions::PARTITIONS_AT_ONCE;
use crate::policies::{EffectivePolicies, SharedPolicies, own_policies};
use crate::shared::{AckFlusher, Shared, now_ms};
use crate::slots::Slots;
use crate::topic::Topic;

/// Changes of topic lists that a slow watcher may lag behind before it reads the list anew.
const TOPIC_CHANGES: usize = 256;

pub struct Broker {
    pub(crate) shared: Arc<Shared>,
    topics: Slots<TopicName, Topic>,
    /// Those that this broker has opened.
    pub(crate) bundles: Slots<BundleName, Bundle>,
    pub(crate) ownership: Arc<Ownership>,
    /// Of the leader, while this broker is that, or was.
    pub(crate) balancer: Mutex<Option<Arc<Mutex<Balancer>>>>,
    /// What it follows for as long as it lives.
    pub(crate) tasks: Mutex<Vec<tokio::task::AbortHandle>>,
    changes: broadcast::Sender<NamespaceName>,
    /// What it does by itself from time to time.
    pub(crate) housekeeping: Mutex<Option<tokio::task::JoinHandle<()>>>,
    pub(crate) housekeeping_rounds: AtomicU64,
    shared_policies: SharedPolicies,
    pub(crate) connections: Connections,
    names: AtomicU64,
    /// A number that no other broker of the cluster was given, nor this one at another start.
    life: u64,
}

impl Broker {
    /// Starts on metadata and ledgers that no other broker uses. Needs a tokio runtime.
    pub async fn start(config: BrokerConfig, metadata: Metadata, ledgers: Arc<dyn LedgerClient>) -> Result<Arc<Self>> {
        Broker::start_shared(config, metadata, ledgers, Ownership::alone()).await
    }

    /// Starts on metadata and ledgers that it shares with the brokers that `ownership` knows.
    pub async fn start_shared(
        config: BrokerConfig,
        metadata: Metadata,
        ledgers: Arc<dyn LedgerClient>,
        ownership: Arc<Ownership>,
    ) -> Result<Arc<Self>> {
        let life = metadata.store().allocate("broker-life", 1).await?;
        let lanes = std::thread::available_parallelism().map_or(2, usize::from);
        let shared = Arc::new(Shared {
            memory: Arc::new(Memory::divide(config.memory_limit)),
            completions: Completions::start(lanes),
            ack_flusher: AckFlusher::start(config.ack_flush_interval),
            stages: Default::default(),
            departed: Default::default(),
            unsettled: Default::default(),
            pending_acks: PendingAcks::new(config.max_pending_ack_bytes),
            dynamic: DynamicSettings::new(&config, &metadata.dynamic_configuration().await?),
            config,
            metadata,
            ledgers,
        });
        let broker = Arc::new(Self {
            shared,
            topics: Slots::default(),
            bundles: Slots::default(),
            ownership,
            balancer: Mutex::default(),
            tasks: Mutex::default(),
            changes: broadcast::channel(TOPIC_CHANGES).0,
            housekeeping: Mutex::default(),
            housekeeping_rounds: AtomicU64::new(0),
            shared_policies: SharedPolicies::default(),
            connections: Connections::default(),
            names: AtomicU64::new(0),
            life,
        });
        broker.migrate_cursor_log().await?;
        if broker.ownership.is_shared() {
            broker.follow_metadata().await?;
            broker.follow_ownership();
            broker.balance_load();
        }
        broker.clone().start_housekeeping();
        Ok(broker)
    }

    pub fn config(&self) -> &BrokerConfig {
        &self.shared.config
    }

    pub fn memory(&self) -> &Memory {
        &self.shared.memory
    }

    /// Told by whoever accepts them.
    pub fn connections(&self) -> &Connections {
        &self.connections
    }

    pub fn metadata(&self) -> &Metadata {
        &self.shared.metadata
    }

    /// The topic, loaded. With `may_create` it comes into being if the namespace allows that.
    pub async fn topic(&self, name: &TopicName, may_create: bool) -> Result<Arc<Topic>> {
        loop {
            let topic = self.topics.get_or_load(name, || self.load(name, may_create)).await?;
            if topic.bundle().is_over() {
                // The bundle went while the topic was being loaded, or is going.
                topic.tell_closed(None);
                self.forget(&topic);
                return Err(not_served_here(&topic.bundle().name));
            }
            if topic.is_serving() {
                topic.asked_for();
                return Ok(topic);
            }
            // It is being closed: once it is out of the map, load it again. It may serve on, as a deletion can fail.
            topic.closed().await;
            if topic.is_closed() {
                self.forget(&topic);
            }
        }
    }

    /// Forgets a topic that has closed, unless it was loaded again since.
    pub(crate) fn forget(&self, topic: &Arc<Topic>) {
        topic.depart();
        topic.bundle().forget(topic);
        self.topics.forget(topic.name(), topic);
    }

    /// The topic if it is loaded.
    pub fn loaded(&self, name: &TopicName) -> Option<Arc<Topic>> {
        self.topics.get(name)
    }

    /// All loaded topics, in no order.
    pub fn loaded_topics(&self) -> Vec<Arc<Topic>> {
        self.topics.all()
    }

    /// How many topics lists of all of them have had so far.
    #[cfg(test)]
    pub fn topics_copied(&self) -> usize {
        self.topics.copied()
    }

    async fn load(&self, name: &TopicName, may_create: bool) -> Result<Arc<Topic>> {
        let policies = self.policies(name).await?;
        let bundle = self.bundle(&bundle_of(name, &policies)).await?;
        let load = async {
            // The bundle may have been split since it was named. From here on that waits for the topic.
            if bundle_of(name, &self.policies(name).await?) != bundle.name {
                return Err(not_served_here(&bundle.name));
            }
            let record = match self.shared.metadata.get_topic(name).await? {
                Some(record) => record,
                None if may_create => self.create_automatically(name, &policies).await?,
                None => return Err(BrokerError::TopicNotFound(name.to_string())),
            };
            let record = self.settle(&bundle, name, record).await?;
            Topic::load(self.shared.clone(), bundle.clone(), name.clone(), record, policies).await
        };
        let loaded = bundle.load(load).await;
        if matches!(loaded, Ok(_) | Err(BrokerError::TopicNotFound(_))) {
            bundle.resting.lock().remove(name);
        }
        loaded
    }

    /// What applies to a topic; an error when it could not be read.
    pub(crate) async fn policies(&self, name: &TopicName) -> Result<EffectivePolicies> {
        let namespace = name.namespace();
        let Some(policies) = self.shared.metadata.get_namespace(namespace).await? else {
            return Err(BrokerError::NamespaceNotFound(namespace.to_string()));
        };
        let topic = self.shared.metadata.get_topic_policies(&name.partitioned_base()).await?;
        Ok(EffectivePolicies { namespace: self.shared_policies.share(namespace, policies), topic: own_policies(topic) })
    }

    async fn create_automatically(
        &self,
        name: &TopicName,
        policies: &EffectivePolicies,
    ) -> Result<Versioned<TopicRecord>> {
        if policies.namespace.deleted {
            return Err(BrokerError::NamespaceNotFound(name.namespace().to_string()));
        }
        let of = match name.is_partition() {
            true => self.shared.metadata.get_partitioned_topic(&name.partitioned_base()).await?,
            false => None,
        };
        if of.as_ref().is_some_and(|of| of.value.deleted) {
            return Err(BrokerError::TopicNotFound(name.to_string()));
        }
        let known_partition = of.is_some();
        let beyond = |partitions| name.partition_index().is_some_and(|index| index >= partitions);
        if of.is_some_and(|of| beyond(of.value.partitions)) {
            return Err(BrokerError::TopicNotFound(name.to_string()));
        }
        if !known_partition && !self.auto_creation(policies).allowed {
            return Err(BrokerError::TopicNotFound(name.to_string()));
        }
        if !known_partition && self.shared.metadata.get_partitioned_topic(name).await?.is_some() {
            return Err(BrokerError::NotAllowed(format!("{name} is a partitioned topic: name a partition")));
        }
        if !known_partition {
            self.check_topic_limit(&policies.namespace, name, 1).await.map_err(not_allowed)?;
        }
        self.create_record(name, Default::default()).await
    }

    pub(crate) async fn is_known_partition(&self, name: &TopicName) -> Result<bool> {
        let Some(index) = name.partition_index() else { return Ok(false) };
        let base = self.shared.metadata.get_partitioned_topic(&name.partitioned_base()).await?;
        Ok(base.is_some_and(|base| index < base.value.partitions && !base.value.deleted))
    }

    /// Creates the record of a topic, or takes the one that somebody else has just created.
    pub(crate) async fn create_record(
        &self,
        name: &TopicName,
        properties: std::collections::BTreeMap<String, String>,
    ) -> Result<Versioned<TopicRecord>> {
        let record = TopicRecord { created_at: now_ms(), properties, ..Default::default() };
        match self.shared.metadata.create_topic(name, record).await {
            Ok(created) => {
                self.topic_list_changed(name.namespace());
                Ok(created)
            }
            Err(MetadataError::AlreadyExists { .. }) => self
                .shared
                .metadata
                .get_topic(name)
                .await?
                .ok_or_else(|| BrokerError::ServiceNotReady(format!("topic {name} was deleted just now"))),
            Err(MetadataError::NotFound { .. }) => Err(BrokerError::NamespaceNotFound(name.namespace().to_string())),
            Err(error) => Err(error.into()),
        }
    }

    fn auto_creation(&self, policies: &EffectivePolicies) -> AutoCreation {
        match &policies.namespace.auto_topic_creation_override {
            Some(policy) => AutoCreation {
                allowed: policy.allow_auto_topic_creation,
                partitions: match policy.topic_type.as_deref() {
                    Some("partitioned") => policy.default_num_partitions.unwrap_or(1).max(1) as u32,
                    _ => 0,
                },
            },
            None => AutoCreation {
                allowed: self.auto_creates_topics(),
                partitions: self.shared.config.auto_create_partitions,
            },
        }
    }

    /// Number of partitions, 0 for a topic that is not partitioned. With `may_create`, a topic that does not exist is
    /// created partitioned where that is the rule.
    pub async fn partitions(&self, name: &TopicName, may_create: bool) -> Result<u32> {
        let metadata = &self.shared.metadata;
        let policies = self.policies(name).await?;
        if let Some(record) = metadata.get_partitioned_topic(name).await? {
            return match record.value.deleted {
                true => Err(BrokerError::TopicNotFound(name.to_string())),
                false => Ok(record.value.partitions),
            };
        }
        if metadata.get_topic(name).await?.is_some() {
            return Ok(0);
        }
        let auto = self.auto_creation(&policies);
        if let Some(index) = name.partition_index() {
            let base = metadata.get_partitioned_topic(&name.partitioned_base()).await?;
            let may_be = match base {
                Some(base) => index < base.value.partitions,
                None => may_create && auto.allowed,
            };
            return if may_be { Ok(0) } else { Err(BrokerError::TopicNotFound(name.to_string())) };
        }
        if !may_create || !auto.allowed {
            return Err(BrokerError::TopicNotFound(name.to_string()));
        }
        if has_never_partitions(name) {
            return Ok(0);
        }
        if auto.partitions > 0 {
            self.check_topic_limit(&policies.namespace, name, auto.partitions as usize).await.map_err(not_allowed)?;
            self.create_partitioned(name, auto.partitions, Default::default()).await?;
        }
        Ok(auto.partitions)
    }

    /// Creates a partitioned topic and its partitions.
    pub async fn create_partitioned(
        &self,
        name: &TopicName,
        partitions: u32,
        properties: std::collections::BTreeMap<String, String>,
    ) -> Result<()> {
        let record = PartitionedTopicRecord { partitions, properties, deleted: false };
        match self.shared.metadata.create_partitioned_topic(name, &record).await {
            Ok(()) | Err(MetadataError::AlreadyExists { .. }) => {}
            Err(MetadataError::NotFound { .. }) => {
                return Err(BrokerError::NamespaceNotFound(name.namespace().to_string()));
            }
            Err(error) => return Err(error.into()),
        }
        self.create_missing_partitions(name, partitions).await
    }

    pub(crate) async fn create_missing_partitions(&self, name: &TopicName, partitions: u32) -> Result<()> {
        let create = async |index| {
            let partition = name.partition(index);
            if self.shared.metadata.get_topic(&partition).await?.is_none() {
                self.create_record(&partition, Default::default()).await?;
            }
            Ok(())
        };
        stream::iter(0..partitions).map(create).buffer_unordered(PARTITIONS_AT_ONCE).try_collect().await
    }

    /// Who serves the topic; somebody does from now on.
    pub async fn lookup(&self, name: &TopicName) -> Result<Owner> {
        let policies = self.policies(name).await?;
        self.ownership.find(&bundle_of(name, &policies)).await
    }

    /// Takes no more bundles from now on; whoever leads gives those that it has to others.
    pub async fn drain(&self) -> Result<()> {
        self.ownership.drain().await
    }

    /// How bundles are shared with other brokers.
    pub fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    /// Whether the topic is there, or would come into being if a client asked for it.
    pub async fn is_reachable(&self, name: &TopicName) -> Result<bool> {
        let policies = self.policies(name).await?;
        let metadata = &self.shared.metadata;
        Ok(self.auto_creation(&policies).allowed
            || metadata.get_topic(name).await?.is_some()
            || metadata.get_partitioned_topic(name).await?.is_some()
            || self.is_known_partition(name).await?)
    }

    /// Names of a namespace's topics, partitions as topics of their own, sorted.
    pub async fn topics(&self, namespace: &NamespaceName, domains: &[TopicDomain]) -> Result<Vec<String>> {
        if self.shared.metadata.get_namespace(namespace).await?.is_none() {
            return Err(BrokerError::NamespaceNotFound(namespace.to_string()));
        }
        let mut names = BTreeSet::new();
        for domain in domains {
            let topics = self.shared.metadata.list_topics(namespace, *domain).await?;
            names.extend(topics.into_iter().map(|topic| topic.to_string()));
        }
        Ok(names.into_iter().collect())
    }

    /// Namespaces in which a topic came or went.
    pub fn topic_changes(&self) -> broadcast::Receiver<NamespaceName> {
        self.changes.subscribe()
    }

    pub(crate) fn topic_list_changed(&self, namespace: &NamespaceName) {
        // Nobody may be watching.
        let _ = self.changes.send(namespace.clone());
    }

    /// Deletes a topic. Unless forced, nobody may be connected.
    pub async fn delete_topic(&self, name: &TopicName, force: bool) -> Result<()> {
        let topic = self.topic(name, false).await?;
        topic.close_for_deletion(force)?;
        self.finish_deletion(&topic).await
    }

    /// Deletes a topic that was closed for that.
    pub(crate) async fn finish_deletion(&self, topic: &Arc<Topic>) -> Result<()> {
        let name = topic.name();
        let record = match topic.delete_records().await {
            Ok(record) => record,
            // It may be gone, or is: what is published to it now could be deleted with it. Whoever asks next learns what there is.
            Err(error) if error.is_deposed() || matches!(error, MetadataError::OutcomeUnknown(_)) => {
                self.let_go(topic).await;
                return Err(error.into());
            }
            Err(error) if error.is_not_found() => {
                self.let_go(topic).await;
                return Err(BrokerError::TopicNotFound(name.to_string()));
            }
            Err(error) => {
                topic.serve_again();
                return Err(error.into());
            }
        };
        self.forget(topic);
        topic.deleted(&record);
        self.topic_list_changed(name.namespace());
        Ok(())
    }

    /// Closes a topic; its clients find it again by a lookup, which loads it.
    pub async fn unload(&self, name: &TopicName) -> Result<()> {
        if let Some(topic) = self.loaded(name) {
            self.let_go(&topic).await;
        }
        Ok(())
    }

    async fn let_go(&self, topic: &Arc<Topic>) {
        topic.close().await;
        topic.tell_closed(None);
        self.forget(topic);
    }

    pub(crate) fn life(&self) -> u64 {
        self.life
    }

    /// Whether a consumer may create its subscription.
    pub fn may_create_subscription(&self, topic: &Topic) -> Result<bool> {
        let allowed = topic.policies().auto_subscription_creation(self.auto_creates_subscriptions());
        // Those of a topic that keeps nothing hold nothing back.
        Ok(allowed || !topic.name().is_persistent())
    }

    /// A producer name that no other producer of this cluster has.
    pub fn next_producer_name(&self) -> String {
        format!("{}-{}-{}", self.shared.config.cluster, self.life, self.names.fetch_add(1, Ordering::Relaxed))
    }

    pub fn next_consumer_name(&self) -> String {
        format!("{:x}-{:x}", self.life, self.names.fetch_add(1, Ordering::Relaxed))
    }

    /// Lets what is in flight finish: acknowledgements are written, topics are closed.
    pub async fn shut_down(self: &Arc<Self>) {
        self.stop_housekeeping().await;
        self.shared.ack_flusher.flush();
        if let Err(error) = self.ownership.drain().await {
            tracing::warn!(%error, "could not tell other brokers that this one goes");
        }
        self.give_up_all().await;
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
        self.ownership.leave().await;
    }
}

struct AutoCreation {
    allowed: bool,
    partitions: u32,
}

/// Topics of dead letters and of what is tried again have no partitions unless they are made so, as in Pulsar.
fn has_never_partitions(name: &TopicName) -> bool {
    let name = name.as_str();
    name.ends_with("-DLQ") || name.ends_with("-RETRY")
}

/// What an operator is told about a precondition, a client is told as something it may not do.
fn not_allowed(error: BrokerError) -> BrokerError {
    match error {
        BrokerError::PreconditionFailed(reason) => BrokerError::NotAllowed(reason),
        other => other,
    }
}
