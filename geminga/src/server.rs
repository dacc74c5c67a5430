//! What every role that serves does around its own work.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use geminga_observe::logging;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::sync::watch;

use crate::options::ProcessOptions;
use crate::signals;

/// Sets up logs and a runtime and runs the role, which ends when what it is given turns true.
pub fn run<F: Future<Output = anyhow::Result<()>>>(
    process: &ProcessOptions,
    complaints: &[String],
    role: impl FnOnce(watch::Receiver<bool>) -> F,
) -> anyhow::Result<()> {
    logging::init(&process.log_level, process.log_format)?;
    complaints.iter().for_each(|complaint| tracing::warn!("{complaint}"));
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("geminga")
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(async { role(signals::shutdown()?).await });
    // Blocking work that is stuck must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Every connection and every segment of the log takes descriptors; the usual soft limit of 1,024 is far below what the
/// process may have.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "could not raise the limit of open files");
    }
}

pub fn warn_of_wide_listening(addresses: &[SocketAddr]) {
    for address in addresses.iter().filter(|address| !address.ip().is_loopback()) {
        tracing::warn!(
            "listening on {address} without authentication: whoever reaches it can read and write everything"
        );
    }
}

/// Lets what is in flight take the time that it may.
pub async fn finish(process: &ProcessOptions, in_flight: impl Future<Output = ()>) {
    if tokio::time::timeout(process.shutdown_timeout.get(), in_flight).await.is_err() {
        tracing::warn!("gave up waiting for what was in flight");
    }
}
