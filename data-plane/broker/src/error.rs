//! What can go wrong between a client and its topic, in terms that every protocol can translate.

use geminga_ledger_client::LedgerError;

#[derive(Debug, Clone, thiserror::Error)]
pub enum BrokerError {
    #[error("{0}")]
    InvalidName(String),
    #[error("tenant {0} does not exist")]
    TenantNotFound(String),
    #[error("namespace {0} does not exist")]
    NamespaceNotFound(String),
    #[error("topic {0} does not exist")]
    TopicNotFound(String),
    #[error("subscription {subscription} of topic {topic} does not exist")]
    SubscriptionNotFound { topic: String, subscription: String },
    /// Something else that does not exist.
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    AlreadyExists(String),
    /// What is there does not allow the change.
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    ConsumerBusy(String),
    /// The hash ranges a consumer asks for are taken or make no sense.
    #[error("{0}")]
    ConsumerAssign(String),
    #[error("{0}")]
    ProducerBusy(String),
    #[error("{0}")]
    ProducerFenced(String),
    #[error("Topic was already terminated: {0}")]
    TopicTerminated(String),
    /// The topic is being loaded, closed or deleted: the client should look it up again.
    #[error("{0}")]
    ServiceNotReady(String),
    #[error("{0}")]
    NotAllowed(String),
    #[error("{0}")]
    BadRequest(String),
    #[error("{0}")]
    PreconditionFailed(String),
    #[error("{0}")]
    IncompatibleSchema(String),
    #[error("message checksum does not match its content")]
    Checksum,
    /// `hold`: the client is to try again by itself.
    #[error("{message}")]
    QuotaExceeded { message: String, hold: bool },
    #[error("storage could not take the message: {0}")]
    Persistence(#[from] LedgerError),
    #[error("metadata: {0}")]
    Metadata(String),
    #[error("{0} is not supported")]
    Unsupported(String),
}

impl From<geminga_metadata::MetadataError> for BrokerError {
    fn from(error: geminga_metadata::MetadataError) -> Self {
        match error {
            geminga_metadata::MetadataError::OwnershipLost { .. } => Self::ServiceNotReady(error.to_string()),
            other => Self::Metadata(other.to_string()),
        }
    }
}

pub type Result<T> = std::result::Result<T, BrokerError>;
