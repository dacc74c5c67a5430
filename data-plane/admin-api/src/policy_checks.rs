//! What the values of policies must be, with the refusals of Pulsar.

use serde_json::{Value, json};

use crate::error::{ApiError, Result};

/// Pulsar's `maxMessageSize` where nobody sets it.
const BROKER_MESSAGE_BYTES: i64 = 5 << 20;

const AUTO_UPDATE_STRATEGIES: &[&str] = &[
    "AutoUpdateDisabled",
    "Backward",
    "Forward",
    "Full",
    "AlwaysCompatible",
    "BackwardTransitive",
    "ForwardTransitive",
    "FullTransitive",
];

pub(crate) const SCHEMA_STRATEGIES: &[&str] = &[
    "UNDEFINED",
    "ALWAYS_INCOMPATIBLE",
    "ALWAYS_COMPATIBLE",
    "BACKWARD",
    "FORWARD",
    "FULL",
    "BACKWARD_TRANSITIVE",
    "FORWARD_TRANSITIVE",
    "FULL_TRANSITIVE",
];

const INACTIVE_MODES: &[&str] = &["delete_when_no_subscriptions", "delete_when_subscriptions_caught_up"];

/// What Pulsar reads as "unset": names that its enums don't have.
pub(crate) fn normalized(path: &str, mut wanted: Value) -> Value {
    let known: (&[&str], Value) = match path {
        "schemaCompatibilityStrategy" => (SCHEMA_STRATEGIES, json!("UNDEFINED")),
        "subscriptionAuthMode" => (&["None", "Prefix"], json!("None")),
        "schemaAutoUpdateCompatibilityStrategy" => (AUTO_UPDATE_STRATEGIES, Value::Null),
        "inactiveTopicPolicies" => {
            drop_unknown_mode(&mut wanted);
            return wanted;
        }
        _ => return wanted,
    };
    if wanted.as_str().is_some_and(|name| known.0.contains(&name)) { wanted } else { known.1 }
}

/// Leaves out a mode of deletion that there is not.
pub(crate) fn drop_unknown_mode(policy: &mut Value) {
    const FIELD: &str = "inactiveTopicDeleteMode";
    let known = policy.get(FIELD).and_then(Value::as_str).is_some_and(|mode| INACTIVE_MODES.contains(&mode));
    if let (false, Some(fields)) = (known, policy.as_object_mut()) {
        fields.remove(FIELD);
    }
}

/// Refuses the policies of a new namespace that its own paths would refuse.
pub(crate) fn check_new(policies: &Value) -> Result<()> {
    if let Some(retention) = policies.get("retention_policies") {
        check_retention(retention)?;
    }
    policies.get("persistence").map_or(Ok(()), check_persistence)
}

pub(crate) fn anything(_: &Value) -> Result<()> {
    Ok(())
}

pub(crate) fn not_negative(what: &str, value: &Value) -> Result<()> {
    match value.as_i64() {
        Some(number) if number < 0 => Err(ApiError::precondition(format!("{what} must be 0 or more"))),
        Some(_) => Ok(()),
        None => Err(ApiError::bad_request(format!("{what} is a number"))),
    }
}

pub(crate) fn check_interval(value: &Value) -> Result<()> {
    match value.as_i64() {
        Some(seconds) if seconds < 0 => Err(ApiError::precondition("interval must be greater than or equal to 0")),
        _ => Ok(()),
    }
}

pub(crate) fn check_offload(value: &Value) -> Result<()> {
    const DRIVERS: &[&str] = &["S3", "aws-s3", "google-cloud-storage", "filesystem", "azureblob", "aliyun-oss"];
    match value.get("managedLedgerOffloadDriver").and_then(Value::as_str) {
        Some(driver) if DRIVERS.iter().any(|known| known.eq_ignore_ascii_case(driver)) => Ok(()),
        _ => Err(ApiError::precondition(format!("The driver is not supported, support value: {}", DRIVERS.join(",")))),
    }
}

pub(crate) fn check_subscription_types(value: &Value) -> Result<()> {
    let types: Vec<&str> = value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    match types.iter().find(|name| !["Exclusive", "Shared", "Failover", "Key_Shared"].contains(name)) {
        Some(unknown) => Err(ApiError::bad_request(format!("unknown subscription type '{unknown}'"))),
        None => Ok(()),
    }
}

