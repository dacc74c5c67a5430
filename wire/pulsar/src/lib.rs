//! geminga-wire-pulsar
