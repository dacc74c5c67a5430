//! What asks a node over its control port.

use std::sync::Arc;

use geminga_tls::{ClientTls, host_of};
use geminga_wire_control::storage_node_client::StorageNodeClient;
pub use geminga_wire_control::{
    DescribeRequest, LedgerHere, ListLedgersRequest, ScrubRequest, SetDrainingRequest, StatisticsRequest,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Error};

pub type Client = StorageNodeClient<Channel>;

/// Connects to the control port at `address` (`HOST:PORT`), with TLS if there is any, for whose host the node's certificate must be.
///
/// # Errors
/// The address is none, nobody is there, or one side does not trust the other.
pub async fn connect(address: &str, tls: Option<Arc<ClientTls>>) -> Result<Client, Error> {
    let endpoint = Endpoint::new(format!("http://{address}"))?;
    let Some(tls) = tls else { return endpoint.connect().await.map(Client::new) };
    let address: Arc<str> = address.into();
    let connector = tower::service_fn(move |_| {
        let (tls, address) = (tls.clone(), address.clone());
        async move {
            let stream = TcpStream::connect(&*address).await?;
            stream.set_nodelay(true)?;
            tls.connect(host_of(&address), stream).await.map(TokioIo::new)
        }
    });
    endpoint.connect_with_connector(connector).await.map(Client::new)
}
