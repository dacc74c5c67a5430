//! Which storage nodes there are, connections to them, and choosing among them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use geminga_ensemble::NodeId;
use geminga_flow::Budget;
use parking_lot::Mutex;
use rand::seq::SliceRandom;
use tokio::net::TcpStream;

use crate::node::NodeConnection;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A storage node that takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    pub id: NodeId,
    /// `HOST:PORT`, which may change.
    pub address: String,
    /// Nodes of one zone fail together.
    pub zone: String,
    /// It says that it lives.
    pub is_alive: bool,
    /// It takes new entries.
    pub is_writable: bool,
    /// It is to be emptied: whoever writes to it goes on with another node, if there is one.
    pub is_draining: bool,
}

/// Where nodes are looked up.
pub trait NodeDirectory: Send + Sync + 'static {
    fn nodes(&self) -> Vec<NodeInfo>;
}

pub struct Nodes {
    directory: Arc<dyn NodeDirectory>,
    connections: Mutex<HashMap<NodeId, Arc<NodeConnection>>>,
    /// One attempt to connect to each node at a time.
    connecting: Mutex<HashMap<NodeId, Arc<tokio::sync::Mutex<()>>>>,
    outbound: Arc<Budget>,
    call_timeout: Duration,
}

impl Nodes {
    pub fn new(directory: Arc<dyn NodeDirectory>, outbound: Arc<Budget>, call_timeout: Duration) -> Self {
        Self { directory, connections: Mutex::default(), connecting: Mutex::default(), outbound, call_timeout }
    }

    /// Nodes that do not say that they live, and do not answer either. Whoever has only not said so, as when metadata were away,
    /// is not among them.
    pub async fn gone(&self) -> BTreeSet<NodeId> {
        let mut gone = BTreeSet::new();
        for info in self.directory.nodes().into_iter().filter(|info| !info.is_alive) {
            if self.connect(&info.id).await.is_none() {
                gone.insert(info.id);
            }
        }
        gone
    }

    /// Members of an ensemble that a writer leaves without having to: those that are gone, and those that are to be emptied. No
    /// more than there are others to take their places.
    pub fn to_leave(&self, ensemble: &[NodeId], gone: &BTreeSet<NodeId>) -> Vec<NodeId> {
        let all = self.directory.nodes();
        let spare = all.iter().filter(|info| info.is_writable && !ensemble.contains(&info.id)).count();
        let is_draining = |node: &NodeId| all.iter().any(|info| info.id == *node && info.is_draining);
        let leaving = ensemble.iter().filter(|node| gone.contains(*node) || is_draining(node));
        leaving.take(spare).cloned().collect()
    }

    /// A connection that is there.
    pub fn connected(&self, node: &NodeId) -> Option<Arc<NodeConnection>> {
        self.connections.lock().get(node).filter(|connection| !connection.is_closed()).cloned()
    }

    /// A connection, made now if need be; `None` if the node cannot be reached.
    pub async fn connect(&self, node: &NodeId) -> Option<Arc<NodeConnection>> {
        if let Some(connection) = self.connected(node) {
            return Some(connection);
        }
        let turn = self.connecting.lock().entry(node.clone()).or_default().clone();
        let _turn = turn.lock().await;
        if let Some(connection) = self.connected(node) {
            return Some(connection);
        }
        let address = self.directory.nodes().into_iter().find(|info| info.id == *node)?.address;
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::info!(node, address, %error, "could not connect to a storage node");
                return None;
            }
            Err(_) => {
                tracing::info!(node, address, "a storage node does not accept connections");
                return None;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(node, %error, "could not set TCP_NODELAY");
        }
        let connection = NodeConnection::start(node, stream, self.outbound.clone(), self.call_timeout);
        self.connections.lock().insert(node.clone(), connection.clone());
        Some(connection)
    }

    /// Nodes for `count` places of an ensemble that has `present` already, in as many zones as there are; connected. `None` in
    /// place of those that could not be found.
    pub async fn choose(&self, count: usize, present: &[NodeId], avoid: &BTreeSet<NodeId>) -> Vec<Option<NodeId>> {
        let all = self.directory.nodes();
        let zone_of = |node: &NodeId| all.iter().find(|info| info.id == *node).map(|info| info.zone.clone());
        let mut zones: Vec<String> = present.iter().filter_map(zone_of).collect();
        let mut free: Vec<&NodeInfo> = all
            .iter()
            .filter(|info| info.is_writable && !present.contains(&info.id) && !avoid.contains(&info.id))
            .collect();
        free.shuffle(&mut rand::rng());
        let mut chosen = Vec::new();
        while chosen.len() < count {
            // The zone with the fewest first.
            let in_zone = |info: &&NodeInfo| zones.iter().filter(|zone| **zone == info.zone).count();
            let Some(at) = (0..free.len()).min_by_key(|at| in_zone(&free[*at])) else { break };
            let info = free.swap_remove(at);
            if self.connect(&info.id).await.is_some() {
                zones.push(info.zone.clone());
                chosen.push(Some(info.id.clone()));
            }
        }
        chosen.resize(count, None);
        chosen
    }
}
