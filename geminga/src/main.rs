//! The `geminga` command: one binary for every role and tool.
//!
//! Data goes to stdout, everything else to stderr. Exit codes: 0 success, 1 failure, 2 wrong usage.

mod admin;
mod bootstrap;
mod broker;
mod cli;
mod data_dir;
mod doctor;
mod http;
mod listen;
mod metadata;
mod options;
mod proxy;
#[cfg(test)]
mod readme;
mod ready;
mod restored;
mod server;
mod serving;
mod signals;
mod standalone;
mod storage_ctl;
mod storage_directories;
mod storage_node;
mod storage_repair;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use cli::{Cli, Command};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Few arenas and quick decay: buffers are taken on one thread and given back on another, and memory that has been given
/// back must leave the process before the budgets let others take it. (With mimalloc a fan-out to ten lagging consumers
/// kept 560 MiB resident; with this 200, and 20 afterwards.) Huge pages, because direct I/O from scattered 4 KiB pages
/// halves the throughput of a virtual disk.
#[allow(non_upper_case_globals)]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static malloc_conf: &[u8] = b"narenas:4,background_thread:true,dirty_decay_ms:500,muzzy_decay_ms:0,thp:always\0";

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let (_, matches) = matches.subcommand().expect("clap demands a subcommand");
    let outcome = match cli.command {
        Command::Standalone(arguments) => {
            options::resolve(&arguments, matches).and_then(|resolved| standalone::start(&resolved))
        }
        Command::Broker(arguments) => {
            options::resolve(&arguments, matches).and_then(|resolved| broker::start(&resolved))
        }
        Command::StorageNode(arguments) => {
            options::resolve(&arguments, matches).and_then(|resolved| storage_node::start(&resolved))
        }
        Command::Proxy(arguments) => options::resolve(&arguments, matches).and_then(|resolved| proxy::start(&resolved)),
        Command::Config(arguments) => options::resolve(&arguments, matches).map(|resolved| {
            print(&resolved.to_string());
            resolved.unknown_keys.iter().for_each(|key| eprintln!("geminga: warning: {key}"));
        }),
        Command::Perf(command) => geminga_perf::run(command),
        Command::Admin(command) => admin::run(&command),
        Command::Doctor(arguments) => return doctor::run(&arguments),
        Command::Metadata(command) => metadata::run(&command, matches),
        Command::StorageNodeCtl(command) => storage_ctl::run(&command),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "geminga", &mut script);
            print(&String::from_utf8_lossy(&script));
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("geminga: error: {}", one_line(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

/// Writes data to stdout; a reader that has gone wants no more of it.
fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
