//! The control path of a storage node: gRPC beside BookKeeper's protocol, for whoever looks after nodes. The service is
//! described in `wire/control/proto/StorageNode.proto`; grpc.health.v1 says that it is there. Where the node speaks TLS, this port speaks
//! nothing else, and asks for the same certificates.

pub mod client;
mod connections;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use geminga_storage_node::{LedgerSummary, StorageNode};
use geminga_tls::ServerTls;
use geminga_wire_control::storage_node_server::{StorageNode as Service, StorageNodeServer};
use geminga_wire_control::{
    DescribeRequest, Description, Directory, Draining, LedgerHere, ListLedgersRequest, ScrubProgress, ScrubRequest,
    SetDrainingRequest, Statistics, StatisticsRequest,
};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// What the node itself does not know about itself.
#[derive(Debug, Clone, Default)]
pub struct About {
    pub id: String,
    /// Of its data directories.
    pub revision: u64,
    pub address: String,
    pub zone: String,
    pub region: String,
    pub version: String,
}

/// Ledgers of a list that wait to be sent.
const LISTED_AHEAD: usize = 64;

struct Control {
    node: Arc<StorageNode>,
    about: About,
    started_at_ms: u64,
}

/// Serves until `shutdown` turns true, over TLS if there is any (which should offer `h2` by ALPN).
///
/// # Errors
/// The listener fails.
pub async fn serve(
    listener: TcpListener,
    node: Arc<StorageNode>,
    about: About,
    tls: Option<ServerTls>,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let started_at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<StorageNodeServer<Control>>().await;
    let stop = async move {
        // Fails only when the sender is gone, which then cannot ask for anything else either.
        let _ = shutdown.wait_for(|stop| *stop).await;
        health.set_not_serving::<StorageNodeServer<Control>>().await;
    };
    tonic::transport::Server::builder()
        .add_service(health_service)
        .add_service(StorageNodeServer::new(Control { node, about, started_at_ms }))
        .serve_with_incoming_shutdown(connections::incoming(listener, tls), stop)
        .await
}

fn on_the_wire(summary: LedgerSummary) -> LedgerHere {
    let (first_entry, last_entry) = summary.first_and_last.unzip();
    LedgerHere {
        ledger: summary.ledger,
        entries: summary.entries,
        first_entry,
        last_entry,
        fenced: summary.is_fenced,
        doubtful: summary.is_doubtful,
        bytes: summary.bytes,
        head: summary.head.to_vec(),
        unreadable: summary.unreadable.unwrap_or_default(),
    }
}

#[tonic::async_trait]
impl Service for Control {
    type ListLedgersStream = ReceiverStream<Result<LedgerHere, Status>>;

