//! Addresses of this server by the network that a client is in.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Written like `internal:pulsar://10.0.0.1:6650,external:pulsar://example.org:6650`, as Pulsar's `advertisedListeners`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Listeners(BTreeMap<String, String>);

impl Listeners {
    /// URLs by the names of the listeners.
    pub fn urls(&self) -> BTreeMap<String, String> {
        self.0.clone()
    }
}

impl FromStr for Listeners {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut urls = BTreeMap::new();
        for listener in text.split(',').map(str::trim).filter(|listener| !listener.is_empty()) {
            let (name, url) = listener.split_once(':').unwrap_or_default();
            let address = url.strip_prefix("pulsar://").and_then(|address| address.rsplit_once(':'));
            if name.is_empty() || !address.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
                return Err(format!("'{listener}' is not a listener like external:pulsar://example.org:6650"));
            }
            if urls.insert(name.to_owned(), url.to_owned()).is_some() {
                return Err(format!("there are two listeners '{name}'"));
            }
        }
        Ok(Listeners(urls))
    }
}

impl TryFrom<String> for Listeners {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Listeners> for String {
    fn from(listeners: Listeners) -> String {
        listeners.to_string()
    }
}

impl fmt::Display for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<String> = self.0.iter().map(|(name, url)| format!("{name}:{url}")).collect();
        f.write_str(&each.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_pulsar_reads() {
        let text = "external:pulsar://example.org:6650,internal:pulsar://[::1]:16650";
        let listeners: Listeners = text.parse().unwrap();
        assert_eq!(listeners.to_string(), text);
        assert_eq!(listeners.urls()["internal"], "pulsar://[::1]:16650");
        assert_eq!("".parse(), Ok(Listeners::default()));
        for bad in
            ["x", "x:", "pulsar://host:1", "x:http://host:1", "x:pulsar://host", "x:pulsar://:1", "x:pulsar://h:port"]
        {
            assert!(bad.parse::<Listeners>().is_err(), "{bad}");
        }
        assert!("x:pulsar://a:1,x:pulsar://b:2".parse::<Listeners>().is_err());
    }
}
