//! Settings of `geminga metadata init`.

use figment::Figment;
use serde::{Deserialize, Serialize};

use super::{Options, part};

/// The effective settings of `geminga metadata init`. Field names are the keys of the config file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MetadataOptions {
    pub metadata_url: Option<String>,
    pub cluster: Option<String>,
}

impl Options for MetadataOptions {
    fn extract(layers: &Figment) -> anyhow::Result<Self> {
        part(layers)
    }
}
