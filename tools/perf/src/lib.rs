//! geminga-perf
