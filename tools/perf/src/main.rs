//! `geminga perf` by itself.

use clap::Parser;

/// Load generator for the Pulsar protocol.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: geminga_perf::PerfCommand,
}

fn main() -> anyhow::Result<()> {
    geminga_perf::run(Cli::parse().command)
}
