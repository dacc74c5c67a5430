//! Both commands against a small broker in memory.

mod broker;

use broker::Broker;
use clap::Parser;
use geminga_perf::{ConsumeArgs, PerfCommand, ProduceArgs, consume, produce};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: PerfCommand,
}

fn parse(broker: &Broker, line: &str) -> PerfCommand {
    let url = broker.url();
    let words = ["perf"].into_iter().chain(line.split_whitespace()).chain(["--url", &url]);
    Cli::parse_from(words).command
}

fn produce_args(broker: &Broker, line: &str) -> ProduceArgs {
    match parse(broker, &format!("produce {line}")) {
        PerfCommand::Produce(args) => args,
        PerfCommand::Consume(_) => unreachable!("the line says produce"),
    }
}

fn consume_args(broker: &Broker, line: &str) -> ConsumeArgs {
    match parse(broker, &format!("consume {line}")) {
        PerfCommand::Consume(args) => args,
        PerfCommand::Produce(_) => unreachable!("the line says consume"),
    }
}

#[test]
fn what_is_produced_is_consumed() {
    for (batching, producers, size) in [("--batching-max-messages 1", 3, 100), ("--batching-max-messages 50", 2, 1024)]
    {
        let broker = Broker::start();
        let line = format!(
            "--topic t --num-messages 1001 --producers {producers} --size {size} {batching} --connections 2 --keys 5"
        );
        let report = produce(produce_args(&broker, &line)).unwrap();
        assert_eq!((report.messages, report.errors, &report.failure), (1001, 0, &None));
        assert_eq!(report.bytes, 1001 * size);
        let line =
            "--topic t --initial earliest --num-messages 2002 --subscriptions 2 --receiver-queue 100 --verify-checksum";
        let report = consume(consume_args(&broker, line)).unwrap();
        assert_eq!((report.messages, report.errors, &report.failure), (2002, 0, &None));
        assert_eq!(report.bytes, 2002 * size);
    }
}

#[test]
fn a_fixed_rate_is_kept_and_measured_from_the_schedule() {
    let broker = Broker::start();
    let args = produce_args(
        &broker,
        "--topic t --rate 2000 --duration 500ms --size 10 --producers 2 --topics 2 --batching-max-messages 10",
    );
    let report = produce(args).unwrap();
    assert_eq!(report.messages, 1000, "{report:?}");
    assert!((0.45..5.0).contains(&report.elapsed_s), "{report:?}");
    let report = consume(consume_args(&broker, "--topic t-0 --initial earliest --num-messages 500")).unwrap();
    assert_eq!((report.messages, report.errors), (500, 0));
}

#[test]
fn send_errors_are_counted_and_told() {
    let broker = Broker::start();
    broker.refuse_every(10);
    let report = produce(produce_args(&broker, "--topic t --num-messages 100 --batching-max-messages 0")).unwrap();
    assert_eq!((report.messages, report.errors), (90, 10));
}

#[test]
fn an_idle_consumer_ends() {
    let broker = Broker::start();
    let report = consume(consume_args(&broker, "--topic t --idle-timeout 50ms")).unwrap();
    assert_eq!((report.messages, report.failure.as_deref()), (0, Some("no message was received")));
}

#[test]
fn a_lost_connection_ends_the_run_with_its_reason() {
    let broker = Broker::start();
    broker.hang_up_after(50);
    let report = produce(produce_args(&broker, "--topic t --duration 1m --batching-max-messages 0")).unwrap();
    let failure = report.failure.expect("a failure");
    assert!(failure.contains("connection"), "{failure}");
    assert!(report.messages < 100);
}

/// How fast the generator is without a real broker behind it says
/// `PERF_DURATION=3s cargo test --release -p geminga-perf every_shape -- --nocapture`.
#[test]
fn every_shape_of_load_is_sent() {
    let duration = std::env::var("PERF_DURATION").unwrap_or_else(|_| "200ms".into());
    for line in [
        "--size 1024 --batching-max-messages 1000",
        "--size 1024 --batching-max-messages 1000 --batching-max-bytes 1MiB",
        "--size 100 --batching-max-messages 1000",
        "--size 1024 --batching-max-messages 1",
        "--size 100 --batching-max-messages 1 --producers 50",
        "--size 100 --batching-max-messages 1 --rate 10000",
    ] {
        let broker = Broker::discarding();
        let report = produce(produce_args(&broker, &format!("--topic t --duration {duration} {line}"))).unwrap();
        assert!(report.messages > 0 && report.failure.is_none(), "{line}: {}", report.human("sent"));
        println!("{line}\n  {}", report.human("sent"));
    }
}
