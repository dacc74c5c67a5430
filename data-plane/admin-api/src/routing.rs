//! Where a request is served when there are several brokers: what needs a loaded topic is the affair of whoever owns it. A
//! request about one topic is sent to the owner with a redirect, as in Pulsar; one about a partitioned topic, or about all topics
//! of a namespace, is put to each of them from here.

use std::time::Duration;

use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::IntoResponse;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use geminga_broker::{BrokerError, Owner, PARTITIONS_AT_ONCE};
use geminga_model::{BundleName, NamespaceName, TopicDomain, TopicName};

use crate::call::{Answer, Call};
use crate::error::{ApiError, Result};
use crate::topics::partitions;
use crate::{bundles, namespaces, peers};

/// A topic that moves while it is asked for is looked for so often, with such a pause between.
const MOVES_FOLLOWED: u32 = 20;
const MOVE_PAUSE: Duration = Duration::from_millis(100);

/// First segments, after a topic's name, of what only the broker that has the topic loaded can answer.
const OF_LOADED_TOPICS: &[&str] = &[
    "all_subscription",
    "backlog",
    "backlogSize",
    "compaction",
    "examinemessage",
    "internal-info",
    "internalStats",
    "lastMessageId",
    "ledger",
    "messageid",
    "offload",
    "properties",
    "stats",
    "subscription",
    "subscriptions",
    "terminate",
    "trim",
    "truncate",
    "unload",
];

/// The answer that sends the client to the broker that can serve the request; none when that is this one.
pub(crate) async fn elsewhere(call: &Call) -> Result<Option<Answer>> {
    if !call.broker.ownership().is_shared() {
        return Ok(None);
    }
    let segments: Vec<&str> = call.segments.iter().map(String::as_str).collect();
    let owner = match segments.as_slice() {
        ["admin", "v2", domain @ ("persistent" | "non-persistent"), tenant, local, topic, rest @ ..]
            if is_of_loaded_topic(call, rest) =>
        {
            let name = topic_name(domain.parse()?, tenant, local, topic)?;
            if partitions(call, &name).await? > 0 {
                return Ok(None);
            }
            call.broker.lookup(&name).await
        }
        ["admin", "v2", "namespaces", tenant, local, bundle, "split"]
            if *bundle == bundles::LARGEST || bundles::is_bundle(bundle) =>
        {
            let namespace = namespaces::name(tenant, local)?;
            let range = bundles::to_split(call, &namespace, bundle).await?;
            call.broker.ownership().find(&BundleName { namespace, range }).await
        }
        _ => return Ok(None),
    };
    match owner {
        Ok(Owner::Other(broker)) => Ok(Some(redirect(call, &broker.record.http_url))),
        // What is wrong with the name, whoever serves the request says better.
        Ok(Owner::Me(_)) | Err(BrokerError::NamespaceNotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_of_loaded_topic(call: &Call, rest: &[&str]) -> bool {
    match rest.first() {
        None => call.method() == "DELETE",
        Some(first) => OF_LOADED_TOPICS.contains(first),
    }
}

fn topic_name(domain: TopicDomain, tenant: &str, local: &str, topic: &str) -> Result<TopicName> {
    TopicName::new(domain, namespaces::name(tenant, local)?, topic)
        .map_err(|error| ApiError::precondition(format!("Topic name is not valid: {error}")))
}

fn redirect(call: &Call, http_url: &str) -> Answer {
    let location = format!("{http_url}{}", call.uri());
    Answer::Response((StatusCode::TEMPORARY_REDIRECT, [(LOCATION, location)]).into_response())
}

/// Asks about one topic, or does something to it, wherever it is. `path` are the segments after the topic's name.
pub(crate) fn at_owner<'a>(
    call: &'a Call,
    method: &'a str,
    name: &'a TopicName,
    path: &'a [&str],
) -> BoxFuture<'a, Result<Answer>> {
    let ask = async move {
        let namespace = name.namespace();
        let mut segments = vec!["admin", "v2", name.domain().as_str(), namespace.tenant(), namespace.local_name()];
        segments.push(name.local_name());
        segments.extend(path);
        let asked = call.derived(method, &segments)?;
        for _ in 0..MOVES_FOLLOWED {
            match call.broker.lookup(name).await? {
                Owner::Me(_) => return crate::serve(&asked).await,
                Owner::Other(broker) => match peers::forward(&asked, &broker.record.http_url).await {
                    // It was moved in the meantime; soon this broker hears of that too.
                    Err(error) if error.status == StatusCode::TEMPORARY_REDIRECT => {
                        tokio::time::sleep(MOVE_PAUSE).await
                    }
                    answer => return answer,
                },
            }
        }
        Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, format!("{name} is being moved")))
    };
    // Serving may come back here.
    ask.boxed()
}

