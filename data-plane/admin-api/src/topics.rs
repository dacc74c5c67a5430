//! `/admin/v2/persistent` and `/admin/v2/non-persistent`: topics. Their partitions, subscriptions, messages and policies
//! are in partitioned.rs, subscriptions.rs, messages.rs and topic_policies.rs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::http::StatusCode;
use geminga_broker::{BrokerError, Topic};
use geminga_model::{Position, TopicDomain, TopicName};
use serde_json::{Value, json};

use crate::call::{Answer, Call, number, subscription_name};
use crate::error::{ApiError, Result};
use crate::{bundles, messages, namespaces, partitioned, subscriptions, topic_policies};

pub(crate) async fn serve(call: &Call, domain: &str, path: &[&str]) -> Result<Answer> {
    let domain: TopicDomain = domain.parse()?;
    match (call.method(), path) {
        ("GET", [tenant, local]) => namespaces::list(call, &namespaces::name(tenant, local)?, &[domain]).await,
        ("GET", [tenant, local, "partitioned"]) => {
            partitioned::list(call, &namespaces::name(tenant, local)?, domain).await
        }
        ("GET", [tenant, local, bundle]) if bundles::is_bundle(bundle) => {
            let namespace = namespaces::name(tenant, local)?;
            namespaces::list_bundle(call, &namespace, domain, bundle).await
        }
        (_, [tenant, local, topic, rest @ ..]) => {
            let namespace = namespaces::name(tenant, local)?;
            let name = TopicName::new(domain, namespace, topic)
                .map_err(|error| ApiError::precondition(format!("Topic name is not valid: {error}")))?;
            of_topic(call, &name, rest).await
        }
        _ => call.unsupported(),
    }
}

async fn of_topic(call: &Call, name: &TopicName, path: &[&str]) -> Result<Answer> {
    if call.broker.ownership().is_shared() {
        let count = partitions(call, name).await?;
        if count > 0
            && let Some(answer) = partitioned::spread(call, name, count, path).await?
        {
            return Ok(answer);
        }
    }
    match (call.method(), path) {
        ("PUT", []) => create(call, name).await,
        ("DELETE", []) => delete(call, name).await,
        ("GET", ["stats"]) => stats(call, name).await,
        ("GET", ["internalStats"]) => Answer::json(existing(call, name).await?.internal_stats()),
        ("GET", ["internal-info"]) => internal_info(call, name).await,
        ("GET", ["lastMessageId"]) => last_message_id(call, name).await,
        ("GET", ["backlog"]) => backlog(call, name).await,
        ("PUT", ["backlogSize"]) => {
            single(call, name, "calculate backlog size is not allowed for partitioned-topic").await?;
            let position = subscriptions::MessageId::from_call(call)?.position();
            Answer::json(existing(call, name).await?.backlog_size_after(position))
        }
        (_, ["permissions", rest @ ..]) => permissions(call, name, rest).await,
        (_, ["properties"]) => properties(call, name).await,
        ("GET", ["compaction"]) => {
            existing(call, name).await?;
            Ok(Answer::Json(json!({ "status": "NOT_RUN", "lastError": "" })))
        }
        ("GET", ["offload"]) => {
            existing(call, name).await?;
            Ok(Answer::Json(json!({
                "status": "NOT_RUN",
                "lastError": "",
                "firstUnoffloadedMessage": message_id(Position::EARLIEST, None, None),
            })))
        }
        ("PUT", ["unload"]) => unload(call, name).await,
        ("POST", ["terminate"]) => terminate(call, name).await,
        ("DELETE", ["truncate"]) => {
            for topic in partitioned::each(call, name).await? {
                topic.truncate().await?;
            }
            Ok(Answer::Nothing)
        }
        ("POST", ["trim"]) => {
            for topic in partitioned::each(call, name).await? {
                topic.trim_now();
            }
            Ok(Answer::Unset)
        }
        ("GET", ["messageid", time]) => {
            single(
                call,
                name,
                "Get message ID by timestamp on a partitioned topic is not allowed, please try do it on specific topic \
                 partition",
            )
            .await?;
            let position = existing(call, name).await?.position_at_time(number(time)?).await?;
            Ok(Answer::Json(message_id(position, name.partition_index(), None)))
        }
        ("GET", ["subscriptions"]) => subscriptions::list(call, name).await,
        (_, ["subscription", subscription, rest @ ..]) => {
            subscriptions::serve(call, name, &subscription_name(subscription), rest).await
        }
        ("POST", ["all_subscription", "expireMessages", seconds]) => {
            subscriptions::expire_all(call, name, number(seconds)?).await
        }
        ("GET", ["ledger", ledger, "entry", entry]) => {
            messages::by_id(call, name, Position { ledger_id: number(ledger)?, entry_id: number(entry)? }).await
        }
        ("GET", ["examinemessage"]) => messages::examine(call, name).await,
        (
            _,
            ["partitions" | "partitioned-stats" | "partitioned-internalStats" | "createMissedPartitions", ..]
            | ["terminate", "partitions"],
        ) => partitioned::serve(call, name, path).await,
        _ => topic_policies::serve(call, name, path).await,
    }
}

