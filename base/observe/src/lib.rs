//! What every role of Geminga shows of itself: logs on stderr, and metrics in Prometheus' text format.
//!
//! [`logging`] sets up the log once per process. [`Metrics`] renders a page of registered metrics, of the process's
//! own and of lines that a component computes when asked (per topic, say, which would be too many to keep registered).

mod histogram;
pub mod logging;
mod machine;
mod metrics;
mod process;

pub use histogram::Histogram;
pub use machine::MachineCpu;
pub use metrics::{Labels, Metrics, family, sample, sample_histogram};
pub use process::ProcessStats;