/// The same for each partition of a topic that exists, with its name. What goes wrong at one does not keep the others from being
/// asked, nor is what has begun there given up half-way.
///
/// # Errors
/// The first, by the partitions' order.
pub(crate) async fn at_each_partition(
    call: &Call,
    method: &str,
    name: &TopicName,
    count: u32,
    path: &[&str],
) -> Result<Vec<(TopicName, Answer)>> {
    let answers = ask_each_partition(call, method, name, count, path, Absent::Skipped).await;
    answers.into_iter().filter_map(|(name, answer)| Some(answer.transpose()?.map(|answer| (name, answer)))).collect()
}

/// Does the same to each partition; answers what they do in one.
///
/// # Errors
/// As [`at_each_partition`], but for refusals that count only when they come from every partition: what is to be deleted may be
/// missing at some, what is to be created or expired may be there, or be done, at some.
pub(crate) async fn do_at_each_partition(call: &Call, name: &TopicName, count: u32, path: &[&str]) -> Result<Answer> {
    let (absent, tolerated) = match (call.method(), path) {
        ("PUT", ["subscription", _]) => (Absent::Asked, Some(StatusCode::CONFLICT)),
        ("DELETE", ["subscription", _]) => (Absent::Skipped, Some(StatusCode::NOT_FOUND)),
        (_, [.., "expireMessages", _]) => (Absent::Skipped, Some(StatusCode::CONFLICT)),
        _ => (Absent::Skipped, None),
    };
    let (mut done, mut refused) = (None, None);
    for (_, answer) in ask_each_partition(call, call.method(), name, count, path, absent).await {
        match answer {
            Ok(None) => {}
            Ok(Some(answer)) => done = Some(done.unwrap_or(Answer::Nothing).merged(answer)),
            Err(error) if Some(error.status) == tolerated => drop(refused.get_or_insert(error)),
            Err(error) => return Err(error),
        }
    }
    match (done, refused) {
        (None, Some(error)) => Err(error),
        (done, _) => Ok(done.unwrap_or(Answer::Nothing)),
    }
}

/// What becomes of a partition that does not exist: inactive ones are deleted until somebody uses them again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    Skipped,
    /// Its owner creates it.
    Asked,
}

async fn ask_each_partition(
    call: &Call,
    method: &str,
    name: &TopicName,
    count: u32,
    path: &[&str],
    absent: Absent,
) -> Vec<(TopicName, Result<Option<Answer>>)> {
    let ask = async |partition: TopicName| {
        let answer = at_partition(call, method, &partition, path, absent).await;
        (partition, answer)
    };
    let asked: Vec<_> = (0..count).map(|index| ask(name.partition(index)).boxed()).collect();
    stream::iter(asked).buffered(PARTITIONS_AT_ONCE).collect().await
}

/// None: there is no such partition.
async fn at_partition(
    call: &Call,
    method: &str,
    partition: &TopicName,
    path: &[&str],
    absent: Absent,
) -> Result<Option<Answer>> {
    if absent == Absent::Skipped && call.broker.metadata().get_topic(partition).await?.is_none() {
        return Ok(None);
    }
    at_owner(call, method, partition, path).await.map(Some)
}

/// Deletes every topic of a namespace, wherever it is, partitioned topics with their partitions.
pub(crate) async fn delete_topics_of(call: &Call, namespace: &NamespaceName) -> Result<()> {
    for domain in TopicDomain::ALL {
        for topic in call.broker.metadata().list_topics(namespace, domain).await? {
            match at_owner(call, "DELETE", &topic, &[]).await {
                Err(error) if error.status == StatusCode::NOT_FOUND => {}
                other => drop(other?),
            }
        }
    }
    Ok(())
}
