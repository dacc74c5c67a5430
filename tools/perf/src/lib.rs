//! `geminga perf`: a load generator for the Pulsar protocol that stays ahead of what it measures.
//!
//! One thread drives a share of the connections with `poll` and big vectored writes; payloads are built once and their
//! checksum is combined, not recomputed, so that a batch costs its header and a system call's share. A fixed rate is
//! kept without coordinated omission: each message has a scheduled time, and latency counts from it, however late the
//! message could be sent. Works against any Pulsar broker.
//!
//! The way of a message: [`produce`] sets up connections and producers, [`producer`] decides when which batch is due,
//! [`template`] writes it, [`link`] sends it, and its receipt comes back to [`producer`]. [`consume`] and [`consumer`]
//! are the other end; [`stats`] holds what both report.

mod args;
mod client;
mod clock;
mod consume;
mod consumer;
mod link;
mod produce;
mod producer;
mod stats;
mod template;

pub use args::{AckMode, Compression, ConsumeArgs, Initial, PerfCommand, ProduceArgs, SubscriptionType};
pub use consume::consume;
pub use produce::produce;
pub use stats::Report;

/// Runs a subcommand to its end, on threads of its own: progress on stderr, the result on stdout.
///
/// # Errors
/// If the broker can't be reached or refuses, if a connection is lost, or if not a single message got through.
pub fn run(command: PerfCommand) -> anyhow::Result<()> {
    let (report, verb, json) = match command {
        PerfCommand::Produce(args) => {
            let json = args.json;
            (produce(args)?, "produced", json)
        }
        PerfCommand::Consume(args) => {
            let json = args.json;
            (consume(args)?, "consumed", json)
        }
    };
    println!("{}", report.human(verb));
    if json {
        println!("{}", serde_json::to_string(&report)?);
    }
    match report.failure {
        Some(failure) => Err(anyhow::anyhow!(failure)),
        None => Ok(()),
    }
}
