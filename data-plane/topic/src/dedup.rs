//! Message deduplication by producer name and sequence id, as Pulsar's `MessageDeduplication`.
