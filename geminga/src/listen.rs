use std::net::{SocketAddr, TcpListener, ToSocketAddrs};

use anyhow::Context;
use socket2::{Domain, Protocol, Socket, Type};

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 1024;

/// Binds and listens, ready to be handed to an async runtime. `option` names the setting in errors.
pub fn listen(address: &str, option: &str) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let context = || format!("cannot listen on {address} (--{option})");
    let resolved = address
        .to_socket_addrs()
        .and_then(|mut found| found.next().ok_or_else(|| std::io::Error::other("the host has no address")))
        .with_context(context)?;
    bind(resolved).with_context(context)
}

fn bind(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for connections of its predecessor that linger in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from(socket);
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}