pub(crate) fn check_ttl(value: &Value) -> Result<()> {
    match value.as_i64() {
        Some(ttl) if ttl < 0 => Err(ApiError::precondition("Invalid value for message TTL, message TTL must >= 0")),
        _ => Ok(()),
    }
}

pub(crate) fn check_expiration(value: &Value) -> Result<()> {
    match value.as_i64() {
        Some(minutes) if minutes < 0 => Err(ApiError::precondition("Invalid value for subscription expiration time")),
        _ => Ok(()),
    }
}

pub(crate) fn check_retention(value: &Value) -> Result<()> {
    let limit = |field: &str| value.get(field).and_then(Value::as_i64).unwrap_or(0);
    let (time, size) = (limit("retentionTimeInMinutes"), limit("retentionSizeInMB"));
    let refuse = |reason: &str| Err(ApiError::bad_request(format!("Invalid retention policy: {reason}")));
    if size < -1 {
        return refuse("size limit must be >= -1");
    }
    if time < -1 {
        return refuse("time limit must be >= -1");
    }
    if (size == 0) != (time == 0) {
        return refuse(
            "Setting a single time or size limit to 0 is invalid when one of the limits has a non-zero value. \
             Use the value of -1 instead of 0 to ignore a specific limit. To disable retention both limits must be \
             set to 0.",
        );
    }
    Ok(())
}

pub(crate) fn check_persistence(value: &Value) -> Result<()> {
    let field = |name: &str| value.get(name).and_then(Value::as_i64).unwrap_or(0);
    let (ensemble, write, ack) =
        (field("bookkeeperEnsemble"), field("bookkeeperWriteQuorum"), field("bookkeeperAckQuorum"));
    if ensemble <= 0 || write <= 0 || ack <= 0 {
        return Err(ApiError::bad_request("Bookkeeper Ensemble, WriteQuorum and AckQuorum must be greater than 0"));
    }
    if ensemble < write || write < ack {
        return Err(ApiError::bad_request(format!(
            "Bookkeeper Ensemble ({ensemble}) >= WriteQuorum ({write}) >= AckQuorum ({ack})"
        )));
    }
    Ok(())
}

/// There are none to name: Pulsar's are Java classes beside the broker.
pub(crate) fn no_entry_filter(value: &Value) -> Result<()> {
    let names = value.get("entryFilterNames").and_then(Value::as_str).unwrap_or_default();
    match names.split(',').map(str::trim).find(|name| !name.is_empty()) {
        Some(name) => {
            Err(ApiError::bad_request(format!("Entry filter '{name}' not found: entry filters are not supported")))
        }
        None => Err(ApiError::bad_request(
            "entryFilterNames can't be empty. To remove entry filters use the remove method.",
        )),
    }
}

pub(crate) fn check_auto_creation(value: &Value) -> Result<()> {
    let refuse = |detail: &str| {
        Err(ApiError::precondition(format!(
            "Invalid configuration for autoTopicCreationOverride. the detail is {detail}"
        )))
    };
    if value.get("allowAutoTopicCreation").and_then(Value::as_bool) != Some(true) {
        return Ok(());
    }
    let partitions = value.get("defaultNumPartitions").and_then(Value::as_i64);
    match (value.get("topicType").and_then(Value::as_str), partitions) {
        (Some("partitioned"), None) => refuse("[defaultNumPartitions] cannot be null when the type is partitioned."),
        (Some("partitioned"), Some(partitions)) if partitions <= 0 => {
            refuse("[defaultNumPartitions] cannot be less than 1 for partition type.")
        }
        (Some("non-partitioned"), Some(_)) => {
            refuse("[defaultNumPartitions] is not allowed to be set when the type is non-partition.")
        }
        (Some("partitioned" | "non-partitioned"), _) => Ok(()),
        (other, _) => refuse(&format!("Unknown topic type [{}]", other.unwrap_or_default())),
    }
}

pub(crate) fn not_below_0(reason: &str, value: &Value) -> Result<()> {
    match value.as_i64() {
        Some(number) if number < 0 => Err(ApiError::precondition(reason)),
        _ => Ok(()),
    }
}

/// A topic's limit lies below the broker's own.
pub(crate) fn check_message_size(value: &Value) -> Result<()> {
    match value.as_i64() {
        Some(0..=BROKER_MESSAGE_BYTES) | None => Ok(()),
        Some(_) => Err(ApiError::precondition(
            "topic-level maxMessageSize must be greater than or equal to 0 and must be smaller than that in the \
             broker-level",
        )),
    }
}
