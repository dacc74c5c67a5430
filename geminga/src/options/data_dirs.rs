//! One or more folders, in a config file as a text or a list of texts.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// At least one folder, unless the settings say so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DataDirs {
    One(PathBuf),
    Several(Vec<PathBuf>),
}

impl DataDirs {
    pub fn paths(&self) -> Vec<&Path> {
        match self {
            Self::One(path) => vec![path],
            Self::Several(paths) => paths.iter().map(PathBuf::as_path).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_and_a_list_are_understood() {
        #[derive(Deserialize)]
        struct File {
            data_dir: DataDirs,
        }
        let paths = |text: &str| toml::from_str::<File>(text).expect("valid").data_dir.paths().len();
        assert_eq!((paths("data_dir = \"a\""), paths("data_dir = [\"a\", \"b\"]")), (1, 2));
        assert!(toml::from_str::<File>("data_dir = 3").is_err());
    }
}
