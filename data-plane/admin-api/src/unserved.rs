//! What no resource serves. What Pulsar has and we do not is refused by name (501); what Pulsar does not have either is answered as
//! there: 405 for a resource that takes other methods, else 404.

use axum::http::StatusCode;

use crate::call::Call;
use crate::error::ApiError;

/// Matches any segment.
const ANY: &str = "*";

/// What Pulsar has, behind `/admin/v2`, and we do not.
const OF_PULSAR: &[(&str, &[&str])] = &[
    ("POST", &["bookies", "racks-info", ANY]),
    ("DELETE", &["bookies", "racks-info", ANY]),
    ("POST", &["brokers", "shutdown"]),
    ("GET", &["clusters", ANY, "migrate"]),
    ("POST", &["clusters", ANY, "migrate"]),
    ("DELETE", &["namespaces", ANY, ANY, ANY]),
    ("PUT", &["namespaces", ANY, ANY, ANY, "split"]),
    ("GET", &["namespaces", ANY, ANY, ANY, "topicHashPositions"]),
    ("PUT", &["namespaces", ANY, ANY, ANY, "unload"]),
    ("POST", &["namespaces", ANY, ANY, "migration"]),
    ("GET", &["namespaces", ANY, ANY, "scanOffloadedLedgers"]),
    ("GET", &["resourcegroups", ANY]),
    ("PUT", &["resourcegroups", ANY]),
    ("DELETE", &["resourcegroups", ANY]),
    ("POST", &["resource-quotas"]),
    ("POST", &["resource-quotas", ANY, ANY, ANY]),
    ("DELETE", &["resource-quotas", ANY, ANY, ANY]),
];

/// The same, behind a topic's name.
const OF_TOPICS: &[(&str, &[&str])] = &[("PUT", &["compaction"]), ("PUT", &["offload"])];

/// Resources that exist, whatever their names: other methods than those that are served are not allowed.
const RESOURCES: &[&[&str]] = &[
    &["clusters"],
    &["clusters", ANY],
    &["clusters", ANY, "peers"],
    &["tenants"],
    &["tenants", ANY],
    &["namespaces", ANY],
    &["namespaces", ANY, ANY],
    &["namespaces", ANY, ANY, ANY],
    &["persistent", ANY, ANY],
    &["persistent", ANY, ANY, ANY],
    &["non-persistent", ANY, ANY],
    &["non-persistent", ANY, ANY, ANY],
    &["schemas", ANY, ANY, ANY, "schema"],
    &["brokers"],
    &["brokers", "health"],
    &["brokers", "configuration", ANY],
    &["resourcegroups"],
    &["resource-quotas"],
];

pub(crate) fn refusal(call: &Call) -> ApiError {
    let segments: Vec<&str> = call.segments.iter().map(String::as_str).collect();
    let what = format!("{} {}", call.method(), call.path);
    match segments.as_slice() {
        ["admin", "v2", path @ ..] => ApiError::new(status(call.method(), path), reason(&what, path, call.method())),
        ["lookup", "v2", "topic", _, _, _, _] => ApiError::not_allowed(format!("{what} is not allowed")),
        _ => ApiError::not_found(format!("{what} is not served here")),
    }
}

fn status(method: &str, path: &[&str]) -> StatusCode {
    if is_of_pulsar(method, path) {
        return StatusCode::NOT_IMPLEMENTED;
    }
    let other_methods = RESOURCES.iter().any(|resource| matches(resource, path));
    if other_methods { StatusCode::METHOD_NOT_ALLOWED } else { StatusCode::NOT_FOUND }
}

fn reason(what: &str, path: &[&str], method: &str) -> String {
    match status(method, path) {
        StatusCode::NOT_IMPLEMENTED => format!("{what} is not supported"),
        StatusCode::METHOD_NOT_ALLOWED => format!("{what} is not allowed"),
        _ => format!("{what} is not served here"),
    }
}

fn is_of_pulsar(method: &str, path: &[&str]) -> bool {
    let known = |table: &[(&str, &[&str])], path: &[&str]| {
        table.iter().any(|(known, pattern)| *known == method && matches(pattern, path))
    };
    match path {
        ["persistent" | "non-persistent", _, _, _, rest @ ..] => known(OF_TOPICS, rest),
        _ => known(OF_PULSAR, path),
    }
}

fn matches(pattern: &[&str], path: &[&str]) -> bool {
    pattern.len() == path.len() && pattern.iter().zip(path).all(|(wanted, given)| *wanted == ANY || wanted == given)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_served_is_answered_as_pulsar_would() {
        for (method, path, expected) in [
            ("PUT", "persistent/t/n/topic/compaction", 501),
            ("GET", "persistent/t/n/topic/nonsense", 404),
            ("POST", "persistent/t/n/topic", 405),
            ("PATCH", "clusters/c", 405),
            ("DELETE", "tenants", 405),
            ("GET", "namespaces/t/n/nonsense", 405),
            ("GET", "namespaces", 404),
            ("GET", "nonsense", 404),
            ("GET", "resourcegroups/g", 501),
        ] {
            let path: Vec<&str> = path.split('/').collect();
            assert_eq!(status(method, &path).as_u16(), expected, "{method} {path:?}");
        }
    }
}
