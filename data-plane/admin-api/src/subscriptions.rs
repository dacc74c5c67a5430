//! Subscriptions of a topic. Most of what is asked of a partitioned topic's subscription is done on each partition.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use geminga_broker::{BrokerError, InitialPosition, PARTITIONS_AT_ONCE};
use geminga_model::{Position, TopicName};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::{Answer, Call, number};
use crate::error::{ApiError, Result};
use crate::topics::{existing, partitions, single};
use crate::{messages, partitioned};

/// Each message of a batch takes some bytes of one entry.
const BATCH_INDEX_MAX: u32 = 1 << 22;

/// A message id in a body (Pulsar's `MessageIdImpl` and `ResetCursorData`).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MessageId {
    ledger_id: i64,
    entry_id: i64,
    #[serde(default = "no_index")]
    batch_index: i64,
    /// Start behind the message rather than at it.
    #[serde(default)]
    excluded: bool,
    #[serde(default)]
    properties: Option<BTreeMap<String, String>>,
}

fn no_index() -> i64 {
    -1
}

impl MessageId {
    pub fn from_call(call: &Call) -> Result<Self> {
        call.json()
    }

    pub fn position(&self) -> Position {
        Position::from_wire(self.ledger_id as u64, self.entry_id as u64)
    }

    /// Where a subscription starts that is reset to the id: its position, or the one behind it.
    fn start(&self) -> Position {
        let mut start = self.position();
        if self.excluded && self.batch_index < 0 && start != Position::EARLIEST && start != Position::LATEST {
            start.entry_id += 1;
        }
        start
    }

    /// The messages of the batch that are not to be delivered, as an acknowledgement set (a bit for each that is).
    fn ack_set(&self) -> Result<Vec<i64>> {
        let first = self.batch_index + i64::from(self.excluded && self.batch_index >= 0);
        let Ok(index @ 1..) = u32::try_from(first) else { return Ok(Vec::new()) };
        if index > BATCH_INDEX_MAX {
            return Err(ApiError::precondition(format!("no batch has as many messages as {index}")));
        }
        let mut words = vec![0i64; (index / 64) as usize];
        words.push(-1i64 << (index % 64));
        Ok(words)
    }
}

