//! geminga-model
