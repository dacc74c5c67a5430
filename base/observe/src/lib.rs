//! geminga-observe