/// The topic, loaded; it must exist.
pub(crate) async fn existing(call: &Call, name: &TopicName) -> Result<Arc<Topic>> {
    match call.broker.topic(name, false).await {
        Ok(topic) => Ok(topic),
        Err(BrokerError::TopicNotFound(_)) if name.is_partition() => {
            let base = call.broker.metadata().get_partitioned_topic(&name.partitioned_base()).await?;
            Err(match base {
                Some(_) => ApiError::not_found("Topic partitions were not yet created"),
                None => ApiError::not_found(format!("Topic {name} not found")),
            })
        }
        Err(error) => Err(error.into()),
    }
}

/// Number of partitions, 0 for a topic without; the topic must exist.
pub(crate) async fn partitions(call: &Call, name: &TopicName) -> Result<u32> {
    let record = call.broker.metadata().get_partitioned_topic(name).await?;
    Ok(record.map_or(0, |record| record.value.partitions))
}

/// Refuses what a partitioned topic cannot do as a whole.
pub(crate) async fn single(call: &Call, name: &TopicName, refusal: &str) -> Result<()> {
    if partitions(call, name).await? > 0 { Err(ApiError::not_allowed(refusal)) } else { Ok(()) }
}

/// Refuses what only a persistent topic can do.
fn must_persist(name: &TopicName) -> Result<()> {
    if name.is_persistent() {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::NOT_ACCEPTABLE, "Need to provide a persistent topic name"))
}

pub(crate) fn stats_options(call: &Call) -> geminga_broker::StatsOptions {
    geminga_broker::StatsOptions {
        earliest_time_in_backlog: call.flag("getEarliestTimeInBacklog"),
        exclude_publishers: call.flag("excludePublishers"),
        exclude_consumers: call.flag("excludeConsumers"),
    }
}

async fn stats(call: &Call, name: &TopicName) -> Result<Answer> {
    Answer::json(existing(call, name).await?.stats(&stats_options(call)).await?)
}

pub(crate) fn now_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

async fn create(call: &Call, name: &TopicName) -> Result<Answer> {
    let properties: BTreeMap<String, String> = call.json_or_default()?;
    match call.broker.create_topic(name, properties).await {
        Err(BrokerError::NamespaceNotFound(_)) => Err(ApiError::not_found("Namespace not found")),
        other => {
            other?;
            Ok(Answer::Nothing)
        }
    }
}

async fn delete(call: &Call, name: &TopicName) -> Result<Answer> {
    if partitions(call, name).await? > 0 {
        return Err(ApiError::conflict(format!(
            "{name} is a partitioned topic, instead of calling delete topic, please call delete-partitioned-topic."
        )));
    }
    call.broker.delete_topic(name, call.flag("force")).await?;
    Ok(Answer::Nothing)
}

async fn unload(call: &Call, name: &TopicName) -> Result<Answer> {
    let count = partitions(call, name).await?;
    if count == 0 {
        existing(call, name).await?;
        call.broker.unload(name).await?;
    }
    for index in 0..count {
        call.broker.unload(&name.partition(index)).await?;
    }
    Ok(Answer::Nothing)
}

async fn terminate(call: &Call, name: &TopicName) -> Result<Answer> {
    must_persist(name)?;
    single(call, name, "Termination of a partitioned topic is not allowed").await?;
    let end = existing(call, name).await?.terminate().await?;
    Ok(Answer::Json(message_id(end, None, None)))
}

async fn last_message_id(call: &Call, name: &TopicName) -> Result<Answer> {
    let (position, meta) = existing(call, name).await?.last_entry().await?;
    let batch = meta.filter(|meta| meta.is_batch()).map(|meta| meta.num_messages);
    let mut id = message_id(position, name.partition_index(), None);
    if let Some(size) = batch {
        // Pulsar names the last message of the batch, but not the size.
        id["batchIndex"] = json!(i64::from(size) - 1);
        id["outstandingAcksInSameBatch"] = json!(0);
        id["originalBatchSize"] = json!(0);
    }
    Ok(Answer::Json(id))
}

