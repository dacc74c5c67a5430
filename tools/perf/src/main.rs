//! `geminga perf` by itself.

use std::process::ExitCode;

use clap::Parser;

/// Load generator for the Pulsar protocol.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: geminga_perf::PerfCommand,
}

fn main() -> ExitCode {
    match geminga_perf::run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
