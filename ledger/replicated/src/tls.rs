//! TLS towards storage nodes as BookKeeper's clients begin it: in the clear, with `START_TLS` of version 3, which the node answers.
//!
//! From then on the TLS session stands between the node and one end of a local pair of sockets, whose other end is used like any other
//! connection.

use std::fmt;
use std::io::{self, Error, ErrorKind};
use std::sync::Arc;

use bytes::BytesMut;
use geminga_flow::Socket;
use geminga_tls::{ClientTls, host_of};
use geminga_wire_bookkeeper::{Code, Request, WireVersion, decode_response, encode_request, take_frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpStream, UnixStream};

/// The answer to `START_TLS` has some twenty bytes; nothing of the node is trusted before.
const ANSWER_BYTES_MAX: usize = 1 << 10;
/// What is ciphered or deciphered at once.
const PIECE_BYTES: usize = 64 << 10;

/// Whom to trust, and what to show, when a connection to a storage node is made. Clones share it.
#[derive(Clone)]
pub struct NodeTls(Arc<ClientTls>);

impl fmt::Debug for NodeTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeTls")
    }
}

impl From<Arc<ClientTls>> for NodeTls {
    fn from(tls: Arc<ClientTls>) -> Self {
        Self(tls)
    }
}

impl NodeTls {
    /// Begins TLS on a connection that was just made to `address`, for whose host the node's certificate must be.
    ///
    /// # Errors
    /// The node does not want TLS, or shows a certificate that is not trusted, or does not take ours.
    pub(crate) async fn begin(&self, address: &str, mut stream: TcpStream) -> io::Result<Socket> {
        let mut request = BytesMut::new();
        encode_request(WireVersion::Protobuf, 0, &Request::StartTls, &mut request);
        stream.write_all(&request).await?;
        match answer(&mut stream).await? {
            Code::Ok => (),
            code => return Err(Error::other(format!("it does not begin TLS: {code:?}"))),
        }
        let mut session = self.0.connect_on(host_of(address), stream).await?;
        let (ours, mut theirs) = UnixStream::pair()?;
        let address = address.to_owned();
        // However it ends, whoever uses the connection sees its end. A node that does not take our certificate says so here.
        tokio::spawn(async move {
            let ended = copy_bidirectional_with_sizes(&mut session, &mut theirs, PIECE_BYTES, PIECE_BYTES).await;
            if let Err(error) = ended {
                tracing::info!(address, %error, "TLS with a storage node ended");
            }
        });
        Ok(Socket::from(ours))
    }
}

async fn answer(stream: &mut TcpStream) -> io::Result<Code> {
    let mut buffer = BytesMut::new();
    loop {
        if let Some(frame) = take_frame(&mut buffer, ANSWER_BYTES_MAX).map_err(Error::other)? {
            return match (buffer.is_empty(), decode_response(frame)) {
                (true, Ok(answer)) => Ok(answer.code),
                (false, _) => Err(Error::other("it sends more than was asked for, in the clear")),
                (_, Err(error)) => Err(Error::other(error)),
            };
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
}
