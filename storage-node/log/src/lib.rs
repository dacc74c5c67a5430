//! geminga-log
