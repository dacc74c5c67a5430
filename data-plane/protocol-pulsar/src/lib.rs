//! geminga-protocol-pulsar
