//! Where a request is served when there are several brokers: what needs a loaded topic is the affair of whoever owns it. A
//! request about one topic is sent to the owner with a redirect, as in Pulsar; one about a partitioned topic, or about all topics
//! of a namespace, is put to each of them from here.

use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::IntoResponse;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use geminga_broker::{BrokerError, Owner, PARTITIONS_AT_ONCE};
use geminga_model::{BundleName, NamespaceName, TopicDomain, TopicName};

use crate::call::{Answer, Call};
use crate::error::{ApiError, Result};
use crate::topics::partitions;
use crate::{bundles, namespaces, peers};

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
        ["admin", "v2", "namespaces", tenant, local, bundle, "split"] if bundles::is_bundle(bundle) => {
            let namespace = namespaces::name(tenant, local)?;
            let policies = call.broker.namespace_policies(&namespace).await?;
            let range = bundles::named(&policies, &namespace, bundle)?;
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
        match call.broker.lookup(name).await? {
            Owner::Me(_) => crate::serve(&asked).await,
            Owner::Other(broker) => peers::forward(&asked, &broker.record.http_url).await,
        }
    };
    // Serving may come back here.
    ask.boxed()
}

/// The same for each partition of a topic that exists, with its name.
pub(crate) async fn at_each_partition(
    call: &Call,
    method: &str,
    name: &TopicName,
    count: u32,
    path: &[&str],
) -> Result<Vec<(TopicName, Answer)>> {
    let asked: Vec<_> =
        (0..count).map(|index| at_partition(call, method, name.partition(index), path).boxed()).collect();
    let answers: Vec<_> = stream::iter(asked).buffered(PARTITIONS_AT_ONCE).try_collect().await?;
    Ok(answers.into_iter().flatten().collect())
}

/// None: there is no such partition. Inactive ones are deleted until somebody uses them again.
async fn at_partition(
    call: &Call,
    method: &str,
    partition: TopicName,
    path: &[&str],
) -> Result<Option<(TopicName, Answer)>> {
    if call.broker.metadata().get_topic(&partition).await?.is_none() {
        return Ok(None);
    }
    let answer = at_owner(call, method, &partition, path).await?;
    Ok(Some((partition, answer)))
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
