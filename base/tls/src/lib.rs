//! TLS as a server and as a client, with files that may change while the process runs.
//!
//! [`ServerTls`] shows a certificate, [`ClientTls`] trusts authorities; both look at their files' times when a connection
//! is made, and read them again when those have changed. Files that are wrong then are complained of once, and what was
//! read before stays in use. A [`Stream`] is a TCP connection with or without TLS. The one crypto provider is ring.

mod client;
mod error;
mod files;
mod server;
mod stream;

pub use client::ClientTls;
pub use error::TlsError;
pub use server::ServerTls;
pub use stream::Stream;

/// The host of `HOST:PORT`, for which a certificate has to be; of an IPv6 address without its brackets.
pub fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']'])
}

#[cfg(test)]
mod tests {
    #[test]
    fn hosts_of_addresses() {
        let hosts = ["node-1.example:3181", "10.0.0.7:1", "[::1]:3181", "bare"].map(super::host_of);
        assert_eq!(hosts, ["node-1.example", "10.0.0.7", "::1", "bare"]);
    }
}