pub(crate) async fn serve(call: &Call, name: &TopicName, subscription: &str, path: &[&str]) -> Result<Answer> {
    match (call.method(), path) {
        ("PUT", []) => create(call, name, subscription).await,
        ("DELETE", []) => delete(call, name, subscription).await,
        ("POST", ["skip", count]) => {
            let count = number(count)?;
            single(call, name, "Skip messages on a partitioned topic is not allowed").await?;
            existing(call, name).await?.skip_messages(subscription, count).await?;
            Ok(Answer::Nothing)
        }
        ("POST", ["skip_all"]) => {
            for topic in partitioned::each(call, name).await? {
                topic.clear_backlog(subscription).await?;
            }
            Ok(Answer::Nothing)
        }
        ("POST", ["resetcursor"]) => {
            single(call, name, "Reset-cursor at position is not allowed for partitioned-topic").await?;
            let id = MessageId::from_call(call)?;
            existing(call, name).await?.seek(subscription, id.start(), &id.ack_set()?).await?;
            Ok(Answer::Nothing)
        }
        ("POST", ["resetcursor", time]) => {
            let time = number(time)?;
            for topic in partitioned::each(call, name).await? {
                topic.reset_to_time(subscription, time).await?;
            }
            Ok(Answer::Nothing)
        }
        ("GET", ["position", nth]) => {
            single(call, name, "Peek messages on a partitioned topic is not allowed").await?;
            let nth: u64 = number(nth)?;
            if nth == 0 {
                return Err(ApiError::bad_request("messages are counted from 1"));
            }
            let peeked = existing(call, name).await?.peek(subscription, nth).await?;
            messages::answer(peeked.ok_or_else(|| ApiError::not_found("Message not found"))?).await
        }
        ("POST", ["expireMessages", seconds]) => {
            let seconds = number(seconds)?;
            let mut done = false;
            for topic in partitioned::each(call, name).await? {
                done |= topic.expire_if_behind(subscription, seconds).await?;
            }
            if done { Ok(Answer::Nothing) } else { Err(nothing_expired(name, subscription)) }
        }
        ("POST", ["expireMessages"]) => {
            single(call, name, "Expire message at position is not supported for partitioned-topic").await?;
            // With a message that is excluded goes the one behind it, as in Pulsar.
            let position = MessageId::from_call(call)?.start();
            let expired = existing(call, name).await?.expire_through(subscription, position).await?;
            match expired {
                Some(_) => Ok(Answer::Nothing),
                None => Err(ApiError::conflict(format!(
                    "Expire message by position not issued on topic {name} for subscription {subscription} due to ongoing \
                     message expiration not finished or invalid message position provided."
                ))),
            }
        }
        (_, ["properties"]) => properties(call, name, subscription).await,
        ("GET", ["replicatedSubscriptionStatus"]) => {
            let mut status = serde_json::Map::new();
            for topic in partitioned::each(call, name).await? {
                status.insert(topic.name().to_string(), Value::Bool(topic.is_replicated(subscription)?));
            }
            Ok(Answer::Json(Value::Object(status)))
        }
        ("POST", ["replicatedSubscriptionStatus"]) => {
            let wanted: bool = call.json()?;
            for topic in partitioned::each(call, name).await? {
                topic.set_replicated(subscription, wanted).await?;
            }
            Ok(Answer::Nothing)
        }
        ("POST", ["analyzeBacklog"]) => {
            single(
                call,
                name,
                "Analyze backlog on a partitioned topic is not allowed, please try do it on specific topic partition",
            )
            .await?;
            let start: Option<MessageId> = call.json_or_default()?;
            let start = start.map(|id| id.position());
            Answer::json(existing(call, name).await?.analyze_backlog(subscription, start).await?)
        }
        ("GET", ["explain"]) => explain(call, name, subscription).await,
        _ => call.unsupported(),
    }
}

pub(crate) async fn list(call: &Call, name: &TopicName) -> Result<Answer> {
    let mut names = BTreeSet::new();
    for topic in partitioned::each(call, name).await? {
        names.extend(topic.subscription_names().iter().map(ToString::to_string));
    }
    Answer::json(names)
}

/// Creates a subscription that starts at the message in the body, or behind the last one. The topic comes into being
/// where that is allowed.
async fn create(call: &Call, name: &TopicName, subscription: &str) -> Result<Answer> {
    if !name.is_persistent() {
        return Err(ApiError::bad_request(
            "Create subscription on non-persistent topic can only be done through client",
        ));
    }
    let id: Option<MessageId> = call.json_or_default()?;
    let initial = match id.as_ref().map(MessageId::position) {
        None | Some(Position::LATEST) => InitialPosition::Latest,
        Some(Position::EARLIEST) => InitialPosition::Earliest,
        Some(start) => InitialPosition::After(Position { entry_id: start.entry_id - 1, ..start }),
    };
    let properties = id.and_then(|id| id.properties).unwrap_or_default();
    let partitions = match call.broker.partitions(name, true).await {
        Err(BrokerError::TopicNotFound(_)) => {
            return Err(ApiError::precondition("Topic does not exist and cannot be auto-created"));
        }
        other => other?,
    };
    let names: Vec<TopicName> = match partitions {
        0 => vec![name.clone()],
        count => (0..count).map(|index| name.partition(index)).collect(),
    };
    let replicated = call.flag("replicated");
    let create_one = async |name: TopicName| {
        let topic = call.broker.topic(&name, true).await?;
        match topic.create_subscription(&subscription.into(), initial, properties.clone(), true).await {
            Ok(()) if replicated => Ok(topic.set_replicated(subscription, true).await.map(|()| 1)?),
            Ok(()) => Ok(1),
            Err(BrokerError::AlreadyExists(_)) => Ok(0),
            Err(BrokerError::NotAllowed(reason)) => Err(ApiError::conflict(reason)),
            Err(error) => Err(error.into()),
        }
    };
    let each = stream::iter(names).map(create_one).buffer_unordered(PARTITIONS_AT_ONCE);
    let created = each.try_fold(0, async |sum, one| Ok(sum + one)).await?;
    // A subscription that was missing on some partitions only is completed.
    if created == 0 { Err(ApiError::conflict("Subscription already exists for topic")) } else { Ok(Answer::Nothing) }
}

