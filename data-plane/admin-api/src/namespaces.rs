//! `/admin/v2/namespaces`: namespaces themselves; namespace_policies.rs has their policies one by one.

use axum::http::StatusCode;
use geminga_metadata::Policies;
use geminga_model::{NamespaceName, TopicDomain};
use serde_json::{Value, json};

use crate::call::{Answer, Call};
use crate::error::{ApiError, Result};
use crate::namespace_policies;

pub(crate) async fn serve(call: &Call, path: &[&str]) -> Result<Answer> {
    let broker = &call.broker;
    match (call.method(), path) {
        ("GET", [tenant]) => Answer::json(broker.namespaces(tenant).await?),
        ("GET", [tenant, local]) => Answer::json(described(broker.namespace_policies(&name(tenant, local)?).await?)),
        ("PUT", [tenant, local]) => {
            let name = name(tenant, local)?;
            let policies = new_policies(call)?;
            match broker.create_namespace(&name, policies).await {
                Err(geminga_broker::BrokerError::NotAllowed(reason)) => {
                    return Err(ApiError::new(StatusCode::FORBIDDEN, reason));
                }
                other => other?,
            }
            Ok(Answer::Nothing)
        }
        ("DELETE", [tenant, local]) => {
            broker.delete_namespace(&name(tenant, local)?, call.flag("force")).await?;
            Ok(Answer::Nothing)
        }
        (_, [tenant, local, rest @ ..]) => {
            let name = name(tenant, local)?;
            match rest {
                ["topics"] if call.method() == "GET" => topics(call, &name).await,
                ["permissions", rest @ ..] => permissions(call, &name, rest).await,
                ["bundles"] if call.method() == "GET" => Answer::json(broker.namespace_policies(&name).await?.bundles),
                ["unload"] | [_, "unload"] if call.method() == "PUT" => unload(call, &name).await,
                ["clearBacklog", ..] | [_, "clearBacklog", ..] if call.method() == "POST" => {
                    clear_backlog(call, &name, rest.last().copied().filter(|last| *last != "clearBacklog")).await
                }
                ["unsubscribe", subscription] if call.method() == "POST" => {
                    unsubscribe(call, &name, subscription).await
                }
                _ => namespace_policies::serve(call, &name, rest).await,
            }
        }
        _ => call.unsupported(),
    }
}

pub(crate) fn name(tenant: &str, local: &str) -> Result<NamespaceName> {
    NamespaceName::new(tenant, local).map_err(|_| ApiError::precondition("Namespace name is not valid"))
}

/// The policies of a namespace to be created. Bundles may be given by their number alone.
fn new_policies(call: &Call) -> Result<Policies> {
    let mut body: Value = call.json_or_default()?;
    if body.is_null() {
        return Ok(Policies::default());
    }
    if let Some(bundles) = body.get_mut("bundles").and_then(Value::as_object_mut) {
        bundles.entry("boundaries").or_insert_with(|| json!([]));
        bundles.entry("numBundles").or_insert_with(|| json!(0));
        if bundles["boundaries"].is_null() {
            bundles["boundaries"] = json!([]);
        }
    }
    if let Some(fields) = body.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    serde_json::from_value(body).map_err(|error| ApiError::bad_request(format!("malformed policies: {error}")))
}

/// Policies as they are shown: with the default of what clients expect to be there.
fn described(mut policies: Policies) -> Policies {
    policies.is_allow_auto_update_schema.get_or_insert(true);
    policies.extra.remove(namespace_policies::BOOKIE_AFFINITY.field);
    policies
}

async fn topics(call: &Call, name: &NamespaceName) -> Result<Answer> {
    let domains: &[TopicDomain] = match call.query("mode").unwrap_or("PERSISTENT") {
        "PERSISTENT" => &[TopicDomain::Persistent],
        "NON_PERSISTENT" => &[TopicDomain::NonPersistent],
        "ALL" => &TopicDomain::ALL,
        other => return Err(ApiError::bad_request(format!("unknown mode '{other}'"))),
    };
    list(call, name, domains).await
}

