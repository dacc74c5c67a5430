//! One request and its answer, between HTTP and the resources.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::Query;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use geminga_broker::Broker;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{ApiError, Result};

/// A request, taken apart: resources match on the method and the segments of the path.
pub(crate) struct Call {
    pub broker: Arc<Broker>,
    pub method: Method,
    pub path: String,
    /// `host` or `host:port` by which the client knows this server.
    pub host: String,
    /// Decoded, so a segment may contain a slash.
    pub segments: Vec<String>,
    /// The path and the query, as they came.
    uri: String,
    query: HashMap<String, String>,
    body: Bytes,
}

/// What a resource answers.
pub(crate) enum Answer {
    /// 204.
    Nothing,
    /// A value that is not set: 200 without a body, as Pulsar answers `null`.
    Unset,
    Json(Value),
    /// Bare text, which Pulsar labels as JSON too.
    Text(String),
    Response(Response),
}

impl Call {
    pub fn new(broker: Arc<Broker>, method: Method, uri: &Uri, host: String, body: Bytes) -> Result<Self> {
        let segments = uri.path().split('/').filter(|part| !part.is_empty()).map(decode).collect::<Result<_>>()?;
        let query = Query::try_from_uri(uri).map_err(|error| ApiError::bad_request(error.to_string()))?.0;
        let whole = uri.path_and_query().map_or_else(|| uri.path().to_owned(), ToString::to_string);
        Ok(Self { broker, method, path: uri.path().to_owned(), host, segments, uri: whole, query, body })
    }

    /// The same request with another method and path.
    pub fn derived(&self, method: &str, segments: &[&str]) -> Result<Self> {
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_| ApiError::bad_request(format!("'{method}' is not a method")))?;
        let path: String = segments.iter().flat_map(|segment| ["/".to_owned(), encode(segment)]).collect();
        let uri = match self.uri.split_once('?') {
            Some((_, query)) => format!("{path}?{query}"),
            None => path.clone(),
        };
        Ok(Self {
            broker: self.broker.clone(),
            method,
            path,
            host: self.host.clone(),
            segments: segments.iter().map(|&segment| segment.to_owned()).collect(),
            uri,
            query: self.query.clone(),
            body: self.body.clone(),
        })
    }

    pub fn uri(&self) -> &str {
        &self.uri
    }

    pub fn body(&self) -> &Bytes {
        &self.body
    }

    pub fn method(&self) -> &str {
        self.method.as_str()
    }

    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    /// A query parameter that is `true` or not.
    pub fn flag(&self, name: &str) -> bool {
        self.query(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        match self.query(name) {
            None => Ok(None),
            Some(text) => number(text).map(Some),
        }
    }

    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        if self.body.is_empty() {
            return Err(ApiError::bad_request("The request entity cannot be empty."));
        }
        serde_json::from_slice(&self.body).map_err(|error| ApiError::bad_request(format!("malformed body: {error}")))
    }

    /// The body, or the default when there is none.
    pub fn json_or_default<T: DeserializeOwned + Default>(&self) -> Result<T> {
        if self.body.is_empty() || &self.body[..] == b"null" { Ok(T::default()) } else { self.json() }
    }

    /// The body as it is.
    pub fn text(&self) -> Result<&str> {
        std::str::from_utf8(&self.body).map_err(|_| ApiError::bad_request("the body is not UTF-8"))
    }

    /// For whatever no resource serves.
    pub fn unsupported<T>(&self) -> Result<T> {
        Err(crate::unserved::refusal(self))
    }
}

impl Answer {
    pub fn json(value: impl Serialize) -> Result<Self> {
        match serde_json::to_value(value) {
            Ok(value) => Ok(Self::Json(value)),
            Err(error) => Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        }
    }

    /// An array, written at once into a piece of its size: there may be very many.
    pub fn names(names: &[String]) -> Result<Self> {
        let size = names.iter().map(|name| name.len() + "\"\",".len()).sum::<usize>();
        let mut json = Vec::with_capacity("[]".len() + size);
        match serde_json::to_writer(&mut json, names) {
            Ok(()) => Ok(Self::Response(([(CONTENT_TYPE, "application/json")], json).into_response())),
            Err(error) => Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        }
    }

    /// What a client reads, if it reads JSON.
    pub fn into_json(self) -> Value {
        match self {
            Self::Json(value) => value,
            Self::Text(text) => Value::String(text),
            Self::Nothing | Self::Unset | Self::Response(_) => Value::Null,
        }
    }

    /// Two answers to the same thing in one: objects have the fields of both.
    pub fn merged(self, other: Self) -> Self {
        match (self, other) {
            (Self::Json(Value::Object(mut fields)), Self::Json(Value::Object(more))) => {
                fields.extend(more);
                Self::Json(Value::Object(fields))
            }
            (Self::Nothing, other) => other,
            (first, _) => first,
        }
    }

    pub fn optional(value: Option<impl Serialize>) -> Result<Self> {
        value.map_or(Ok(Self::Unset), Self::json)
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        match self {
            Self::Nothing => StatusCode::NO_CONTENT.into_response(),
            Self::Unset => StatusCode::OK.into_response(),
            Self::Json(value) => Json(value).into_response(),
            Self::Text(text) => ([(CONTENT_TYPE, "application/json")], text).into_response(),
            Self::Response(response) => response,
        }
    }
}

/// A number in a path or query.
pub(crate) fn number<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| ApiError::bad_request(format!("'{text}' is not a valid number")))
}

/// The name of a subscription in a path. Clients encode it like a form value, and then as part of a path once more.
pub(crate) fn subscription_name(segment: &str) -> String {
    decode(segment).unwrap_or_else(|_| segment.to_owned())
}

/// Writes what [`decode`] reads.
fn encode(segment: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    segment
        .bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// One segment of a path. Clients encode names as forms do, so that a `+` is a space.
fn decode(segment: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let pair = tail.split_at_checked(2).and_then(|(pair, after)| {
                    let value = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
                    Some((value, after))
                });
                let (value, after) =
                    pair.ok_or_else(|| ApiError::bad_request(format!("malformed escape in '{segment}'")))?;
                bytes.push(value);
                rest = after;
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).map_err(|_| ApiError::bad_request(format!("'{segment}' is not UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_decode_as_form_values() {
        assert_eq!(decode("a%2Fb+c%C3%BC").unwrap(), "a/b cü");
        assert_eq!(decode(&encode("a/b c%ü-_.~")).unwrap(), "a/b c%ü-_.~");
        assert_eq!(subscription_name(&decode("s+x%252Fy%252B").unwrap()), "s x/y+");
        assert_eq!(subscription_name("100%"), "100%");
        for bad in ["%", "%2", "%zz", "%ff"] {
            assert_eq!(decode(bad).unwrap_err().status, StatusCode::BAD_REQUEST, "{bad}");
        }
    }
}
