//! Settings and their layers: defaults, then the config file, the environment and the arguments.

mod broker;
pub mod data_dirs;
pub mod list;
pub mod listeners;
mod metadata;
mod process;
mod proxy;
mod serving;
mod standalone;
mod storage_node;
mod storage_tls;
pub mod units;

use std::fmt;
use std::path::Path;

use anyhow::{Context, bail};
use clap::ArgMatches;
use clap::parser::ValueSource;
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use broker::{BrokerOptions, TooFewZones};
pub use metadata::MetadataOptions;
pub use process::ProcessOptions;
pub use proxy::ProxyOptions;
pub use serving::ServingOptions;
pub use standalone::StandaloneOptions;
pub use storage_node::StorageNodeOptions;
pub use storage_tls::StorageTlsOptions;

/// Settings of a role.
pub trait Options: Default + Serialize {
    fn extract(layers: &Figment) -> anyhow::Result<Self>;
}

/// What may be given on the command line of a role, with the settings that it is a layer of.
pub trait Arguments: Serialize {
    type Options: Options;

    fn config(&self) -> Option<&Path>;
}

/// Settings with what the layers said. Displays as a config file with a comment about each setting's source.
#[derive(Debug)]
pub struct Resolved<O> {
    pub options: O,
    /// Complaints about keys that nobody knows.
    pub unknown_keys: Vec<String>,
    layers: Figment,
}

/// Puts the layers on top of each other. `matches` tells arguments from environment variables.
pub fn resolve<A: Arguments>(arguments: &A, matches: &ArgMatches) -> anyhow::Result<Resolved<A::Options>> {
    let defaults = dict(&A::Options::default())?;
    let known: Vec<String> = defaults.keys().cloned().collect();
    let mut layers = Figment::from(Layer::new("default", defaults));
    let mut unknown_keys = Vec::new();
    if let Some(path) = arguments.config() {
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
    let options = A::Options::extract(&layers)?;
    Ok(Resolved { options, unknown_keys, layers })
}

/// Those of the settings that `T` has. The error names the setting and the layer that has the bad value.
fn part<T: DeserializeOwned>(layers: &Figment) -> anyhow::Result<T> {
    layers.extract().map_err(|error| {
        let source = error.metadata.as_ref().map_or("the settings", |metadata| &metadata.name);
        anyhow::anyhow!("{source}: invalid '{}': {}", error.path.join("."), error.kind)
    })
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

/// The keys and values of settings.
pub fn dict<T: Serialize>(settings: &T) -> anyhow::Result<Dict> {
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

impl<O: Serialize> fmt::Display for Resolved<O> {
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