/// Topics of a namespace; those that Pulsar uses for itself only when asked for.
pub(crate) async fn list(call: &Call, name: &NamespaceName, domains: &[TopicDomain]) -> Result<Answer> {
    let mut topics = call.broker.topics(name, domains).await?;
    if !call.flag("includeSystemTopic") {
        topics.retain(|topic| !topic.rsplit('/').next().is_some_and(|local| local.starts_with("__")));
    }
    Answer::json(topics)
}

/// Grants are kept and shown; they are enforced once authorization is on.
async fn permissions(call: &Call, name: &NamespaceName, path: &[&str]) -> Result<Answer> {
    let broker = &call.broker;
    match (call.method(), path) {
        ("GET", []) => Answer::json(broker.namespace_policies(name).await?.auth_policies.namespace_auth),
        ("GET", ["subscription"]) => {
            Answer::json(broker.namespace_policies(name).await?.auth_policies.subscription_auth_roles)
        }
        ("POST", [role]) => {
            let actions: std::collections::BTreeSet<String> = call.json()?;
            broker
                .update_namespace_policies(name, |policies| {
                    policies.auth_policies.namespace_auth.insert((*role).to_owned(), actions.clone());
                    Ok(())
                })
                .await?;
            Ok(Answer::Nothing)
        }
        ("DELETE", [role]) => {
            broker
                .update_namespace_policies(name, |policies| {
                    policies.auth_policies.namespace_auth.remove(*role);
                    Ok(())
                })
                .await?;
            Ok(Answer::Nothing)
        }
        ("POST", ["subscription", subscription]) => {
            let roles: std::collections::BTreeSet<String> = call.json()?;
            broker
                .update_namespace_policies(name, |policies| {
                    let auth = &mut policies.auth_policies.subscription_auth_roles;
                    auth.entry((*subscription).to_owned()).or_default().extend(roles.iter().cloned());
                    Ok(())
                })
                .await?;
            Ok(Answer::Nothing)
        }
        ("DELETE", [subscription, role]) => {
            broker
                .update_namespace_policies(name, |policies| {
                    let auth = &mut policies.auth_policies.subscription_auth_roles;
                    if let Some(roles) = auth.get_mut(*subscription) {
                        roles.remove(*role);
                    }
                    auth.retain(|_, roles| !roles.is_empty());
                    Ok(())
                })
                .await?;
            Ok(Answer::Nothing)
        }
        _ => call.unsupported(),
    }
}

async fn unload(call: &Call, name: &NamespaceName) -> Result<Answer> {
    call.broker.namespace_policies(name).await?;
    for topic in call.broker.loaded_topics() {
        if topic.name().namespace() == name {
            call.broker.unload(topic.name()).await?;
        }
    }
    Ok(Answer::Nothing)
}

async fn clear_backlog(call: &Call, name: &NamespaceName, subscription: Option<&str>) -> Result<Answer> {
    for topic in call.broker.topics(name, &[TopicDomain::Persistent]).await? {
        let topic = geminga_model::TopicName::parse(&topic)?;
        let topic = call.broker.topic(&topic, false).await?;
        for existing in topic.subscription_names() {
            if subscription.is_none_or(|wanted| wanted == &*existing) {
                topic.clear_backlog(&existing).await?;
            }
        }
    }
    Ok(Answer::Nothing)
}

async fn unsubscribe(call: &Call, name: &NamespaceName, subscription: &str) -> Result<Answer> {
    for topic in call.broker.topics(name, &[TopicDomain::Persistent]).await? {
        let topic = geminga_model::TopicName::parse(&topic)?;
        let topic = call.broker.topic(&topic, false).await?;
        match topic.delete_subscription(subscription, None, false).await {
            Ok(()) | Err(geminga_broker::BrokerError::SubscriptionNotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Answer::Nothing)
}
