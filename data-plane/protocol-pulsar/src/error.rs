//! Errors of a connection, and how a broker's errors look to a Pulsar client.

use geminga_broker::BrokerError;
use geminga_wire_pulsar::proto::ServerError;
use geminga_wire_pulsar::{Command, FrameError, proto};

/// Why a connection is given up.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("malformed frame: {0}")]
    Frame(#[from] FrameError),
    #[error("{0} before CONNECT")]
    NotConnected(&'static str),
    #[error("no CONNECT in time")]
    Handshake,
    #[error("the broker is shutting down")]
    ShuttingDown,
    #[error("a frame of {0} bytes does not end, and others wait for its room")]
    SlowFrame(u64),
    #[error("no sign of life")]
    Silent,
    #[error("the client does not read: {0} bytes wait")]
    NotReading(usize),
    #[error(
        "message {sequence_id} of producer {producer_id} passes others that the client has to send again, once more"
    )]
    Passing { producer_id: u64, sequence_id: u64 },
    #[error("{0}")]
    Refused(String),
}

/// The code of `PulsarApi.proto` for an error.
pub(crate) fn server_error(error: &BrokerError) -> ServerError {
    match error {
        BrokerError::InvalidName(_) => ServerError::InvalidTopicName,
        BrokerError::TenantNotFound(_) | BrokerError::NamespaceNotFound(_) | BrokerError::TopicNotFound(_) => {
            ServerError::TopicNotFound
        }
        BrokerError::SubscriptionNotFound { .. } => ServerError::SubscriptionNotFound,
        BrokerError::AlreadyExists(_) | BrokerError::BadRequest(_) => ServerError::NotAllowedError,
        BrokerError::ConsumerBusy(_) => ServerError::ConsumerBusy,
        BrokerError::ConsumerAssign(_) => ServerError::ConsumerAssignError,
        BrokerError::ProducerBusy(_) => ServerError::ProducerBusy,
        BrokerError::ProducerFenced(_) => ServerError::ProducerFenced,
        BrokerError::TopicTerminated(_) => ServerError::TopicTerminatedError,
        BrokerError::ServiceNotReady(_) => ServerError::ServiceNotReady,
        BrokerError::NotAllowed(_) | BrokerError::Unsupported(_) => ServerError::NotAllowedError,
        BrokerError::PreconditionFailed(_) | BrokerError::NotFound(_) | BrokerError::Conflict(_) => {
            ServerError::MetadataError
        }
        BrokerError::IncompatibleSchema(_) => ServerError::IncompatibleSchema,
        BrokerError::Checksum => ServerError::ChecksumError,
        BrokerError::QuotaExceeded { hold: true, .. } => ServerError::ProducerBlockedQuotaExceededError,
        BrokerError::QuotaExceeded { hold: false, .. } => ServerError::ProducerBlockedQuotaExceededException,
        BrokerError::Persistence(_) => ServerError::PersistenceError,
        BrokerError::Metadata(_) => ServerError::MetadataError,
    }
}

/// An ERROR answer to a request.
pub(crate) fn error_command(request_id: u64, error: &BrokerError) -> Command {
    Command::from(proto::CommandError { request_id, error: server_error(error) as i32, message: error.to_string() })
}
