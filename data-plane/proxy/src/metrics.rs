//! Figures, under the names that Pulsar's proxy gives them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use geminga_observe::{Metrics, family, sample};

#[derive(Debug, Default)]
pub struct Figures {
    active_connections: AtomicU64,
    new_connections: AtomicU64,
    rejected_connections: AtomicU64,
    binary_ops: AtomicU64,
    binary_bytes: AtomicU64,
    lookups: AtomicU64,
    denied_targets: AtomicU64,
    http_requests: AtomicU64,
    http_failures: AtomicU64,
}

/// One connection of a client, for as long as it lives.
pub struct ActiveConnection(Arc<Figures>);

impl Drop for ActiveConnection {
    fn drop(&mut self) {
        self.0.active_connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Figures {
    pub fn connected(self: &Arc<Self>) -> ActiveConnection {
        self.active_connections.fetch_add(1, Ordering::Relaxed);
        self.new_connections.fetch_add(1, Ordering::Relaxed);
        ActiveConnection(self.clone())
    }

    /// A client came that was one too many.
    pub fn rejected(&self) {
        self.rejected_connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes were passed from one side to the other at once.
    pub fn piped(&self, bytes: usize) {
        self.binary_ops.fetch_add(1, Ordering::Relaxed);
        self.binary_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn looked_up(&self) {
        self.lookups.fetch_add(1, Ordering::Relaxed);
    }

    /// A client has named a broker that it must not be connected to.
    pub fn denied(&self) {
        self.denied_targets.fetch_add(1, Ordering::Relaxed);
    }

    pub fn http_request(&self) {
        self.http_requests.fetch_add(1, Ordering::Relaxed);
    }

    /// The proxy had to answer an HTTP request by itself.
    pub fn http_failure(&self) {
        self.http_failures.fetch_add(1, Ordering::Relaxed);
    }

    pub fn show(self: &Arc<Self>, metrics: &Metrics) {
        let figures = self.clone();
        metrics.add_source(move |page| figures.render(page));
    }

    fn render(&self, page: &mut String) {
        let all = [
            ("pulsar_proxy_active_connections", "gauge", "Connections of clients", &self.active_connections),
            ("pulsar_proxy_new_connections", "counter", "Connections that clients have made", &self.new_connections),
            (
                "pulsar_proxy_rejected_connections",
                "counter",
                "Connections beyond the limit",
                &self.rejected_connections,
            ),
            ("pulsar_proxy_binary_ops", "counter", "Pieces passed between clients and brokers", &self.binary_ops),
            ("pulsar_proxy_binary_bytes", "counter", "Bytes passed between clients and brokers", &self.binary_bytes),
            (
                "pulsar_proxy_lookup_requests",
                "counter",
                "Lookups that brokers have answered with an address",
                &self.lookups,
            ),
            (
                "geminga_proxy_denied_targets",
                "counter",
                "Connections to brokers that are not allowed",
                &self.denied_targets,
            ),
            ("geminga_proxy_http_requests", "counter", "HTTP requests for brokers", &self.http_requests),
            (
                "geminga_proxy_http_failures",
                "counter",
                "HTTP requests that no broker has answered",
                &self.http_failures,
            ),
        ];
        for (name, kind, help, value) in all {
            family(page, name, kind, help);
            sample(page, name, &[], value.load(Ordering::Relaxed));
        }
    }
}
