//! The socket of a connection: a TCP one, or one end of a local pair, at whose other end somebody stands between it and
//! the peer, as TLS does.

use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::BytesMut;
use tokio::net::{TcpStream, UnixStream};

#[derive(Clone)]
pub enum Socket {
    Tcp(Arc<TcpStream>),
    Local(Arc<UnixStream>),
}

impl From<Arc<TcpStream>> for Socket {
    fn from(stream: Arc<TcpStream>) -> Self {
        Self::Tcp(stream)
    }
}

impl From<UnixStream> for Socket {
    fn from(stream: UnixStream) -> Self {
        Self::Local(Arc::new(stream))
    }
}

impl Socket {
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Local(stream) => stream.readable().await,
        }
    }

    pub async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.writable().await,
            Self::Local(stream) => stream.writable().await,
        }
    }

    pub fn try_read_buf(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read_buf(buffer),
            Self::Local(stream) => stream.try_read_buf(buffer),
        }
    }

    pub fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write_vectored(slices),
            Self::Local(stream) => stream.try_write_vectored(slices),
        }
    }
}
