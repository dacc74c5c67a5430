//! geminga-metadata
