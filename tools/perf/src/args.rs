//! The command line.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use geminga_wire_pulsar::proto::command_subscribe::SubType;

#[derive(Debug, Clone, Subcommand)]
pub enum PerfCommand {
    /// Publish messages and measure the time to their receipts.
    Produce(ProduceArgs),
    /// Receive messages and measure their time since publication.
    Consume(ConsumeArgs),
}

#[derive(Debug, Clone, Args)]
pub struct ProduceArgs {
    /// Where the broker listens.
    #[arg(long, default_value = "pulsar://127.0.0.1:6650")]
    pub url: String,
    /// Short (in public/default) or full name; of a partitioned topic, each partition gets its producers.
    #[arg(long)]
    pub topic: String,
    /// Number of topics: with more than one, -0, -1, … is appended to the name.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub topics: u32,
    /// Producers per topic.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub producers: u32,
    /// Connections to each broker; producers are spread over them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: u32,
    /// Bytes of each message.
    #[arg(long, default_value_t = 1024)]
    pub size: usize,
    /// Messages per second over all producers; 0 is full speed.
    #[arg(long, default_value_t = 0.0)]
    pub rate: f64,
    /// How long to publish after the warm-up, as 20s or 500ms [default: 10s, unless --num-messages is given].
    #[arg(long, value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Stop after this many messages over all producers.
    #[arg(long)]
    pub num_messages: Option<u64>,
    /// Not measured time before --duration starts.
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    pub warmup: Duration,
    /// Messages in a batch; 0 or 1: each is sent alone.
    #[arg(long, default_value_t = 1000)]
    pub batching_max_messages: u32,
    /// Bytes in a batch.
    #[arg(long, default_value = "128KiB", value_parser = parse_bytes)]
    pub batching_max_bytes: u64,
    /// How long the first message of a batch waits for others while earlier ones have no receipt yet (at a fixed rate).
    #[arg(long, default_value = "1ms", value_parser = parse_duration)]
    pub batching_max_delay: Duration,
    /// Bound of what is in flight: messages of each producer (1000), or bytes of all of them together (64MiB)
    /// [default: 1000 messages unbatched, 64MiB batched].
    #[arg(long, value_parser = parse_outstanding)]
    pub max_outstanding: Option<Outstanding>,
    /// Number of partition keys, used in random order; a batch holds one key. 0: no keys.
    #[arg(long, default_value_t = 0)]
    pub keys: u32,
    /// How payloads are compressed; they are random bytes, so there is nothing to gain.
    #[arg(long, value_enum, default_value_t = Compression::None)]
    pub compression: Compression,
    /// Threads [default: one per connection, at most one per core].
    #[arg(long)]
    pub threads: Option<usize>,
    /// Print the result as JSON on the last line of stdout.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct ConsumeArgs {
    /// Where the broker listens.
    #[arg(long, default_value = "pulsar://127.0.0.1:6650")]
    pub url: String,
    /// Short (in public/default) or full name; of a partitioned topic, each partition gets its consumers.
    #[arg(long)]
    pub topic: String,
    /// Number of topics: with more than one, -0, -1, … is appended to the name.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub topics: u32,
    /// Name of the subscription, which is created if it is missing.
    #[arg(long, default_value = "perf")]
    pub subscription: String,
    /// Number of subscriptions, each of which gets all messages: with more than one, -0, -1, … is appended to the name.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub subscriptions: u32,
    /// How the consumers of a subscription share its messages.
    #[arg(long, value_enum, default_value_t = SubscriptionType::Exclusive)]
    pub subscription_type: SubscriptionType,
    /// Consumers per topic and subscription.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub consumers: u32,
    /// Connections to each broker; consumers are spread over them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: u32,
    /// Messages that a consumer lets the broker send ahead.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub receiver_queue: u32,
    /// Stop after this many messages over all consumers.
    #[arg(long)]
    pub num_messages: Option<u64>,
    /// Stop after this time, as 20s [default: 10s, unless --num-messages or --idle-timeout is given].
    #[arg(long, value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Stop when nothing came for this long.
    #[arg(long, value_parser = parse_duration)]
    pub idle_timeout: Option<Duration>,
    /// Not measured time after the first message.
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    pub warmup: Duration,
    /// How messages are acknowledged: each by itself, all up to the last one, or not at all.
    #[arg(long, value_enum, default_value_t = AckMode::Individual)]
    pub ack: AckMode,
    /// How long acknowledgements are gathered into one command: at most 1000, for 10,000 messages.
    #[arg(long, default_value = "100ms", value_parser = parse_duration)]
    pub ack_delay: Duration,
    /// Where a new subscription starts.
    #[arg(long, value_enum, default_value_t = Initial::Latest)]
    pub initial: Initial,
    /// Check the CRC32C of each entry; a mismatch counts as an error.
    #[arg(long)]
    pub verify_checksum: bool,
    /// Threads [default: one per connection, at most one per core].
    #[arg(long)]
    pub threads: Option<usize>,
    /// Print the result as JSON on the last line of stdout.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AckMode {
    Individual,
    Cumulative,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Initial {
    Earliest,
    Latest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum SubscriptionType {
    Exclusive,
    Shared,
    Failover,
    KeyShared,
}

impl From<SubscriptionType> for SubType {
    fn from(kind: SubscriptionType) -> Self {
        match kind {
            SubscriptionType::Exclusive => Self::Exclusive,
            SubscriptionType::Shared => Self::Shared,
            SubscriptionType::Failover => Self::Failover,
            SubscriptionType::KeyShared => Self::KeyShared,
        }
    }
}

/// What bounds messages in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outstanding {
    /// Of each producer.
    Messages(u64),
    /// Of all producers together.
    Bytes(u64),
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let scale = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("unit {unit:?} is none of us, ms, s, m, h")),
    };
    let number: f64 = number.parse().map_err(|_| "not a number with a unit, as 20s or 500ms".to_owned())?;
    Duration::try_from_secs_f64(number * scale).map_err(|e| e.to_string())
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text);
    let scale: u64 = match unit {
        "" | "B" => 1,
        "KiB" | "K" | "k" => 1 << 10,
        "MiB" | "M" | "m" => 1 << 20,
        "GiB" | "G" | "g" => 1 << 30,
        "KB" | "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => {
            return Err(format!("unit {unit:?} is none of B, KiB, MiB, GiB, kB, MB, GB"));
        }
    };
    let number: f64 = number.parse().map_err(|_| "not a number of bytes, as 64MiB".to_owned())?;
    Ok((number * scale as f64) as u64)
}

