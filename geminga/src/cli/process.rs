use std::path::PathBuf;

use clap::Args;
use geminga_observe::logging::LogFormat;
use serde::Serialize;

use crate::options::units::Duration;

/// As [`super::StandaloneArguments`]: of every role that serves.
#[derive(Args, Serialize)]
pub struct ProcessArguments {
    /// Config file in TOML
    #[arg(long, value_name = "FILE", env = "GEMINGA_CONFIG", hide_env_values = true)]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// File to write, as JSON, the process id and all addresses to once all ports serve
    #[arg(long, value_name = "FILE", env = "GEMINGA_READY_FILE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    ready_file: Option<PathBuf>,

    /// How long a stop may take to finish what is in flight, of which a broker leaves a third for handing over, like 30s [default: 30s]
    #[arg(long, value_name = "TIME", env = "GEMINGA_SHUTDOWN_TIMEOUT", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    shutdown_timeout: Option<Duration>,

    /// Level of the log on stderr: error, warn, info, debug or trace, also per module [default: info]
    #[arg(long, value_name = "LEVEL", env = "GEMINGA_LOG_LEVEL", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_level: Option<String>,

    /// Form of the log: text or json [default: text]
    #[arg(long, value_name = "FORMAT", env = "GEMINGA_LOG_FORMAT", hide_env_values = true, value_parser = log_format)]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_format: Option<LogFormat>,
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("expected 'text' or 'json'".to_owned()),
    }
}
