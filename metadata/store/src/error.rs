use geminga_model::{ErrorKind, InvalidName};

/// What can go wrong with metadata. A read that fails is always an error, never an absent record.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MetadataError {
    /// A condition of a commit did not hold; nothing of the commit was applied.
    #[error("metadata record '{key}' was changed by somebody else")]
    Conflict { key: String },
    #[error("{what} not found: {name}")]
    NotFound { what: &'static str, name: String },
    #[error("{what} already exists: {name}")]
    AlreadyExists { what: &'static str, name: String },
    #[error("{0}")]
    Invalid(String),
    /// Somebody else holds the lease, or it has a newer epoch.
    #[error("lease '{name}' is lost")]
    LeaseLost { name: String },
    /// What the records belong to has another owner by now; nothing of the commit was applied.
    #[error("'{name}' has another owner by now")]
    OwnershipLost { name: String },
    #[error("metadata is unavailable: {0}")]
    Unavailable(String),
    /// The store stopped answering while a commit or an allocation was under way: all of it was applied, or nothing, or
    /// it is about to be. The same again could apply it twice, and a read may come before it; a commit that expects the
    /// version that was read is safe, as it is decided after it.
    #[error("metadata is unavailable, and what was asked for may have been done: {0}")]
    OutcomeUnknown(String),
    #[error("metadata is damaged: {subject}: {reason}")]
    Corrupt { subject: String, reason: String },
    /// Written by a newer Geminga than this one.
    #[error("metadata is from a newer version: {0}")]
    Newer(String),
    #[error("bug in metadata: {0}")]
    Bug(String),
}

impl MetadataError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            MetadataError::Conflict { .. } => ErrorKind::Retry,
            MetadataError::NotFound { .. } => ErrorKind::NotFound,
            MetadataError::AlreadyExists { .. } => ErrorKind::AlreadyExists,
            MetadataError::Invalid(_) => ErrorKind::Invalid,
            MetadataError::LeaseLost { .. } | MetadataError::OwnershipLost { .. } => ErrorKind::Fenced,
            MetadataError::Unavailable(_) | MetadataError::OutcomeUnknown(_) => ErrorKind::Unavailable,
            MetadataError::Corrupt { .. } | MetadataError::Newer(_) => ErrorKind::Corrupt,
            MetadataError::Bug(_) => ErrorKind::Bug,
        }
    }

    pub fn is_conflict(&self) -> bool {
        matches!(self, MetadataError::Conflict { .. })
    }

    /// Somebody else has written what only its owner writes, or owns it.
    pub fn is_deposed(&self) -> bool {
        self.is_conflict() || matches!(self, MetadataError::OwnershipLost { .. })
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, MetadataError::NotFound { .. })
    }
}

impl From<InvalidName> for MetadataError {
    fn from(error: InvalidName) -> Self {
        MetadataError::Invalid(error.to_string())
    }
}