fn parse_outstanding(text: &str) -> Result<Outstanding, String> {
    let bound = if split_unit(text).1.is_empty() {
        Outstanding::Messages(text.parse().map_err(|_| "not a number".to_owned())?)
    } else {
        Outstanding::Bytes(parse_bytes(text)?)
    };
    match bound {
        Outstanding::Messages(0) | Outstanding::Bytes(0) => Err("nothing could be sent".to_owned()),
        bound => Ok(bound),
    }
}

/// The full names of the topics that `--topic` and `--topics` ask for.
pub(crate) fn topic_names(topic: &str, count: u32) -> Vec<String> {
    let full = if topic.contains("://") {
        topic.to_owned()
    } else if topic.contains('/') {
        format!("persistent://{topic}")
    } else {
        format!("persistent://public/default/{topic}")
    };
    numbered(&full, count)
}

/// `name`, or `name-0` to `name-(count - 1)`.
pub(crate) fn numbered(name: &str, count: u32) -> Vec<String> {
    if count == 1 {
        return vec![name.to_owned()];
    }
    (0..count).map(|i| format!("{name}-{i}")).collect()
}

/// How many threads drive `connections`.
pub(crate) fn thread_count(asked: Option<usize>, connections: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    asked.unwrap_or(cores).clamp(1, connections.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!(parse_duration("1.5ms"), Ok(Duration::from_micros(1500)));
        assert_eq!(parse_duration("20s"), Ok(Duration::from_secs(20)));
        assert!(parse_duration("20x").is_err() && parse_duration("s").is_err());
        assert_eq!(parse_outstanding("1000"), Ok(Outstanding::Messages(1000)));
        assert_eq!(parse_outstanding("64MiB"), Ok(Outstanding::Bytes(64 << 20)));
        assert!(parse_outstanding("0").is_err());
    }

    #[test]
    fn topics() {
        assert_eq!(topic_names("t", 1), ["persistent://public/default/t"]);
        assert_eq!(topic_names("a/b/t", 2), ["persistent://a/b/t-0", "persistent://a/b/t-1"]);
        assert_eq!(topic_names("non-persistent://a/b/t", 1), ["non-persistent://a/b/t"]);
    }
}
