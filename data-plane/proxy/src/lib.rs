//! One address in front of brokers that clients cannot reach themselves.
//!
//! **Pulsar's protocol.** A client that asks where topics are ([`lookups`], pure; driven by `asking`) is answered by one of
//! the configured brokers, and told to come here for whatever broker it was given. When it comes back and names that broker
//! ([`admission`] says whether it may), the two are introduced (`greeting`, pure; driven by `piping`), and from then on bytes
//! pass as they come (`pump`). Authentication is the brokers': the proxy passes on what either side sends.
//!
//! **HTTP.** Admin REST and HTTP lookups are passed to one of the configured brokers (`http`), redirects between brokers are
//! followed inside.
//!
//! Source of the protocol's facts: Pulsar's binary protocol specification (`PulsarApi.proto`) and the behaviour of its proxy.

mod accept;
mod admission;
mod answers;
mod asking;
mod client;
mod dial;
mod endpoint;
mod frame;
mod greeting;
mod http;
mod link;
mod lookups;
mod metrics;
mod piping;
mod proxy;
mod pump;
mod reader;
mod rotation;

use std::sync::Arc;

use geminga_tls::ServerTls;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use admission::{AddressPattern, InvalidPattern};
pub use endpoint::{Endpoint, InvalidEndpoint};
pub use proxy::{Proxy, ProxyOptions};

use accept::Port;

/// Serves Pulsar's protocol until `shutdown` turns true. Connections are ended then: clients find their topics again through
/// another proxy, or this one once it is back.
pub async fn serve_pulsar(
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    proxy: Arc<Proxy>,
    shutdown: watch::Receiver<bool>,
) {
    let port = Port { listener, tls, limit: proxy.clients.clone(), figures: proxy.figures.clone() };
    let ends = shutdown.clone();
    let serve = move |stream, address| {
        let (proxy, mut shutdown) = (proxy.clone(), ends.clone());
        async move {
            let _active = proxy.figures.connected();
            tokio::select! {
                () = client::serve(proxy, stream, address) => {}
                _ = shutdown.wait_for(|down| *down) => {}
            }
        }
    };
    port.serve(shutdown, serve).await;
}

/// Serves HTTP until `shutdown` turns true; requests that are under way are finished.
pub async fn serve_http(
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    proxy: Arc<Proxy>,
    shutdown: watch::Receiver<bool>,
) {
    let port = Port { listener, tls, limit: proxy.http_clients.clone(), figures: proxy.figures.clone() };
    let ends = shutdown.clone();
    let serve = move |stream, _| http::serve(proxy.clone(), stream, ends.clone());
    port.serve(shutdown, serve).await;
}
