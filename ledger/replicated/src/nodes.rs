//! Which storage nodes there are, connections to them, and choosing among them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use geminga_ensemble::placement::{self, Candidate, Place};
use geminga_ensemble::{NodeId, Quorum};
use geminga_flow::{Budget, Socket};
use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::node::NodeConnection;
use crate::tls::NodeTls;

/// How long connecting may take, and so long again TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Nodes whose machine or network has gone while nothing is asked of them are noticed by this, and in some minutes.
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(60);

/// A storage node that takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    pub id: NodeId,
    /// `HOST:PORT`, which may change.
    pub address: String,
    pub place: Place,
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

    /// Whether the node is at this address still, see [`is_at`].
    fn is_at(&self, node: &str, address: &str) -> bool {
        is_at(&self.nodes(), node, address)
    }
}

/// Whether a node is at this address still. One that is not known any more may be, unless another one is there.
pub fn is_at(nodes: &[NodeInfo], node: &str, address: &str) -> bool {
    nodes.iter().all(|info| (info.id == node) == (info.address == address))
}

/// Over how many zones entries have to be spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZonePolicy {
    /// Zones that any ack quorum is to be in.
    pub min_per_ack_quorum: usize,
    /// What happens where that is not possible: no ledger is begun, and no node is taken into one, or only a line in the log.
    pub refuses: bool,
}

impl Default for ZonePolicy {
    fn default() -> Self {
        Self { min_per_ack_quorum: 1, refuses: false }
    }
}

pub struct Nodes {
    directory: Arc<dyn NodeDirectory>,
    connections: Mutex<HashMap<NodeId, Arc<NodeConnection>>>,
    /// One attempt to connect to each node at a time, with the moment at which the last one failed.
    connecting: Mutex<HashMap<NodeId, Arc<tokio::sync::Mutex<Option<Instant>>>>>,
    outbound: Arc<Budget>,
    call_timeout: Duration,
    zones: ZonePolicy,
    /// None: nodes are spoken to in the clear.
    tls: Option<NodeTls>,
    /// What nodes said last.
    free_bytes: Mutex<HashMap<NodeId, u64>>,
}

impl Nodes {
    pub fn new(
        directory: Arc<dyn NodeDirectory>,
        outbound: Arc<Budget>,
        call_timeout: Duration,
        zones: ZonePolicy,
        tls: Option<NodeTls>,
    ) -> Self {
        let (connections, connecting) = Default::default();
        Self { directory, connections, connecting, outbound, call_timeout, zones, tls, free_bytes: Mutex::default() }
    }

    /// Those that new entries may go to.
    pub fn writable(&self) -> Vec<NodeId> {
        self.directory.nodes().into_iter().filter(|info| info.is_writable).map(|info| info.id).collect()
    }

