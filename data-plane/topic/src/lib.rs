//! geminga-topic
