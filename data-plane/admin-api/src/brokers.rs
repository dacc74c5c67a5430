//! `/admin/v2/brokers`, `/admin/v2/broker-stats`

use std::collections::BTreeMap;

use axum::http::StatusCode;
use geminga_broker::{Broker, StatsOptions, Topic, dynamic_settings};
use geminga_model::topic_hash;
use serde_json::{Map, Value, json};

use crate::call::{Answer, Call};
use crate::error::{ApiError, Result};
use crate::partitioned::to_json;

pub(crate) async fn serve(call: &Call, path: &[&str]) -> Result<Answer> {
    let broker = &call.broker;
    let address = &broker.config().advertised_http;
    match (call.method(), path) {
        ("GET", []) => Ok(Answer::Json(json!(alive(broker)))),
        ("GET", ["leaderBroker"]) => {
            let leader = if broker.ownership().is_shared() { broker.leader().await? } else { Some(address.clone()) };
            let leader = leader.ok_or_else(|| ApiError::not_found("Couldn't find leader broker"))?;
            Ok(Answer::Json(json!({ "serviceUrl": format!("http://{leader}"), "brokerId": leader })))
        }
        ("GET", ["health"]) => {
            check_health(broker).await?;
            Ok(Answer::Text("ok".into()))
        }
        // Of this broker, which the request must be sent to.
        ("POST", ["drain"]) => {
            broker.drain().await?;
            Ok(Answer::Nothing)
        }
        ("GET", ["ready"]) => {
            check_metadata(broker).await?;
            Ok(Answer::Text("ok".into()))
        }
        // Quotas are looked after all the time.
        ("GET", ["backlog-quota-check"]) => Ok(Answer::Nothing),
        ("GET", ["version"]) => Ok(Answer::Text(env!("CARGO_PKG_VERSION").into())),
        ("GET", ["configuration"]) => Ok(Answer::Json(json!(dynamic_settings().collect::<Vec<_>>()))),
        ("GET", ["configuration", "values"]) => Answer::json(broker.metadata().dynamic_configuration().await?),
        ("GET", ["configuration", "runtime"]) => Answer::json(runtime_configuration(broker)),
        ("POST", ["configuration", name, value]) => {
            broker.set_dynamic(name, Some(value)).await?;
            Ok(Answer::Unset)
        }
        ("DELETE", ["configuration", name]) => {
            broker.set_dynamic(name, None).await?;
            Ok(Answer::Unset)
        }
        ("GET", ["internal-configuration"]) => Ok(Answer::Json(json!({
            "zookeeperServers": "",
            "configurationStoreServers": "",
            "metadataStoreUrl": "",
            "configurationMetadataStoreUrl": "",
            "ledgersRootPath": "/ledgers",
            "bookkeeperMetadataServiceUri": "",
            "stateStorageServiceUrl": "",
        }))),
        ("GET", [_cluster]) => Ok(Answer::Json(json!(alive(broker)))),
        ("GET", [_cluster, id, "ownedNamespaces"]) => owned_namespaces(broker, id).await,
        _ => call.unsupported(),
    }
}

/// The ids of the brokers that are alive.
fn alive(broker: &Broker) -> Vec<String> {
    match broker.ownership().is_shared() {
        true => broker.ownership().brokers().into_iter().map(|broker| broker.id).collect(),
        false => vec![broker.config().advertised_http.clone()],
    }
}

/// Metadata answers.
pub(crate) async fn check_metadata(broker: &Broker) -> Result<()> {
    broker
        .metadata()
        .list_tenants()
        .await
        .map(drop)
        .map_err(|error| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, format!("metadata does not answer: {error}")))
}

/// Metadata answers and storage takes a record.
async fn check_health(broker: &Broker) -> Result<()> {
    check_metadata(broker).await?;
    broker
        .check_storage()
        .await
        .map_err(|error| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, format!("storage takes no writes: {error}")))
}

fn runtime_configuration(broker: &Broker) -> BTreeMap<&'static str, String> {
    let config = broker.config();
    BTreeMap::from([
        ("clusterName", config.cluster.clone()),
        ("allowAutoTopicCreation", broker.auto_creates_topics().to_string()),
        (
            "allowAutoTopicCreationType",
            if config.auto_create_partitions > 0 { "partitioned" } else { "non-partitioned" }.to_owned(),
        ),
        ("defaultNumPartitions", config.auto_create_partitions.max(1).to_string()),
        ("allowAutoSubscriptionCreation", broker.auto_creates_subscriptions().to_string()),
        ("brokerDeduplicationEnabled", config.deduplication.to_string()),
        ("brokerDeduplicationEntriesInterval", config.deduplication_snapshot_entries.to_string()),
        ("maxMessageSize", config.max_message_bytes.to_string()),
        ("maxUnackedMessagesPerConsumer", config.max_unacked_per_consumer.to_string()),
        ("maxUnackedMessagesPerSubscription", config.max_unacked_per_subscription.to_string()),
        ("acknowledgmentAtBatchIndexLevelEnabled", "true".to_owned()),
        ("exposeTopicLevelMetricsInPrometheus", config.metrics_per_topic.unwrap_or(true).to_string()),
    ])
}

