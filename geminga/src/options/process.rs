//! Settings of every role that serves.

use std::path::PathBuf;

use geminga_observe::logging::LogFormat;
use serde::{Deserialize, Serialize};

use super::units::Duration;

/// Field names are the keys of the config file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessOptions {
    pub ready_file: Option<PathBuf>,
    pub shutdown_timeout: Duration,
    pub log_level: String,
    pub log_format: LogFormat,
}

impl Default for ProcessOptions {
    fn default() -> Self {
        ProcessOptions {
            ready_file: None,
            shutdown_timeout: Duration::from_secs(30),
            log_level: "info".into(),
            log_format: LogFormat::Text,
        }
    }
}
