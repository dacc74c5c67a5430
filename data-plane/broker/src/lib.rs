//! geminga-broker