    async fn list_ledgers(
        &self,
        request: Request<ListLedgersRequest>,
    ) -> Result<Response<Self::ListLedgersStream>, Status> {
        let ListLedgersRequest { first, with_heads } = request.into_inner();
        let (sender, receiver) = mpsc::channel(LISTED_AHEAD);
        let node = self.node.clone();
        tokio::task::spawn_blocking(move || {
            let ledgers = node.ledgers().into_iter().filter(|ledger| *ledger >= first);
            for summary in ledgers.filter_map(|ledger| node.summary(ledger, with_heads)) {
                // Whoever has asked has gone.
                if sender.blocking_send(Ok(on_the_wire(summary))).is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<Description>, Status> {
        let About { id, revision, address, zone, region, version } = self.about.clone();
        Ok(Response::new(Description {
            id,
            revision,
            address,
            zone,
            region,
            version,
            started_at_ms: self.started_at_ms,
            registered: self.node.is_registered(),
            read_only: self.node.is_read_only(),
            draining: self.node.is_draining(),
        }))
    }

    async fn get_statistics(&self, _: Request<StatisticsRequest>) -> Result<Response<Statistics>, Status> {
        let directories = self.node.directories().all().iter().map(|directory| {
            let stats = directory.log.stats();
            Directory {
                path: directory.path.display().to_string(),
                total_bytes: stats.total_bytes,
                free_bytes: stats.free_bytes,
                live_bytes: stats.live_bytes,
                segments: stats.segments as u64,
                ledgers: stats.ledgers as u64,
                full: stats.full,
                failing: stats.read_only,
                holes: stats.holes as u64,
            }
        });
        let directories: Vec<Directory> = directories.collect();
        let done = self.node.done();
        Ok(Response::new(Statistics {
            ledgers: directories.iter().map(|directory| directory.ledgers).sum(),
            directories,
            added_bytes: done.added_bytes,
            read_bytes: done.read_bytes,
            failed_adds: done.failed_adds,
            failed_reads: done.failed_reads,
            fences: done.fences,
            limbo_below: self.node.directories().limbo_below(),
            settled_below: self.node.directories().settled_below(),
            unfinished_ledgers: self.node.directories().unfinished_count() as u64,
            damaged_entries: self.node.scrub_progress().damaged_entries,
        }))
    }

    async fn set_draining(&self, request: Request<SetDrainingRequest>) -> Result<Response<Draining>, Status> {
        let draining = request.into_inner().draining;
        self.node.set_draining(draining);
        Ok(Response::new(Draining { draining }))
    }

    async fn scrub(&self, request: Request<ScrubRequest>) -> Result<Response<ScrubProgress>, Status> {
        if request.into_inner().start && !self.node.scrub_now() {
            return Err(Status::failed_precondition("the scrub is turned off (--scrub-rate 0)"));
        }
        let progress = self.node.scrub_progress();
        Ok(Response::new(ScrubProgress {
            segments: progress.segments,
            segments_left: progress.segments_left,
            passes: progress.passes,
            last_pass_seconds: progress.last_pass_seconds,
            read_bytes: progress.read_bytes,
            damaged_entries_found: progress.damaged_entries_found,
            repaired_entries: progress.repaired_entries,
        }))
    }
}

#[cfg(test)]
mod listing {
    use geminga_log::{Append, Log, LogOptions};
    use geminga_storage_node::NodeOptions;
    use geminga_wire_control::storage_node_client::StorageNodeClient;

    use super::*;

    #[tokio::test]
    async fn a_list_says_what_is_here_from_a_ledger_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let options = LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() };
        let (log, _) = Log::open(folder.path(), options).expect("it opens");
        let node = StorageNode::new(log, NodeOptions::new(64 << 20));
        for (ledger, entry, size) in [(3, 0, 10), (5, 2, 5000), (5, 3, 1), (5, 7, 1), (9, 4, 1)] {
            let (sender, stored) = std::sync::mpsc::channel();
            let parts = [vec![7; size].into(), Vec::new().into(), Vec::new().into()];
            let entries = vec![Append { ledger, entry, parts, reserve: false }];
            let done = Box::new(move |result| sender.send(result).expect("it is waited for"));
            node.directories().append_to_replica(entries, [1; 20], false, done);
            stored.recv().expect("an answer").expect("stored");
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (stop, stopped) = watch::channel(false);
        let serving = tokio::spawn(serve(listener, node, About::default(), None, stopped));

        let mut client = StorageNodeClient::connect(url).await.expect("it serves");
        let mut found = Vec::new();
        let request = ListLedgersRequest { first: 4, with_heads: true };
        let mut list = client.list_ledgers(request).await.expect("answered").into_inner();
        while let Some(here) = list.message().await.expect("the list goes on") {
            assert!(here.bytes > 0 && here.unreadable.is_empty() && !here.fenced);
            found.push((here.ledger, here.entries, here.first_entry, here.last_entry, here.head.len()));
        }
        assert_eq!(found, [(5, 3, Some(2), Some(7), 4096), (9, 1, Some(4), Some(4), 1)]);
        drop((list, client));
        stop.send_replace(true);
        serving.await.expect("it ends").expect("in good order");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use geminga_log::{Log, LogOptions};
    use geminga_storage_node::{NodeOptions, ScrubOptions, Scrubber};
    use geminga_wire_control::storage_node_client::StorageNodeClient;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;

    use super::*;

    #[tokio::test]
    async fn a_client_sees_the_node_and_drains_and_scrubs_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let options = LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() };
        let (log, _) = Log::open(folder.path(), options).expect("it opens");
        let node = StorageNode::new(log, NodeOptions::new(64 << 20));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (stop, stopped) = watch::channel(false);
        let about = About { id: "n".to_owned(), zone: "z".to_owned(), ..About::default() };
        let serving = tokio::spawn(serve(listener, node.clone(), about, None, stopped));

        let mut client = StorageNodeClient::connect(url.clone()).await.expect("it serves");
        let described = client.describe(DescribeRequest {}).await.expect("answered").into_inner();
        assert_eq!((&described.id[..], &described.zone[..], described.read_only), ("n", "z", false));
        let draining = SetDrainingRequest { draining: true };
        assert!(client.set_draining(draining).await.expect("answered").into_inner().draining);
        let described = client.describe(DescribeRequest {}).await.expect("answered").into_inner();
        assert!(described.read_only && described.draining && node.is_read_only());
        let statistics = client.get_statistics(StatisticsRequest {}).await.expect("answered").into_inner();
        assert_eq!((statistics.directories.len(), statistics.ledgers), (1, 0));
        assert!(statistics.directories[0].total_bytes > 0);

        let start = ScrubRequest { start: true };
        assert_eq!(client.scrub(start).await.expect_err("it is off").code(), tonic::Code::FailedPrecondition);
        let options = ScrubOptions { bytes_per_second: 1 << 30, interval: Duration::from_secs(3600) };
        let scrubber = Scrubber::start(node.clone(), options).expect("a thread");
        let passes = async |client: &mut StorageNodeClient<_>| {
            client.scrub(ScrubRequest { start: false }).await.expect("answered").into_inner().passes
        };
        while passes(&mut client).await < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        client.scrub(start).await.expect("answered");
        while passes(&mut client).await < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }

        let channel = tonic::transport::Endpoint::new(url).expect("a URL").connect().await.expect("it serves");
        let mut health = HealthClient::new(channel);
        let service = "geminga.storage.v1.StorageNode".to_owned();
        let checked = health.check(HealthCheckRequest { service }).await.expect("answered").into_inner();
        assert_eq!(checked.status, 1);
        drop((client, health, scrubber));
        stop.send_replace(true);
        serving.await.expect("it ends").expect("in good order");
    }
}
