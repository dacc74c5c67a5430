//! Settings and their layers: defaults, then the config file, the environment and the arguments.

pub mod listeners;
pub mod units;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::ArgMatches;
use clap::parser::ValueSource;
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use geminga_observe::logging::LogFormat;
use serde::{Deserialize, Serialize};

use crate::cli::StandaloneArguments;
use listeners::Listeners;
use units::{ByteSize, Duration};

/// The effective settings of `geminga standalone`. Field names are the keys of the config file.
///
/// Keys that the file has and this does not are a warning and no error: otherwise a downgrade would refuse the file of
/// the newer version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StandaloneOptions {
    pub data_dir: PathBuf,
    pub pulsar_addr: String,
    pub http_addr: String,
    pub advertised_address: Option<String>,
    pub advertised_listeners: Listeners,
    pub ready_file: Option<PathBuf>,
    pub memory_limit: ByteSize,
    pub metadata_url: Option<String>,
    pub cluster: String,
    pub shutdown_timeout: Duration,
    pub delete_inactive_topics: bool,
    pub inactive_topics_after: Duration,
    pub delete_inactive_partitioned_topics: bool,
    pub auto_create_topics: bool,
    pub auto_create_partitions: u32,
    pub auto_create_subscriptions: bool,
    pub deduplication: bool,
    pub max_message_size: ByteSize,
    pub max_unacked_per_consumer: u32,
    pub max_unacked_per_subscription: u32,
    pub max_pending_acks: ByteSize,
    pub max_ledger_size: ByteSize,
    pub max_ledger_age: Duration,
    pub housekeeping_interval: Duration,
    pub liveness_timeout: Duration,
    pub metrics_per_topic: bool,
    pub log_level: String,
    pub log_format: LogFormat,
}

impl Default for StandaloneOptions {
    fn default() -> Self {
        StandaloneOptions {
            data_dir: "geminga-data".into(),
            pulsar_addr: "127.0.0.1:6650".into(),
            http_addr: "127.0.0.1:8080".into(),
            advertised_address: None,
            advertised_listeners: Listeners::default(),
            ready_file: None,
            memory_limit: ByteSize::mib(512),
            metadata_url: None,
            cluster: "standalone".into(),
            shutdown_timeout: Duration::from_secs(30),
            delete_inactive_topics: true,
            inactive_topics_after: Duration::from_secs(60),
            delete_inactive_partitioned_topics: false,
            auto_create_topics: true,
            auto_create_partitions: 0,
            auto_create_subscriptions: true,
            deduplication: false,
            max_message_size: ByteSize::mib(5),
            max_unacked_per_consumer: 50_000,
            max_unacked_per_subscription: 200_000,
            max_pending_acks: ByteSize::mib(64),
            max_ledger_size: ByteSize::mib(1024),
            max_ledger_age: Duration::from_secs(4 * 3600),
            housekeeping_interval: Duration::from_secs(10),
            liveness_timeout: Duration::from_secs(5),
            metrics_per_topic: false,
            log_level: "info".into(),
            log_format: LogFormat::Text,
        }
    }
}

/// Settings with what the layers said. Displays as a config file with a comment about each setting's source.
#[derive(Debug)]
pub struct Resolved {
    pub options: StandaloneOptions,
    /// Complaints about keys that nobody knows.
    pub unknown_keys: Vec<String>,
    layers: Figment,
}

/// Puts the layers on top of each other. `matches` tells arguments from environment variables.
pub fn resolve(arguments: &StandaloneArguments, matches: &ArgMatches) -> anyhow::Result<Resolved> {
    let defaults = dict(&StandaloneOptions::default())?;
    let known: Vec<String> = defaults.keys().cloned().collect();
    let mut layers = Figment::from(Layer::new("default", defaults));
    let mut unknown_keys = Vec::new();
    if let Some(path) = &arguments.config {
        let values = read_file(path)?;
        for key in values.keys().filter(|key| !known.contains(key)) {
            unknown_keys.push(format!("unknown key '{key}' in config file {} is ignored", path.display()));
        }
        layers = layers.merge(Layer::new(&format!("config file {}", path.display()), values));
    }
    let (mut environment, mut given) = (Vec::new(), Vec::new());
    for (key, value) in dict(arguments)? {
        match matches.value_source(&key) {
            Some(ValueSource::EnvVariable) => environment.push((key, value)),
            _ => given.push((key, value)),
        }
    }
    // One layer per setting, so that its source can name the variable or the argument.
    for (key, value) in environment {
        let name = format!("environment variable GEMINGA_{}", key.to_uppercase());
        layers = layers.merge(Layer::new(&name, Dict::from([(key, value)])));
    }
    for (key, value) in given {
        let name = format!("argument --{}", key.replace('_', "-"));
        layers = layers.merge(Layer::new(&name, Dict::from([(key, value)])));
    }
    let options = layers.extract().map_err(|error| invalid(&error))?;
    Ok(Resolved { options, unknown_keys, layers })
}

/// Names the setting and the layer that has the bad value.
fn invalid(error: &figment::Error) -> anyhow::Error {
    let source = error.metadata.as_ref().map_or("the settings", |metadata| &metadata.name);
    anyhow::anyhow!("{source}: invalid '{}': {}", error.path.join("."), error.kind)
}

fn read_file(path: &Path) -> anyhow::Result<Dict> {
    let context = || format!("config file {}", path.display());
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", context()))?;
    match toml::from_str::<Dict>(&text) {
        Ok(values) => Ok(values),
        Err(error) => {
            let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
            bail!("{} is damaged: line {line}: {}", context(), error.message())
        }
    }
}

fn dict<T: Serialize>(settings: &T) -> anyhow::Result<Dict> {
    match Value::serialize(settings)? {
        Value::Dict(_, dict) => Ok(dict),
        _ => bail!("bug: settings are not a table"),
    }
}

struct Layer {
    name: String,
    values: Dict,
}

impl Layer {
    fn new(name: &str, values: Dict) -> Self {
        Layer { name: name.to_owned(), values }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

impl fmt::Display for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = dict(&self.options).map_err(|_| fmt::Error)?;
        for (key, value) in settings {
            let source = self.layers.find_metadata(&key).map_or("default", |metadata| &metadata.name);
            match toml::Value::try_from(&value) {
                Ok(value) => writeln!(f, "{key} = {value} # {source}")?,
                // TOML has no null: the setting is not set.
                Err(_) => writeln!(f, "# {key} is not set")?,
            }
        }
        Ok(())
    }
}
