//! Partitioned topics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::http::StatusCode;
use futures_util::{StreamExt, TryStreamExt, stream};
use geminga_broker::{BrokerError, PARTITIONS_AT_ONCE, Topic, TopicStats};
use geminga_model::{NamespaceName, PARTITION_SUFFIX, TopicDomain, TopicName};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::{Answer, Call};
use crate::error::{ApiError, Result};
use crate::routing::{at_each_partition, do_at_each_partition};
use crate::topics::{existing, message_id, partitions, stats_options};

/// More partitions than any topic needs: a bound on the work of one request.
const PARTITIONS_MAX: u32 = 10_000;

/// What is asked of a partitioned topic as a whole whose partitions may be at other brokers. None: `path` is not such a thing.
pub(crate) async fn spread(call: &Call, name: &TopicName, count: u32, path: &[&str]) -> Result<Option<Answer>> {
    let method = call.method();
    let answer = match (method, path) {
        ("GET", ["partitioned-stats"]) => spread_stats(call, name, count).await?,
        ("GET", ["partitioned-internalStats"]) => {
            let each = by_partition(call, "GET", name, count, &["internalStats"]).await?;
            described_internal_stats(call, name, count, each).await?
        }
        ("GET", ["internal-info"]) => {
            let each = by_partition(call, "GET", name, count, path).await?;
            Answer::Json(json!({ "version": 0, "partitions": each }))
        }
        ("GET", ["subscriptions"]) => {
            let answers = at_each_partition(call, "GET", name, count, path).await?;
            let names = answers.into_iter().flat_map(|(_, answer)| match answer {
                Answer::Json(Value::Array(names)) => names,
                _ => Vec::new(),
            });
            Answer::json(names.filter_map(|name| name.as_str().map(str::to_owned)).collect::<BTreeSet<_>>())?
        }
        ("POST", ["terminate", "partitions"]) => {
            let ends = at_each_partition(call, "POST", name, count, &["terminate"]).await?.into_iter();
            let index = |partition: TopicName| partition.partition_index().unwrap_or_default().to_string();
            Answer::Json(Value::Object(ends.map(|(partition, end)| (index(partition), end.into_json())).collect()))
        }
        ("DELETE", ["partitions"]) => {
            let deletion = at_each_partition(call, "DELETE", name, count, &[]);
            call.broker.delete_partitions_first(name, deletion).await?;
            call.broker.delete_partitioned(name, call.flag("force")).await?;
            Answer::Nothing
        }
        (_, ["truncate" | "trim" | "unload"])
        | ("PUT" | "DELETE", ["subscription", _])
        | (_, ["subscription", _, "skip_all"])
        | (_, ["subscription", _, "resetcursor" | "expireMessages", _])
        | (_, ["subscription", _, "properties" | "replicatedSubscriptionStatus"])
        | (_, ["all_subscription", ..]) => do_at_each_partition(call, name, count, path).await?,
        _ => return Ok(None),
    };
    Ok(Some(answer))
}

async fn by_partition(
    call: &Call,
    method: &str,
    name: &TopicName,
    count: u32,
    path: &[&str],
) -> Result<serde_json::Map<String, Value>> {
    let answers = at_each_partition(call, method, name, count, path).await?;
    Ok(answers.into_iter().map(|(partition, answer)| (partition.to_string(), answer.into_json())).collect())
}

async fn spread_stats(call: &Call, name: &TopicName, count: u32) -> Result<Answer> {
    let each = by_partition(call, "GET", name, count, &["stats"]).await?;
    let mut total = TopicStats::default();
    for (partition, stats) in &each {
        let stats: TopicStats = serde_json::from_value(stats.clone()).map_err(|error| {
            ApiError::new(StatusCode::BAD_GATEWAY, format!("statistics of {partition} make no sense: {error}"))
        })?;
        total.add(&stats);
    }
    described_stats(call, &total, count, each)
}

