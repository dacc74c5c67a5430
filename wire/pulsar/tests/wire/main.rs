//! The codecs against bytes of Apache Pulsar, against prost, and against nonsense.

mod generated;
mod golden;
mod nonsense;
mod round_trips;