async fn delete(call: &Call, name: &TopicName, subscription: &str) -> Result<Answer> {
    // As in Pulsar, consumers do not keep a subscription that stores nothing.
    let force = call.flag("force") || !name.is_persistent();
    let topics = partitioned::each(call, name).await?;
    let mut deleted = 0;
    for topic in &topics {
        match topic.delete_subscription(subscription, None, force).await {
            Ok(()) => deleted += 1,
            Err(BrokerError::SubscriptionNotFound { .. }) if topics.len() > 1 => {}
            Err(BrokerError::PreconditionFailed(_)) => {
                return Err(ApiError::precondition("Subscription has active connected consumers"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if deleted == 0 { Err(ApiError::not_found("Subscription not found")) } else { Ok(Answer::Nothing) }
}

pub(crate) async fn expire_all(call: &Call, name: &TopicName, seconds: u64) -> Result<Answer> {
    let mut refused = None;
    for topic in partitioned::each(call, name).await? {
        for subscription in topic.subscription_names() {
            if !topic.expire_if_behind(&subscription, seconds).await? {
                refused.get_or_insert((topic.name().clone(), subscription));
            }
        }
    }
    refused.map_or(Ok(Answer::Nothing), |(topic, subscription)| Err(nothing_expired(&topic, &subscription)))
}

fn nothing_expired(name: &TopicName, subscription: &str) -> ApiError {
    ApiError::conflict(format!(
        "Expire message by timestamp not issued on topic {name} for subscription {subscription} due to ongoing message \
         expiration not finished or subscription almost catch up. If it's performed on a partitioned topic operation \
         might succeeded on other partitions, please check stats of individual partition."
    ))
}

async fn properties(call: &Call, name: &TopicName, subscription: &str) -> Result<Answer> {
    let topics = partitioned::each(call, name).await?;
    match call.method() {
        "GET" => {
            let mut all = BTreeMap::new();
            for topic in topics {
                all.extend(topic.subscription_properties(subscription)?);
            }
            Answer::json(all)
        }
        "PUT" => {
            let wanted: BTreeMap<String, String> = call.json_or_default()?;
            for topic in topics {
                topic.set_subscription_properties(subscription, wanted.clone()).await?;
            }
            Ok(Answer::Nothing)
        }
        _ => call.unsupported(),
    }
}

/// Our own: what each consumer has, and what blocks the subscription, per partition.
async fn explain(call: &Call, name: &TopicName, subscription: &str) -> Result<Answer> {
    if partitions(call, name).await? == 0 {
        return Answer::json(existing(call, name).await?.explain(subscription)?);
    }
    let mut answer = json!({});
    for topic in partitioned::each(call, name).await? {
        answer[topic.name().as_str()] = topic.explain(subscription)?;
    }
    Ok(Answer::Json(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_index_acknowledges_what_is_before_it() {
        let id =
            |index, excluded| MessageId { ledger_id: 1, entry_id: 2, batch_index: index, excluded, properties: None };
        let set = |index| id(index, false).ack_set().unwrap();
        assert_eq!(set(-1), Vec::<i64>::new());
        assert_eq!(set(0), Vec::<i64>::new());
        assert_eq!(set(3), vec![-8]);
        assert_eq!(set(64), vec![0, -1]);
        assert_eq!(id(2, true).ack_set().unwrap(), vec![-8]);
        assert_eq!(id(-1, true).ack_set().unwrap(), Vec::<i64>::new());
        assert_eq!(
            id(i64::from(u32::MAX), false).ack_set().unwrap_err().status,
            axum::http::StatusCode::PRECONDITION_FAILED
        );
        assert_eq!([id(-1, true), id(-1, false), id(2, true)].map(|id| id.start().entry_id), [3, 2, 2]);
    }
}