/// A message id as Pulsar's admin API shows it; of a batch, that of its last message.
pub(crate) fn message_id(position: Position, partition: Option<u32>, batch_size: Option<u32>) -> Value {
    let (ledger_id, entry_id) = position.to_wire();
    json!({
        "ledgerId": ledger_id as i64,
        "entryId": entry_id as i64,
        "partitionIndex": partition.map_or(-1, i64::from),
        "batchIndex": batch_size.map_or(-1, |size| i64::from(size) - 1),
        "batchSize": batch_size.unwrap_or(0),
    })
}

/// Grants of a topic are kept beside those of its namespace, and shown together with them; partitions have their topic's.
async fn permissions(call: &Call, name: &TopicName, path: &[&str]) -> Result<Answer> {
    let base = name.partitioned_base();
    // Which any broker can answer.
    if partitions(call, &base).await? == 0 && call.broker.metadata().get_topic(name).await?.is_none() {
        return Err(ApiError::not_found(format!("Topic {name} not found")));
    }
    let key = base.to_string();
    let role = match (call.method(), path) {
        ("GET", []) => {
            let mut auth = call.broker.namespace_policies(name.namespace()).await?.auth_policies;
            let mut all = auth.namespace_auth;
            for (role, actions) in auth.destination_auth.remove(&key).unwrap_or_default() {
                all.entry(role).or_default().extend(actions);
            }
            return Answer::json(all);
        }
        ("POST" | "DELETE", [role]) => (*role).to_owned(),
        _ => return call.unsupported(),
    };
    let actions: Option<BTreeSet<String>> = if call.method() == "POST" { Some(call.json()?) } else { None };
    call.broker
        .update_namespace_policies(name.namespace(), |policies| {
            let all = &mut policies.auth_policies.destination_auth;
            let roles = all.entry(key.clone()).or_default();
            match &actions {
                Some(actions) => drop(roles.insert(role.clone(), actions.clone())),
                None => drop(roles.remove(&role)),
            }
            all.retain(|_, roles| !roles.is_empty());
            Ok(())
        })
        .await?;
    Ok(Answer::Nothing)
}

async fn properties(call: &Call, name: &TopicName) -> Result<Answer> {
    must_persist(name)?;
    if partitions(call, name).await? > 0 {
        return partitioned::properties(call, name).await;
    }
    let topic = existing(call, name).await?;
    match call.method() {
        "GET" => return Answer::json(topic.properties()),
        "PUT" => {
            let wanted: BTreeMap<String, String> = call.json()?;
            topic.change_properties(move |properties| properties.extend(wanted.clone())).await?;
        }
        "DELETE" => {
            let key = call.query("key").unwrap_or_default().to_owned();
            topic.change_properties(move |properties| drop(properties.remove(&key))).await?;
        }
        _ => return call.unsupported(),
    }
    Ok(Answer::Nothing)
}

async fn internal_info(call: &Call, name: &TopicName) -> Result<Answer> {
    let count = partitions(call, name).await?;
    if count == 0 {
        return Ok(Answer::Json(existing(call, name).await?.internal_info()));
    }
    let mut infos = serde_json::Map::new();
    for index in 0..count {
        let partition = name.partition(index);
        infos.insert(partition.to_string(), existing(call, &partition).await?.internal_info());
    }
    Ok(Answer::Json(json!({ "version": 0, "partitions": infos })))
}

/// What Pulsar calls the stats of an offline topic.
async fn backlog(call: &Call, name: &TopicName) -> Result<Answer> {
    let topic = existing(call, name).await?;
    let stats = topic.internal_stats();
    let cursors: serde_json::Map<String, Value> =
        topic.backlogs().into_iter().map(|(name, entries)| (name, json!({ "cursorBacklog": entries }))).collect();
    Ok(Answer::Json(json!({
        "storageSize": stats.total_size,
        "totalMessages": stats.number_of_entries,
        "messageBacklog": topic.backlogs().iter().map(|(_, entries)| entries).sum::<u64>(),
        "brokerName": call.broker.config().advertised_http,
        "topicName": format!("{}/{}/{}", name.namespace(), name.domain(), name.local_name()),
        "dataLedgerDetails": stats.ledgers,
        "cursorDetails": cursors,
        "statGeneratedAt": now_ms(),
    })))
}
