//! Which addresses a client may be connected to.
//!
//! A client names the broker that it wants. Were any name good, the proxy would be a door into the network behind it. So
//! the name must be one of a configured broker, one that a broker has answered to a lookup, or one that the operator allows
//! by a pattern: without such a pattern a client that has looked up through one proxy is sent back to look up again by
//! another one, or by the same after a restart.

use std::str::FromStr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use thiserror::Error;

use crate::endpoint::{Endpoint, split_authority};

/// Addresses from lookups are forgotten when no lookup has named them for so long. Clients look up before they connect.
const REMEMBERED_FOR: Duration = Duration::from_secs(3600);
/// A cluster has far fewer brokers; beyond, the one that was named longest ago is forgotten.
const REMEMBERED_MAX: usize = 10_000;

/// Addresses allowed by the operator: `host:port`, where the host may begin with `*.` for all below a domain, and the port
/// may be `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressPattern {
    host: String,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is not a pattern of addresses like *.brokers.internal:6650 or 10.0.0.1:*")]
pub struct InvalidPattern(String);

impl FromStr for AddressPattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidPattern(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let concrete = host.strip_prefix("*.").unwrap_or(host);
        // Any port will do to see whether the host is one.
        let (bare, _) = split_authority(&format!("{concrete}:1")).ok_or_else(invalid)?;
        let host = if concrete.len() < host.len() { format!("*.{bare}") } else { bare };
        let port = match port {
            "*" => None,
            port => Some(port.parse().map_err(|_| invalid())?),
        };
        Ok(Self { host, port })
    }
}

impl AddressPattern {
    fn matches(&self, host: &str, port: u16) -> bool {
        let host_matches = match self.host.strip_prefix('*') {
            Some(domain) => host.len() > domain.len() && host.ends_with(domain),
            None => host == self.host,
        };
        host_matches && self.port.is_none_or(|allowed| allowed == port)
    }
}

#[derive(Debug, PartialEq, Eq, Error)]
pub enum Denied {
    #[error("the target broker's address is malformed")]
    Malformed,
    #[error("the target broker is not known")]
    Unknown,
}

pub struct Admission {
    configured: Vec<Endpoint>,
    patterns: Vec<AddressPattern>,
    /// By host and port: whether with TLS, and when a lookup named it last.
    looked_up: Mutex<FxHashMap<(String, u16), (bool, Instant)>>,
}

impl Admission {
    pub fn new(configured: Vec<Endpoint>, patterns: Vec<AddressPattern>) -> Self {
        Self { configured, patterns, looked_up: Mutex::default() }
    }

    /// A broker has answered this address to a lookup.
    pub fn looked_up(&self, endpoint: &Endpoint, now: Instant) {
        let mut looked_up = self.looked_up.lock();
        let key = (endpoint.host.clone(), endpoint.port);
        if looked_up.len() >= REMEMBERED_MAX && !looked_up.contains_key(&key) {
            let oldest = looked_up.iter().min_by_key(|(_, (_, named))| *named).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| looked_up.remove(&oldest));
        }
        looked_up.insert(key, (endpoint.tls, now));
    }

    /// The broker that a client has named: as `host:port`, or as a URL.
    ///
    /// # Errors
    /// When it must not be connected to.
    pub fn admit(&self, target: &str, now: Instant) -> Result<Endpoint, Denied> {
        let named = Endpoint::pulsar(target).map_err(|_| Denied::Malformed)?;
        let same = |known: &&Endpoint| known.host == named.host && known.port == named.port;
        if let Some(known) = self.configured.iter().find(same) {
            return Ok(known.clone());
        }
        let key = (named.host.clone(), named.port);
        if let Some((tls, at)) = self.looked_up.lock().get(&key)
            && now.saturating_duration_since(*at) < REMEMBERED_FOR
        {
            return Ok(Endpoint { tls: *tls, ..named });
        }
        if self.patterns.iter().any(|pattern| pattern.matches(&named.host, named.port)) {
            // A name without a scheme says nothing about TLS; then it is as with the brokers that are configured.
            let tls = named.tls || (!target.contains("://") && self.configured.iter().all(|known| known.tls));
            return Ok(Endpoint { tls, ..named });
        }
        Err(Denied::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        Endpoint::pulsar(text).unwrap()
    }

    #[test]
    fn lets_in_what_is_configured_looked_up_or_allowed() {
        let patterns = vec!["*.brokers.internal:6650".parse().unwrap(), "10.0.0.9:*".parse().unwrap()];
        let admission = Admission::new(vec![endpoint("pulsar+ssl://a:6651")], patterns);
        let now = Instant::now();
        assert_eq!(admission.admit("A:6651", now), Ok(endpoint("pulsar+ssl://a:6651")));
        assert_eq!(admission.admit("b:6650", now), Err(Denied::Unknown));
        admission.looked_up(&endpoint("b:6650"), now);
        assert_eq!(admission.admit("b:6650", now), Ok(endpoint("pulsar://b:6650")));
        assert_eq!(admission.admit("pulsar://b:6650", now), Ok(endpoint("pulsar://b:6650")));
        assert_eq!(admission.admit("b:22", now), Err(Denied::Unknown), "another port of a known host");
        assert_eq!(admission.admit("b:6650", now + REMEMBERED_FOR), Err(Denied::Unknown));
        let allowed = admission.admit("n1.brokers.internal:6650", now);
        assert_eq!(allowed, Ok(endpoint("pulsar+ssl://n1.brokers.internal:6650")));
        for (target, denied) in [
            ("brokers.internal:6650", Denied::Unknown),
            ("evilbrokers.internal:6650", Denied::Unknown),
            ("n1.brokers.internal:22", Denied::Unknown),
            ("n1.brokers.internal.evil:6650", Denied::Unknown),
            ("169.254.169.254:80", Denied::Unknown),
            ("b", Denied::Malformed),
            ("http://b:6650", Denied::Malformed),
        ] {
            assert_eq!(admission.admit(target, now), Err(denied), "{target}");
        }
        assert!(admission.admit("10.0.0.9:7000", now).is_ok());
    }

    #[test]
    fn remembers_a_bounded_number() {
        let admission = Admission::new(Vec::new(), Vec::new());
        let begin = Instant::now();
        for index in 0..=REMEMBERED_MAX as u64 {
            admission.looked_up(&endpoint(&format!("b{index}:1")), begin + Duration::from_millis(index));
        }
        let now = begin + Duration::from_millis(REMEMBERED_MAX as u64);
        assert_eq!(admission.looked_up.lock().len(), REMEMBERED_MAX);
        assert_eq!(admission.admit("b0:1", now), Err(Denied::Unknown));
        assert!(admission.admit("b1:1", now).is_ok());
    }

    #[test]
    fn patterns_are_checked() {
        for bad in ["", "a", "*", "*:6650", "a:x", "*.:1", "a*.b:1", "*.*.b:1", "a/b:1"] {
            assert!(bad.parse::<AddressPattern>().is_err(), "{bad}");
        }
    }
}
