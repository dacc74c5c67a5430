//! How many deliveries and acknowledgements per second the dispatchers make, without any I/O around them:
//! `cargo run --release -p geminga-simulation --example measure_dispatch`.

use std::time::Instant;

use geminga_ledger::Cursor;
use geminga_simulation::dispatch_topic::SimTopic;
use geminga_topic::hash::sticky_key_hash;
use geminga_topic::{
    AckRequest, ConsumerSpec, DispatchWait, EntryMeta, IndividualAck, Subscription, SubscriptionOptions,
    SubscriptionType,
};

fn main() {
    for (sub_type, consumers) in [
        (SubscriptionType::Exclusive, 1),
        (SubscriptionType::Shared, 10),
        (SubscriptionType::KeyShared, 10),
        (SubscriptionType::KeyShared, 100),
    ] {
        let total = 1_000_000u64;
        let mut topic = SimTopic::new(1, 0, 1024);
        topic.append((0..total).map(|i| EntryMeta {
            sticky_key_hash: sticky_key_hash(&(i.wrapping_mul(0x9e37_79b9) % 10_000).to_le_bytes()),
            ..EntryMeta::default()
        }));
        let cursor = Cursor::new(topic.list().before_first());
        let mut sub = Subscription::new("measured", cursor, SubscriptionOptions::default());
        for key in 0..consumers {
            let spec = ConsumerSpec { key, name: format!("c{key}"), sub_type, ..Default::default() };
            sub.add_consumer(spec, 0).unwrap();
            sub.flow(key, 1000);
        }
        let (mut out, mut delivered) = (Vec::new(), 0);
        let mut acks: Vec<Vec<IndividualAck>> = vec![Vec::new(); consumers as usize];
        let started = Instant::now();
        while delivered < total {
            let wait = sub.dispatch(0, &mut topic, 1 << 20, &mut out);
            topic.serve(&wait);
            delivered += out.len() as u64;
            for delivery in out.drain(..) {
                let ack = IndividualAck { position: delivery.entry.position, ack_set: Vec::new(), batch_size: None };
                acks[delivery.consumer as usize].push(ack);
            }
            for (key, acks) in acks.iter_mut().enumerate() {
                if acks.len() >= 500 || matches!(wait, DispatchWait::CaughtUp | DispatchWait::NoPermits) {
                    sub.flow(key as u64, acks.len() as u32);
                    sub.ack(key as u64, AckRequest::Individual(std::mem::take(acks)), topic.list(), 0).unwrap();
                }
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{} with {consumers} consumers: {:.0} deliveries and acks per second",
            sub_type.name(),
            total as f64 / seconds
        );
    }
}
