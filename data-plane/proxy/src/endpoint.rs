//! Where a broker listens.

use std::fmt;

use thiserror::Error;

/// One port of one broker. Hosts are in lower case, IPv6 addresses without brackets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
    pub tls: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{text}' is not an address like {example}")]
pub struct InvalidEndpoint {
    text: String,
    example: &'static str,
}

impl Endpoint {
    /// Reads `pulsar://host:port`, `pulsar+ssl://host:port`, or `host:port`, which means the former.
    ///
    /// # Errors
    /// Whatever else it is.
    pub fn pulsar(text: &str) -> Result<Self, InvalidEndpoint> {
        Self::parse(text, "pulsar", "pulsar+ssl", "pulsar://10.0.0.1:6650")
    }

    /// Reads `http://host:port`, `https://host:port`, or `host:port`, which means the former.
    ///
    /// # Errors
    /// Whatever else it is.
    pub fn http(text: &str) -> Result<Self, InvalidEndpoint> {
        Self::parse(text, "http", "https", "http://10.0.0.1:8080")
    }

    fn parse(text: &str, plain: &str, secure: &str, example: &'static str) -> Result<Self, InvalidEndpoint> {
        let invalid = || InvalidEndpoint { text: text.to_owned(), example };
        let (tls, address) = match text.split_once("://") {
            None => (false, text),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case(plain) => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case(secure) => (true, rest),
            Some(_) => return Err(invalid()),
        };
        let (host, port) = split_authority(address.strip_suffix('/').unwrap_or(address)).ok_or_else(invalid)?;
        Ok(Self { host, port, tls })
    }

    /// `host:port`, as it stands in URLs.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// As lookups answer it.
    pub fn pulsar_url(&self) -> String {
        format!("{}://{}", if self.tls { "pulsar+ssl" } else { "pulsar" }, self.authority())
    }

    pub fn http_scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.authority(), if self.tls { " with TLS" } else { "" })
    }
}

/// The host, in lower case and without brackets, and the port of `host:port`.
pub fn split_authority(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').filter(|address| address.parse::<std::net::Ipv6Addr>().is_ok())?,
        None => host,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let valid = !bare.is_empty() && port != 0 && (bare.len() < host.len() || bare.chars().all(plain));
    valid.then(|| (bare.to_ascii_lowercase(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_urls() {
        for (text, authority, url) in [
            ("pulsar://Broker-1.internal:6650", "broker-1.internal:6650", "pulsar://broker-1.internal:6650"),
            ("pulsar+ssl://10.0.0.1:6651/", "10.0.0.1:6651", "pulsar+ssl://10.0.0.1:6651"),
            ("[::1]:6650", "[::1]:6650", "pulsar://[::1]:6650"),
        ] {
            let endpoint = Endpoint::pulsar(text).unwrap();
            assert_eq!((endpoint.authority().as_str(), endpoint.pulsar_url().as_str()), (authority, url));
            assert_eq!(Endpoint::pulsar(url), Ok(endpoint));
        }
        assert!(Endpoint::http("https://a:443").unwrap().tls);
    }

    #[test]
    fn refuses_what_could_mean_another_host() {
        for bad in [
            "",
            "a",
            ":1",
            "a:",
            "a:0",
            "a:65536",
            "http://a:1",
            "pulsar://user@a:1",
            "pulsar://a:1/b",
            "pulsar://a:1,b:2",
            "a b:1",
            "::1:6650",
            "[::1:6650",
            "[a]:1",
            "a\n:1",
            "pulsar://a#b:1",
        ] {
            assert!(Endpoint::pulsar(bad).is_err(), "{bad:?}");
        }
    }
}