    /// What nodes say of their disks now.
    pub fn learn_free_bytes(&self, free_bytes: HashMap<NodeId, u64>) {
        *self.free_bytes.lock() = free_bytes;
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

    /// Members of an ensemble that a writer leaves without having to: those that are gone, those that are not known any more and
    /// not connected, and those that are to be emptied. No more than there are others to take their places.
    pub fn to_leave(&self, ensemble: &[NodeId], gone: &BTreeSet<NodeId>) -> Vec<NodeId> {
        let all = self.directory.nodes();
        let spare = all.iter().filter(|info| info.is_writable && !ensemble.contains(&info.id)).count();
        let is_draining = |node: &NodeId| all.iter().any(|info| info.id == *node && info.is_draining);
        let is_forgotten = |node: &NodeId| all.iter().all(|info| info.id != *node) && self.connected(node).is_none();
        let leaving = ensemble.iter().filter(|node| gone.contains(*node) || is_draining(node) || is_forgotten(node));
        leaving.take(spare).cloned().collect()
    }

    /// A connection that is there.
    pub fn connected(&self, node: &NodeId) -> Option<Arc<NodeConnection>> {
        self.connections.lock().get(node).filter(|connection| !connection.is_closed()).cloned()
    }

    /// The same to a node that is where it was; what there is to another address is not used any more.
    fn connected_there(&self, node: &NodeId) -> Option<Arc<NodeConnection>> {
        let connection = self.connected(node)?;
        if self.directory.is_at(node, &connection.address) {
            return Some(connection);
        }
        tracing::info!(node, address = connection.address, "a storage node has another address now");
        connection.close();
        None
    }

    /// Ends connections to addresses at which nodes are not any more. Whoever writes does not look, as that is done for each entry.
    pub fn leave_moved(&self) {
        let nodes: Vec<NodeId> = self.connections.lock().keys().cloned().collect();
        nodes.iter().for_each(|node| drop(self.connected_there(node)));
    }

    /// A connection, made now if need be; `None` if the node cannot be reached. Whoever waited for an attempt shares its outcome.
    pub async fn connect(&self, node: &NodeId) -> Option<Arc<NodeConnection>> {
        if let Some(connection) = self.connected_there(node) {
            return Some(connection);
        }
        let asked_at = Instant::now();
        let turn = self.connecting.lock().entry(node.clone()).or_default().clone();
        let mut failed_at = turn.lock().await;
        if let Some(connection) = self.connected_there(node) {
            return Some(connection);
        }
        if failed_at.is_some_and(|failed_at| failed_at > asked_at) {
            return None;
        }
        let connection = self.connect_now(node).await;
        *failed_at = connection.is_none().then(Instant::now);
        connection
    }

    async fn connect_now(&self, node: &NodeId) -> Option<Arc<NodeConnection>> {
        let address = self.directory.nodes().into_iter().find(|info| info.id == *node)?.address;
        let socket = match self.reach(&address).await {
            Ok(socket) => socket,
            Err(error) => {
                tracing::info!(node, address, %error, "could not connect to a storage node");
                return None;
            }
        };
        let connection = NodeConnection::start(node, &address, socket, self.outbound.clone(), self.call_timeout);
        self.connections.lock().insert(node.clone(), connection.clone());
        Some(connection)
    }

    async fn reach(&self, address: &str) -> std::io::Result<Socket> {
        let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await.map_err(late)??;
        // What the system refuses costs speed or a late notice, not the connection.
        let keep_alive = TcpKeepalive::new().with_time(TCP_KEEP_ALIVE).with_interval(TCP_KEEP_ALIVE / 4);
        let set = stream.set_nodelay(true).and_then(|()| SockRef::from(&stream).set_tcp_keepalive(&keep_alive));
        if let Err(error) = set {
            tracing::debug!(address, %error, "could not set options of a connection");
        }
        match &self.tls {
            None => Ok(Socket::from(Arc::new(stream))),
            Some(tls) => tokio::time::timeout(CONNECT_TIMEOUT, tls.begin(address, stream)).await.map_err(late)?,
        }
    }

    /// Nodes for a whole ensemble; `None` where nobody was found.
    pub async fn choose(&self, quorum: Quorum) -> Vec<Option<NodeId>> {
        self.fill(quorum, vec![None; quorum.ensemble as usize], &BTreeSet::new()).await
    }

    /// Nodes for the places of those that failed, in their order; `None` where nobody was found.
    pub async fn replace(
        &self,
        quorum: Quorum,
        ensemble: &[NodeId],
        failed: &[NodeId],
        avoid: &BTreeSet<NodeId>,
    ) -> Vec<Option<NodeId>> {
        let staying: Vec<Option<NodeId>> =
            ensemble.iter().map(|node| (!failed.contains(node)).then(|| node.clone())).collect();
        let not_again = avoid.iter().chain(failed).cloned().collect();
        let filled = self.fill(quorum, staying, &not_again).await;
        let slot_of = |node: &NodeId| ensemble.iter().position(|member| member == node);
        failed.iter().map(|node| slot_of(node).and_then(|slot| filled[slot].clone())).collect()
    }

    /// Fills an ensemble's places with connected nodes.
    async fn fill(
        &self,
        quorum: Quorum,
        mut ensemble: Vec<Option<NodeId>>,
        avoid: &BTreeSet<NodeId>,
    ) -> Vec<Option<NodeId>> {
        let all = self.directory.nodes();
        let free_bytes = self.free_bytes.lock().clone();
        let places: HashMap<&NodeId, &Place> = all.iter().map(|info| (&info.id, &info.place)).collect();
        let places_of = |ensemble: &[Option<NodeId>]| -> Vec<Option<&Place>> {
            ensemble.iter().map(|member| places.get(member.as_ref()?).copied()).collect()
        };
        let is_free = |info: &&NodeInfo| {
            info.is_writable && !avoid.contains(&info.id) && !ensemble.contains(&Some(info.id.clone()))
        };
        let mut candidates: Vec<Candidate> = all
            .iter()
            .filter(is_free)
            .map(|info| Candidate { node: &info.id, place: &info.place, free_bytes: free_bytes.get(&info.id).copied() })
            .collect();
        let write_quorum = quorum.write as usize;
        for slot in 0..ensemble.len() {
            while ensemble[slot].is_none() {
                let members = places_of(&ensemble);
                let Some(node) = placement::next(&members, slot, write_quorum, &candidates, rand::random()) else {
                    break;
                };
                candidates.retain(|candidate| candidate.node != node);
                if self.connect(node).await.is_some() {
                    ensemble[slot] = Some(node.clone());
                    if !self.may_be(quorum, &places_of(&ensemble), node) {
                        ensemble[slot] = None;
                    }
                }
            }
        }
        ensemble
    }

    /// Whether an ensemble that `node` was taken into last is spread as it has to be. One that is not full may become so.
    fn may_be(&self, quorum: Quorum, places: &[Option<&Place>], node: &NodeId) -> bool {
        if places.iter().any(Option::is_none) {
            return true;
        }
        let (zones, min) = (placement::zones_of_ack_quorum(places, quorum), self.zones.min_per_ack_quorum);
        if zones < min {
            let refused = self.zones.refuses;
            tracing::warn!(node, zones, min, refused, "an ack quorum would be in too few zones");
        }
        zones >= min || !self.zones.refuses
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use geminga_log::{Log, LogOptions};
    use geminga_storage_node::{NodeOptions, StorageNode, serve};
    use geminga_wire_bookkeeper::Code;
    use tempfile::TempDir;
    use tokio::net::TcpListener;
    use tokio::sync::{oneshot, watch};

    use super::*;
    use crate::node::Failure;

    /// Ids and addresses.
    #[derive(Default)]
    struct Told(Mutex<Vec<(String, String)>>);

    impl Told {
        fn tell(&self, id: &str, address: &str) {
            *self.0.lock() = vec![(id.to_owned(), address.to_owned())];
        }
    }

    impl NodeDirectory for Told {
        fn nodes(&self) -> Vec<NodeInfo> {
            let info = |(id, address): &(String, String)| NodeInfo {
                id: id.clone(),
                address: address.clone(),
                place: Place { region: String::new(), zone: String::new() },
                is_alive: true,
                is_writable: true,
                is_draining: false,
            };
            self.0.lock().iter().map(info).collect()
        }
    }

    fn nodes(directory: &Arc<Told>) -> Nodes {
        let minute = Duration::from_secs(60);
        Nodes::new(directory.clone(), Budget::new(1 << 20), minute, ZonePolicy::default(), None)
    }

    /// A storage node that serves until it is dropped.
    struct Serving {
        address: String,
        log: Log,
        _folder: TempDir,
        _stop: watch::Sender<bool>,
    }

    impl Serving {
        /// `id`: who it says it is.
        async fn start(id: Option<&str>) -> Self {
            let folder = TempDir::new().expect("a temporary folder");
            let (log, _) = Log::open(folder.path(), LogOptions::default()).expect("an empty log");
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
            let address = listener.local_addr().expect("bound").to_string();
            let (stop, stopped) = watch::channel(false);
            let options = NodeOptions { id: id.map(str::to_owned), ..NodeOptions::new(64 << 20) };
            tokio::spawn(serve(listener, StorageNode::new(log.clone(), options), stopped));
            Self { address, log, _folder: folder, _stop: stop }
        }
    }

    impl Drop for Serving {
        fn drop(&mut self) {
            self.log.close();
        }
    }

    /// As when its machine has no power any more, or the network to it is gone: nothing ends the connection.
    #[tokio::test]
    async fn a_connection_on_which_nothing_comes_is_given_up() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let (node, directory) = (NodeId::from("node"), Arc::new(Told(Mutex::new(vec![("node".to_owned(), address)]))));
        let patience = Duration::from_millis(100);
        let nodes = Nodes::new(directory, Budget::new(1 << 20), patience, ZonePolicy::default(), None);
        let connection = nodes.connect(&node).await.expect("somebody listens");
        let _silent = listener.accept().await.expect("it was made");
        let (asked, answer) = tokio::sync::oneshot::channel();
        connection.read(7, 0, None, Box::new(move |result| drop(asked.send(result))));
        let failed = tokio::time::timeout(Duration::from_secs(10), answer).await.expect("it ends").expect("it is told");
        assert_eq!(failed, Err(Failure::TimedOut));
        // It is closed by who has told that.
        let closed = async {
            while !connection.is_closed() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), closed).await.expect("it is given up");
        assert!(nodes.connected(&node).is_none(), "the next call makes a new one");
    }