pub(crate) async fn serve(call: &Call, name: &TopicName, path: &[&str]) -> Result<Answer> {
    match (call.method(), path) {
        ("GET", ["partitions"]) => get(call, name).await,
        ("PUT", ["partitions"]) => create(call, name).await,
        ("POST", ["partitions"]) => grow(call, name).await,
        ("DELETE", ["partitions"]) => {
            if name.is_partition() {
                check_partitioned_name(name)?;
            }
            if partitions(call, name).await? == 0 && call.broker.metadata().get_topic(name).await?.is_some() {
                return Err(ApiError::conflict(format!(
                    "{name} is a non-partitioned topic. Instead of calling delete-partitioned-topic please call delete."
                )));
            }
            call.broker.delete_partitioned(name, call.flag("force")).await?;
            Ok(Answer::Nothing)
        }
        ("POST", ["createMissedPartitions"]) => {
            let count = partitions(call, name).await?;
            if count == 0 {
                return Err(ApiError::not_found(format!("Topic {name} does not exist")));
            }
            call.broker.create_partitioned(name, count, BTreeMap::new()).await?;
            Ok(Answer::Nothing)
        }
        ("GET", ["partitioned-stats"]) => stats(call, name).await,
        ("GET", ["partitioned-internalStats"]) => internal_stats(call, name).await,
        ("POST", ["terminate", "partitions"]) => {
            let count = partitions(call, name).await?;
            if count == 0 {
                return Err(ApiError::not_allowed(
                    "Termination of a non-partitioned topic is not allowed using \
                                                  partitioned-terminate, please use terminate commands",
                ));
            }
            let ends = call.broker.terminate_partitioned(name, count).await?;
            let ends =
                ends.into_iter().enumerate().map(|(index, end)| (index.to_string(), message_id(end, None, None)));
            Ok(Answer::Json(Value::Object(ends.collect())))
        }
        _ => call.unsupported(),
    }
}

pub(crate) async fn list(call: &Call, namespace: &NamespaceName, domain: TopicDomain) -> Result<Answer> {
    call.broker.namespace_policies(namespace).await?;
    let topics = call.broker.metadata().list_partitioned_topics(namespace, domain).await?;
    Answer::json(topics.into_iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>())
}

/// The topic, or each of its partitions that exists: inactive ones are deleted until somebody uses them again.
pub(crate) async fn each(call: &Call, name: &TopicName) -> Result<Vec<Arc<Topic>>> {
    let count = partitions(call, name).await?;
    if count == 0 {
        return Ok(vec![existing(call, name).await?]);
    }
    let topics = stream::iter(0..count).map(|index| partition(call, name, index)).buffered(PARTITIONS_AT_ONCE);
    topics.try_filter_map(async |topic| Ok(topic)).try_collect().await
}

