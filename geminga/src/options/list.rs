//! Settings of several values, written with commas between them.

use std::fmt;
use std::str::FromStr;

use geminga_proxy::{AddressPattern, Endpoint};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Values in the order given, each with the text that it was read from.
#[derive(Debug, Clone, PartialEq)]
pub struct List<T>(Vec<(String, T)>);

impl<T> Default for List<T> {
    fn default() -> Self {
        List(Vec::new())
    }
}

impl<T: Clone> List<T> {
    pub fn values(&self) -> Vec<T> {
        self.0.iter().map(|(_, value)| value.clone()).collect()
    }
}

impl<T: Value> FromStr for List<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(|part| Ok((part.to_owned(), T::read(part)?))).collect::<Result<_, _>>().map(List)
    }
}

impl<T> fmt::Display for List<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<&str> = self.0.iter().map(|(text, _)| text.as_str()).collect();
        f.write_str(&parts.join(","))
    }
}

impl<T> Serialize for List<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, T: Value> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What a list may hold.
pub trait Value: Sized {
    fn read(text: &str) -> Result<Self, String>;
}

/// A broker's port for Pulsar's protocol.
#[derive(Debug, Clone, PartialEq)]
pub struct PulsarBroker(pub Endpoint);

/// A broker's port for HTTP.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpBroker(pub Endpoint);

impl Value for PulsarBroker {
    fn read(text: &str) -> Result<Self, String> {
        Endpoint::pulsar(text).map(Self).map_err(|error| error.to_string())
    }
}

impl Value for HttpBroker {
    fn read(text: &str) -> Result<Self, String> {
        Endpoint::http(text).map(Self).map_err(|error| error.to_string())
    }
}

impl Value for AddressPattern {
    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: geminga_proxy::InvalidPattern| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_shown_as_they_were_given() {
        let list: List<PulsarBroker> = "pulsar://a:1, b:2,pulsar+ssl://c:3".parse().unwrap();
        assert_eq!(list.to_string(), "pulsar://a:1,b:2,pulsar+ssl://c:3");
        assert_eq!(list.to_string().parse(), Ok(list));
        assert_eq!("".parse(), Ok(List::<HttpBroker>::default()));
        for bad in ["http://a:1", "a", "a:1,b"] {
            assert!(bad.parse::<List<PulsarBroker>>().is_err(), "{bad}");
        }
    }
}
