//! Answers that the proxy gives by itself: to requests that no broker answers, and to a CONNECT that leads nowhere.

use geminga_wire_pulsar::proto::{self, ServerError};
use geminga_wire_pulsar::{Command, NO_REQUEST, proto::command_lookup_topic_response as lookup};

use crate::frame::Frame;

/// Why something was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub code: ServerError,
    pub message: String,
}

impl Refusal {
    /// The client tries again after a while.
    pub fn not_ready(message: impl Into<String>) -> Self {
        Self { code: ServerError::ServiceNotReady, message: message.into() }
    }

    pub fn not_allowed(message: impl Into<String>) -> Self {
        Self { code: ServerError::NotAllowedError, message: message.into() }
    }

    /// What a broker has said.
    pub fn of(error: &proto::CommandError) -> Self {
        Self { code: error.error(), message: error.message.clone() }
    }

    /// The end of a connection that has not said hello yet.
    pub fn greeting(&self) -> Frame {
        self.error(NO_REQUEST)
    }

    pub fn error(&self, request_id: u64) -> Frame {
        let (error, message) = (self.code as i32, self.message.clone());
        Frame::new(proto::CommandError { request_id, error, message })
    }

    /// The answer to a request, in the form that belongs to it.
    pub fn answer(&self, request: &Command, request_id: u64) -> Frame {
        let error = Some(self.code as i32);
        let message = Some(self.message.clone());
        match request {
            Command::Lookup(_) => Frame::new(proto::CommandLookupTopicResponse {
                response: Some(lookup::LookupType::Failed as i32),
                request_id,
                error,
                message,
                ..Default::default()
            }),
            Command::PartitionedMetadata(_) => Frame::new(proto::CommandPartitionedTopicMetadataResponse {
                response: Some(proto::command_partitioned_topic_metadata_response::LookupType::Failed as i32),
                request_id,
                error,
                message,
                ..Default::default()
            }),
            Command::GetSchema(_) => Frame::new(proto::CommandGetSchemaResponse {
                request_id,
                error_code: error,
                error_message: message,
                ..Default::default()
            }),
            Command::GetOrCreateSchema(_) => Frame::new(proto::CommandGetOrCreateSchemaResponse {
                request_id,
                error_code: error,
                error_message: message,
                ..Default::default()
            }),
            _ => self.error(request_id),
        }
    }
}
