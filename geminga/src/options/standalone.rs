//! Settings of `geminga standalone`.

use std::path::PathBuf;

use figment::Figment;
use serde::{Deserialize, Serialize};

use super::{Options, ServingOptions, part};

/// The effective settings of `geminga standalone`. Field names are the keys of the config file.
///
/// Keys that the file has and this does not are a warning and no error: otherwise a downgrade would refuse the file of
/// the newer version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StandaloneOptions {
    pub data_dir: PathBuf,
    pub metadata_url: Option<String>,
    #[serde(flatten, skip_deserializing)]
    pub serving: ServingOptions,
}

impl Default for StandaloneOptions {
    fn default() -> Self {
        StandaloneOptions { data_dir: "geminga-data".into(), metadata_url: None, serving: ServingOptions::default() }
    }
}

impl Options for StandaloneOptions {
    fn extract(layers: &Figment) -> anyhow::Result<Self> {
        // Each by itself: what serde flattens has lost where it comes from, which errors are to say.
        Ok(Self { serving: ServingOptions::extract(layers)?, ..part(layers)? })
    }
}