/// A partition, if it exists.
async fn partition(call: &Call, name: &TopicName, index: u32) -> Result<Option<Arc<Topic>>> {
    match call.broker.topic(&name.partition(index), false).await {
        Ok(topic) => Ok(Some(topic)),
        Err(BrokerError::TopicNotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn get(call: &Call, name: &TopicName) -> Result<Answer> {
    let create = call.flag("checkAllowAutoCreation");
    let partitions = match call.broker.partitions(name, create).await {
        Err(BrokerError::NamespaceNotFound(_)) => return Err(ApiError::not_found("Namespace not found")),
        other => other?,
    };
    let mut answer = json!({ "partitions": partitions, "deleted": false });
    if let Some(record) = call.broker.metadata().get_partitioned_topic(name).await?
        && !record.value.properties.is_empty()
    {
        answer["properties"] = json!(record.value.properties);
    }
    Ok(Answer::Json(answer))
}

/// The body: a number, or an object that has properties too.
#[derive(Deserialize)]
#[serde(untagged)]
enum Wanted {
    Number(i64),
    Described {
        partitions: i64,
        #[serde(default)]
        properties: Option<BTreeMap<String, String>>,
    },
}

async fn create(call: &Call, name: &TopicName) -> Result<Answer> {
    let (partitions, properties) = match call.json()? {
        Wanted::Number(partitions) => (partitions, BTreeMap::new()),
        Wanted::Described { partitions, properties } => (partitions, properties.unwrap_or_default()),
    };
    check_partitioned_name(name)?;
    let partitions = checked(partitions)?;
    match call.broker.create_new_partitioned(name, partitions, properties).await {
        Err(BrokerError::NamespaceNotFound(_)) => Err(ApiError::not_found("Namespace not found")),
        other => {
            other?;
            Ok(Answer::Nothing)
        }
    }
}

/// Refuses a name that the partitions of another topic could have.
fn check_partitioned_name(name: &TopicName) -> Result<()> {
    match name.local_name().contains(PARTITION_SUFFIX) {
        true => Err(ApiError::precondition("Partitioned Topic Name should not contain '-partition-'")),
        false => Ok(()),
    }
}

async fn grow(call: &Call, name: &TopicName) -> Result<Answer> {
    check_partitioned_name(name)?;
    let wanted: i64 = call.json()?;
    let current = partitions(call, name).await?;
    if current > 0 && wanted < i64::from(current) {
        return Err(ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("Desired partitions {wanted} can't be less than the current partitions {current}."),
        ));
    }
    call.broker.grow_partitioned(name, checked(wanted)?).await?;
    Ok(Answer::Nothing)
}

fn checked(partitions: i64) -> Result<u32> {
    match u32::try_from(partitions) {
        Ok(partitions @ 1..=PARTITIONS_MAX) => Ok(partitions),
        Ok(1..) => Err(ApiError::new(
            StatusCode::NOT_ACCEPTABLE,
            format!("Number of partitions should be less than or equal to {PARTITIONS_MAX}"),
        )),
        _ => Err(ApiError::new(StatusCode::NOT_ACCEPTABLE, "Number of partitions should be more than 0")),
    }
}

/// The partitions of a topic that must be partitioned.
async fn must_have_partitions(call: &Call, name: &TopicName) -> Result<u32> {
    match partitions(call, name).await? {
        0 => Err(ApiError::not_found(format!("Partitioned Topic {name} not found"))),
        count => Ok(count),
    }
}

async fn stats(call: &Call, name: &TopicName) -> Result<Answer> {
    check_partitioned_name(name)?;
    let count = must_have_partitions(call, name).await?;
    let options = stats_options(call);
    let mut total = TopicStats::default();
    let mut each = serde_json::Map::new();
    for index in 0..count {
        let Some(topic) = partition(call, name, index).await? else { continue };
        let stats = topic.stats(&options).await?;
        total.add(&stats);
        each.insert(topic.name().to_string(), to_json(&stats)?);
    }
    described_stats(call, &total, count, each)
}

fn described_stats(
    call: &Call,
    total: &TopicStats,
    count: u32,
    mut each: serde_json::Map<String, Value>,
) -> Result<Answer> {
    if call.query("perPartition") == Some("false") {
        each.clear();
    }
    let mut answer = to_json(total)?;
    answer["metadata"] = json!({ "partitions": count, "deleted": false });
    answer["partitions"] = Value::Object(each);
    Ok(Answer::Json(answer))
}

async fn internal_stats(call: &Call, name: &TopicName) -> Result<Answer> {
    let count = must_have_partitions(call, name).await?;
    let mut each = serde_json::Map::new();
    for index in 0..count {
        if let Some(topic) = partition(call, name, index).await? {
            each.insert(topic.name().to_string(), to_json(&topic.internal_stats())?);
        }
    }
    described_internal_stats(call, name, count, each).await
}

async fn described_internal_stats(
    call: &Call,
    name: &TopicName,
    count: u32,
    each: serde_json::Map<String, Value>,
) -> Result<Answer> {
    let mut metadata = json!({ "partitions": count, "deleted": false });
    let record = call.broker.metadata().get_partitioned_topic(name).await?;
    if let Some(record) = record.filter(|record| !record.value.properties.is_empty()) {
        metadata["properties"] = json!(record.value.properties);
    }
    Ok(Answer::Json(json!({ "metadata": metadata, "partitions": each })))
}

pub(crate) fn to_json(value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

pub(crate) async fn properties(call: &Call, name: &TopicName) -> Result<Answer> {
    let metadata = call.broker.metadata();
    match call.method() {
        "GET" => {
            let record = metadata.get_partitioned_topic(name).await?;
            return Answer::optional(record.map(|record| record.value.properties).filter(|map| !map.is_empty()));
        }
        "PUT" => {
            let wanted: BTreeMap<String, String> = call.json()?;
            metadata
                .update_partitioned_topic(name, |record| {
                    record.properties.extend(wanted.clone());
                    Ok(())
                })
                .await?;
        }
        "DELETE" => {
            let key = call.query("key").unwrap_or_default();
            metadata
                .update_partitioned_topic(name, |record| {
                    record.properties.remove(key);
                    Ok(())
                })
                .await?;
        }
        _ => return call.unsupported(),
    }
    Ok(Answer::Nothing)
}
