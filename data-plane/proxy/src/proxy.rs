//! What all connections share.

use std::sync::Arc;
use std::time::Instant;

use geminga_flow::Budget;
use geminga_observe::Metrics;
use geminga_tls::ClientTls;
use tokio::sync::Semaphore;

use crate::admission::{AddressPattern, Admission};
use crate::dial::Dialer;
use crate::endpoint::Endpoint;
use crate::http::Forwarder;
use crate::metrics::Figures;
use crate::rotation::Rotation;

/// Room for large frames that have not come in whole, of clients and of brokers.
const CLIENT_FRAME_BYTES: u64 = 64 << 20;
const BROKER_FRAME_BYTES: u64 = 128 << 20;
/// Questions of clients that are not answered, and answers that they have not taken.
const HELD_BYTES: u64 = 64 << 20;

/// What a proxy stands before, and how much it takes.
pub struct ProxyOptions {
    /// Asked for lookups in turn.
    pub brokers: Vec<Endpoint>,
    /// Brokers that clients may be connected to beside those and the ones that lookups name.
    pub allowed: Vec<AddressPattern>,
    /// Asked for what comes in by HTTP, in turn.
    pub http_brokers: Vec<Endpoint>,
    /// Whom to trust as brokers; none where TLS is not used.
    pub broker_tls: Option<ClientTls>,
    /// The same, for HTTP.
    pub http_broker_tls: Option<ClientTls>,
    /// Clients at a time, and as many by HTTP.
    pub max_connections: usize,
}

pub struct Proxy {
    pub(crate) rotation: Rotation,
    pub(crate) admission: Admission,
    pub(crate) dialer: Dialer,
    pub(crate) forwarder: Forwarder,
    pub(crate) figures: Arc<Figures>,
    pub(crate) metrics: Metrics,
    pub(crate) client_frames: Arc<Budget>,
    pub(crate) broker_frames: Arc<Budget>,
    pub(crate) held: Arc<Budget>,
    pub(crate) clients: Arc<Semaphore>,
    pub(crate) http_clients: Arc<Semaphore>,
}

impl Proxy {
    pub fn new(options: ProxyOptions) -> Arc<Self> {
        let ProxyOptions { brokers, allowed, http_brokers, broker_tls, http_broker_tls, max_connections } = options;
        let figures = Arc::new(Figures::default());
        let metrics = Metrics::new();
        figures.show(&metrics);
        Arc::new(Self {
            rotation: Rotation::new(brokers.clone()),
            admission: Admission::new(brokers, allowed),
            dialer: Dialer { tls: broker_tls },
            forwarder: Forwarder::new(http_brokers, http_broker_tls),
            figures,
            metrics,
            client_frames: Budget::new(CLIENT_FRAME_BYTES),
            broker_frames: Budget::new(BROKER_FRAME_BYTES),
            held: Budget::new(HELD_BYTES),
            clients: Arc::new(Semaphore::new(max_connections)),
            http_clients: Arc::new(Semaphore::new(max_connections)),
        })
    }

    /// Whether a broker was reachable when it was tried last.
    pub(crate) fn is_ready(&self) -> bool {
        self.rotation.any_fine(Instant::now())
    }
}
