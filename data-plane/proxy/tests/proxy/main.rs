//! A proxy on real sockets between clients and brokers that do what a test says.

mod authentication;
mod fixture;
mod http;
mod https;
mod pulsar;
mod tls;