async fn owned_namespaces(broker: &Broker, id: &str) -> Result<Answer> {
    if !alive(broker).iter().any(|known| known == id) {
        return Err(ApiError::not_found(format!("Broker id '{id}' not found in available brokers.")));
    }
    let status = || json!({ "broker_assignment": "shared", "is_controlled": false, "is_active": true });
    if broker.ownership().is_shared() {
        let owned = broker.ownership().bundles().into_iter().filter(|bundle| bundle.owner == id);
        return Ok(Answer::Json(Value::Object(owned.map(|bundle| (bundle.bundle.to_string(), status())).collect())));
    }
    // A broker that is alone owns every bundle; those are shown that anybody uses.
    let mut owned = Map::new();
    for topic in broker.loaded_topics() {
        let namespace = topic.name().namespace();
        for range in broker.namespace_policies(namespace).await?.bundle_ranges() {
            owned.entry(format!("{namespace}/{range}")).or_insert_with(status);
        }
    }
    Ok(Answer::Json(Value::Object(owned)))
}

pub(crate) async fn stats(call: &Call, path: &[&str]) -> Result<Answer> {
    match (call.method(), path) {
        ("GET", ["topics"]) => topics(&call.broker).await,
        ("GET", ["balance"]) => match call.broker.explain_balance() {
            Some(explanation) => Ok(Answer::Text(explanation)),
            None => Err(ApiError::not_found("this broker does not lead; see brokers/leaderBroker")),
        },
        ("GET", ["metrics"]) => Ok(Answer::Json(metrics(&call.broker))),
        ("GET", ["allocator-stats", "default" | "ml-cache"]) => Ok(Answer::Json(allocator())),
        ("GET", ["allocator-stats", other]) => {
            Err(ApiError::new(StatusCode::NOT_ACCEPTABLE, format!("Invalid allocator name : {other}")))
        }
        // There is no Java virtual machine.
        ("GET", ["mbeans"]) => Ok(Answer::Json(json!([]))),
        ("GET", ["broker-resource-availability", _, _]) => {
            Err(ApiError::conflict("the load manager does not support this operation"))
        }
        ("GET", ["load-report"]) => Ok(Answer::Json(json!({
            "webServiceUrl": format!("http://{}", call.broker.config().advertised_http),
            "pulsarServiceUrl": format!("pulsar://{}", call.broker.config().advertised_pulsar),
            "numTopics": call.broker.loaded_topics().len(),
        }))),
        _ => call.unsupported(),
    }
}

/// Every loaded topic, by namespace, bundle and domain.
async fn topics(broker: &Broker) -> Result<Answer> {
    let mut namespaces = json!({});
    for topic in broker.loaded_topics() {
        let name = topic.name();
        let policies = broker.namespace_policies(name.namespace()).await?;
        let bundle = policies.bundle_range(topic_hash(name.as_str())).to_string();
        namespaces[name.namespace().as_str()][bundle][name.domain().as_str()][name.as_str()] = figures(&topic).await?;
    }
    Ok(Answer::Json(namespaces))
}

/// A topic's statistics, and some of them once more under the names that Pulsar has only here.
async fn figures(topic: &Topic) -> Result<Value> {
    let mut stats = to_json(&topic.stats(&StatsOptions::default()).await?)?;
    for (here, elsewhere) in [
        ("msgInCount", "msgInCounter"),
        ("bytesInCount", "bytesInCounter"),
        ("msgOutCount", "msgOutCounter"),
        ("bytesOutCount", "bytesOutCounter"),
    ] {
        stats[here] = stats[elsewhere].clone();
    }
    stats["producerCount"] = json!(stats["publishers"].as_array().map_or(0, Vec::len));
    stats["pendingAddEntriesCount"] = json!(0);
    stats["filteredEntriesCount"] = json!(0);
    Ok(stats)
}

/// In the shape of Pulsar's allocators, none of which there are.
fn allocator() -> Value {
    json!({
        "numDirectArenas": 0,
        "numHeapArenas": 0,
        "numThreadLocalCaches": 0,
        "normalCacheSize": 0,
        "smallCacheSize": 0,
        "usedDirectMemory": 0,
        "usedHeapMemory": 0,
        "directArenas": [],
        "heapArenas": [],
    })
}

/// The samples of `/metrics` as Pulsar's list of objects.
fn metrics(broker: &Broker) -> Value {
    let mut page = String::new();
    geminga_broker::metrics::render(broker, &mut page);
    let mut values = Map::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        if let Some((name, value)) = line.rsplit_once(' ')
            && let Ok(value) = value.parse::<f64>()
        {
            values.insert(name.to_owned(), json!(value));
        }
    }
    json!([{ "metrics": values, "dimensions": {} }])
}
