//! `geminga proxy`: one address in front of brokers.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;

use anyhow::{Context, bail};
use geminga_proxy::{Endpoint, Proxy};
use geminga_tls::{ClientTls, ServerTls};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::listen::listen;
use crate::options::{ProxyOptions, Resolved};
use crate::ready::ReadyFile;
use crate::server::{self, warn_of_wide_listening};

/// Instead of an address: this port is not wanted.
const NONE: &str = "none";

/// Runs until a signal stops it.
pub fn start(resolved: &Resolved<ProxyOptions>) -> anyhow::Result<()> {
    let options = &resolved.options;
    server::run(&options.process, &resolved.unknown_keys, |shutdown| run(options, shutdown))
}

async fn run(options: &ProxyOptions, mut shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    let brokers: Vec<Endpoint> = options.brokers.values().into_iter().map(|broker| broker.0).collect();
    let http_brokers: Vec<Endpoint> = options.broker_http.values().into_iter().map(|broker| broker.0).collect();
    if brokers.is_empty() {
        bail!("a proxy needs brokers to stand before (--brokers)");
    }
    if let Some(path) = &options.process.ready_file {
        ReadyFile::clear(path)?;
    }
    let ports = Ports::listen(options)?;
    let proxy = Proxy::new(geminga_proxy::ProxyOptions {
        broker_tls: broker_tls(options, &brokers)?,
        http_broker_tls: broker_tls(options, &http_brokers)?,
        brokers,
        allowed: options.allow_brokers.values(),
        http_brokers,
        max_connections: options.max_connections,
    });
    let addresses = ports.addresses();
    let mut serving = ports.serve(&proxy, &shutdown)?;

    warn_of_wide_listening(&addresses.iter().map(|(_, address)| *address).collect::<Vec<_>>());
    let ready = options.process.ready_file.as_deref().map(|path| ReadyFile::write(path, &addresses)).transpose()?;
    let urls: Vec<String> = addresses.iter().map(|(name, address)| format!("{}://{address}", scheme(name))).collect();
    tracing::info!(brokers = %options.brokers, "serving {}", urls.join(", "));
    crate::print(&format!("serving {}\n", urls.join(" and ")));

    // Fails only when the sender is gone, which then cannot ask for anything else either.
    let _ = shutdown.wait_for(|stop| *stop).await;
    drop(ready);
    let finish = async { while serving.join_next().await.is_some() {} };
    server::finish(&options.process, finish).await;
    tracing::info!("stopped");
    Ok(())
}

/// Whom to trust as a broker: what is said, or what the machine trusts when brokers have TLS.
fn broker_tls(options: &ProxyOptions, brokers: &[Endpoint]) -> anyhow::Result<Option<ClientTls>> {
    match &options.broker_ca {
        Some(path) => Ok(Some(ClientTls::trusting(path).context("cannot use the brokers' authority (--broker-ca)")?)),
        None if brokers.iter().any(|broker| broker.tls) => Ok(Some(ClientTls::trusting_the_machine()?)),
        None => Ok(None),
    }
}

/// A port by the name that it has in the ready file.
struct Port {
    name: &'static str,
    listener: StdListener,
    address: SocketAddr,
    tls: Option<Arc<ServerTls>>,
}

fn scheme(name: &str) -> &str {
    if name == "tls" { "pulsar+ssl" } else { name }
}

struct Ports(Vec<Port>);

impl Ports {
    fn listen(options: &ProxyOptions) -> anyhow::Result<Self> {
        let plain = |text: &String| Some(text.clone()).filter(|text| text != NONE);
        let wanted = [
            ("pulsar", "pulsar-addr", plain(&options.pulsar_addr), None),
            ("tls", "tls-addr", options.tls_addr.clone(), Some(&[][..])),
            ("http", "http-addr", plain(&options.http_addr), None),
            ("https", "https-addr", options.https_addr.clone(), Some(&["http/1.1"][..])),
        ];
        let mut ports = Vec::new();
        for (name, option, text, protocols) in wanted {
            let Some(text) = text else { continue };
            let (listener, address) = listen(&text, option)?;
            let tls = protocols.map(|protocols| server_tls(options, option, protocols)).transpose()?;
            ports.push(Port { name, listener, address, tls });
        }
        Ok(Self(ports))
    }

    fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        self.0.iter().map(|port| (port.name, port.address)).collect()
    }

    fn serve(self, proxy: &Arc<Proxy>, shutdown: &watch::Receiver<bool>) -> anyhow::Result<JoinSet<()>> {
        let mut serving = JoinSet::new();
        for Port { name, listener, tls, .. } in self.0 {
            let listener = TcpListener::from_std(listener)?;
            match name {
                "http" | "https" => {
                    serving.spawn(geminga_proxy::serve_http(listener, tls, proxy.clone(), shutdown.clone()))
                }
                _ => serving.spawn(geminga_proxy::serve_pulsar(listener, tls, proxy.clone(), shutdown.clone())),
            };
        }
        Ok(serving)
    }
}

fn server_tls(options: &ProxyOptions, option: &str, protocols: &[&str]) -> anyhow::Result<Arc<ServerTls>> {
    let (Some(certificate), Some(key)) = (&options.tls_cert, &options.tls_key) else {
        bail!("--{option} needs a certificate and its key (--tls-cert, --tls-key)");
    };
    let tls = ServerTls::open(certificate, key, None, protocols).context("cannot serve TLS (--tls-cert, --tls-key)")?;
    Ok(Arc::new(tls))
}
