//! GET_SCHEMA and GET_OR_CREATE_SCHEMA.

use std::sync::Arc;

use geminga_broker::{BrokerError, schema_version_bytes, schema_version_of};
use geminga_model::TopicName;
use geminga_wire_pulsar::{Command, proto};

use crate::connection::Connection;
use crate::error::server_error;

impl Connection {
    pub(crate) fn get_schema(self: &Arc<Self>, command: proto::CommandGetSchema) {
        self.spawn(|connection| async move {
            let request_id = command.request_id;
            let Some(_turn) = connection.turn_to_answer().await else { return };
            let response = match connection.find_schema(&command).await {
                Ok((schema, version)) => proto::CommandGetSchemaResponse {
                    request_id,
                    schema: Some(schema),
                    schema_version: Some(version.into()),
                    ..Default::default()
                },
                Err(error) => proto::CommandGetSchemaResponse {
                    request_id,
                    error_code: Some(server_error(&error) as i32),
                    error_message: Some(error.to_string()),
                    ..Default::default()
                },
            };
            connection.send(&Command::GetSchemaResponse(Box::new(response)));
        });
    }

    async fn find_schema(&self, command: &proto::CommandGetSchema) -> Result<(proto::Schema, Vec<u8>), BrokerError> {
        let name = parse(&command.topic)?;
        let wanted = command.schema_version.as_ref().filter(|version| !version.is_empty());
        let not_found = || BrokerError::TopicNotFound(format!("{name}, or its schema,"));
        let version = match wanted {
            None => None,
            Some(bytes) => Some(schema_version_of(bytes).ok_or_else(not_found)?),
        };
        let found = self.broker.schema(&name, version).await?.ok_or_else(not_found)?;
        let schema = proto::Schema {
            name: format!("{}/{}", name.namespace(), name.partitioned_base().local_name()),
            schema_data: found.schema.data.into(),
            r#type: found.schema.schema_type,
            properties: found
                .schema
                .properties
                .into_iter()
                .map(|(key, value)| proto::KeyValue { key, value })
                .collect(),
        };
        Ok((schema, schema_version_bytes(found.version)))
    }

    pub(crate) fn get_or_create_schema(self: &Arc<Self>, command: proto::CommandGetOrCreateSchema) {
        self.spawn(|connection| async move {
            let request_id = command.request_id;
            let response = match connection.find_or_create_schema(&command).await {
                Ok(version) => proto::CommandGetOrCreateSchemaResponse {
                    request_id,
                    schema_version: Some(version.into()),
                    ..Default::default()
                },
                Err(error) => proto::CommandGetOrCreateSchemaResponse {
                    request_id,
                    error_code: Some(server_error(&error) as i32),
                    error_message: Some(error.to_string()),
                    ..Default::default()
                },
            };
            connection.send(&Command::GetOrCreateSchemaResponse(Box::new(response)));
        });
    }

    async fn find_or_create_schema(&self, command: &proto::CommandGetOrCreateSchema) -> Result<Vec<u8>, BrokerError> {
        let name = parse(&command.topic)?;
        self.broker.topic(&name, false).await?;
        if command.schema.r#type == proto::schema::Type::None as i32 {
            // The Java client asks for each message of another schema than its producer's, bytes of dead letters among them.
            self.broker.check_no_schema(&name).await?;
            return Ok(Vec::new());
        }
        self.broker.add_schema(&name, &command.schema).await
    }
}

fn parse(topic: &str) -> Result<TopicName, BrokerError> {
    TopicName::parse(topic).map_err(|error| BrokerError::InvalidName(error.to_string()))
}