    #[tokio::test]
    async fn a_node_that_has_moved_is_connected_to_where_it_is() {
        let (node, directory) = (NodeId::from("node"), Arc::new(Told::default()));
        let nodes = nodes(&directory);
        let mut before: Option<Arc<NodeConnection>> = None;
        let mut serving = Vec::new();
        for _ in 0..2 {
            let there = Serving::start(None).await;
            directory.tell("node", &there.address);
            let connection = nodes.connect(&node).await.expect("somebody listens");
            assert_eq!(connection.address, there.address);
            assert!(Arc::ptr_eq(&connection, &nodes.connect(&node).await.expect("it is there")));
            assert!(before.replace(connection).is_none_or(|before| before.is_closed()));
            serving.push(there);
        }
        directory.tell("node", "elsewhere");
        nodes.leave_moved();
        assert!(nodes.connected(&node).is_none());
    }

    /// As of builds before, which do not say who they are.
    #[tokio::test]
    async fn a_connection_to_an_address_that_another_node_has_got_is_left() {
        let (node, directory) = (NodeId::from("one"), Arc::new(Told::default()));
        let nodes = nodes(&directory);
        let serving = Serving::start(None).await;
        directory.tell("one", &serving.address);
        assert!(nodes.connect(&node).await.is_some());
        directory.0.lock().clear();
        nodes.leave_moved();
        assert!(nodes.connected(&node).is_some(), "it is not known that it has gone");
        directory.tell("another", &serving.address);
        nodes.leave_moved();
        assert!(nodes.connected(&node).is_none());
        assert!(nodes.connect(&node).await.is_none());
    }

    #[tokio::test]
    async fn nothing_is_heard_from_a_node_that_says_it_is_another() {
        let directory = Arc::new(Told::default());
        let nodes = nodes(&directory);
        let serving = Serving::start(Some("another")).await;
        for (id, answer) in [("one", Failure::Unreachable), ("another", Failure::Code(Code::NoLedger))] {
            // The news that another node is there has not come.
            directory.tell(id, &serving.address);
            let connection = nodes.connect(&id.to_owned()).await.expect("somebody listens");
            let (sender, receiver) = oneshot::channel();
            connection.read(7, 0, None, Box::new(move |result| drop(sender.send(result))));
            assert_eq!(receiver.await.expect("an answer"), Err(answer), "{id}");
            assert_eq!(nodes.connected(&id.to_owned()).is_none(), connection.is_closed(), "{id}");
        }
    }
}
