//! Whether a new schema may follow those that a topic has, by Pulsar's strategies.

use geminga_metadata::SchemaRecord;
use geminga_wire_pulsar::proto::schema::Type;

use super::avro;
use super::{schema_type_name, schema_type_number};

/// Which of two schemas must be able to read the other's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    new_reads_old: bool,
    old_reads_new: bool,
    /// Every version, not only the latest.
    all: bool,
}

enum Strategy {
    Anything,
    Nothing,
    Rule(Rule),
}

fn strategy(name: &str) -> Strategy {
    let rule = |new_reads_old, old_reads_new, all| Strategy::Rule(Rule { new_reads_old, old_reads_new, all });
    match name {
        "ALWAYS_COMPATIBLE" => Strategy::Anything,
        "ALWAYS_INCOMPATIBLE" => Strategy::Nothing,
        "BACKWARD" => rule(true, false, false),
        "BACKWARD_TRANSITIVE" => rule(true, false, true),
        "FORWARD" => rule(false, true, false),
        "FORWARD_TRANSITIVE" => rule(false, true, true),
        "FULL_TRANSITIVE" => rule(true, true, true),
        _ => rule(true, true, false),
    }
}

/// Whether a producer may bring `wanted` where these versions are, oldest first.
pub(super) fn check_new(versions: &[&SchemaRecord], wanted: &SchemaRecord, name: &str) -> Result<(), String> {
    let Some(latest) = versions.last() else { return Ok(()) };
    let rule = match strategy(name) {
        Strategy::Anything => return Ok(()),
        Strategy::Nothing => return Err("the strategy is ALWAYS_INCOMPATIBLE".into()),
        Strategy::Rule(rule) => rule,
    };
    let checked = if rule.all { versions } else { std::slice::from_ref(latest) };
    checked.iter().try_for_each(|old| check(old, wanted, rule))
}

/// Whether a consumer with this schema may read the topic: it reads at least what comes now.
pub(super) fn check_consumer(versions: &[&SchemaRecord], wanted: &SchemaRecord, name: &str) -> Result<(), String> {
    match name {
        "BACKWARD_TRANSITIVE" | "FULL_TRANSITIVE" | "ALWAYS_COMPATIBLE" | "ALWAYS_INCOMPATIBLE" => {
            check_new(versions, wanted, name)
        }
        _ => check_new(versions, wanted, "BACKWARD"),
    }
}

fn check(old: &SchemaRecord, new: &SchemaRecord, rule: Rule) -> Result<(), String> {
    if old.schema_type != new.schema_type {
        return Err(format!(
            "exists schema type {}, new schema type {}",
            schema_type_name(old.schema_type),
            schema_type_name(new.schema_type)
        ));
    }
    check_definitions(new.schema_type, &old.data, &new.data, rule)?;
    check_root_messages(old, new)?;
    if new.schema_type != Type::KeyValue as i32 {
        return Ok(());
    }
    let (Some(old_parts), Some(new_parts)) = (key_value(old), key_value(new)) else { return Ok(()) };
    for ((part, (old_kind, old_data)), (new_kind, new_data)) in ["key", "value"].iter().zip(old_parts).zip(new_parts) {
        if old_kind != new_kind {
            return Err(format!("the schema type of the {part} has changed"));
        }
        check_definitions(new_kind, old_data, new_data, rule).map_err(|reason| format!("{part}: {reason}"))?;
    }
    Ok(())
}

fn check_definitions(schema_type: i32, old: &[u8], new: &[u8], rule: Rule) -> Result<(), String> {
    if !is_structure(schema_type) || old == new {
        return Ok(());
    }
    let (old, new) = match (avro::Schema::parse(old), avro::Schema::parse(new)) {
        (Some(old), Some(new)) => (old, new),
        // Definitions of JSON that are not Avro's are older than Pulsar's use of it: nothing is known about them.
        (None, _) => return Ok(()),
        (Some(_), None) => return Err("the definition is not an Avro schema".into()),
    };
    if rule.new_reads_old {
        new.check_reads(&old).map_err(|reason| format!("the new schema does not read the data so far: {reason}"))?;
    }
    if rule.old_reads_new {
        old.check_reads(&new).map_err(|reason| format!("the schema so far does not read new data: {reason}"))?;
    }
    Ok(())
}

/// Of Protobuf's own definitions, Pulsar compares the name of the root message.
fn check_root_messages(old: &SchemaRecord, new: &SchemaRecord) -> Result<(), String> {
    let (Some(old), Some(new)) = (root_message(old), root_message(new)) else { return Ok(()) };
    if old != new {
        return Err(format!("Protobuf root message change is not allowed: from '{old}' to '{new}'"));
    }
    Ok(())
}

fn root_message(schema: &SchemaRecord) -> Option<String> {
    if schema.schema_type != Type::ProtobufNative as i32 {
        return None;
    }
    let definition: serde_json::Value = serde_json::from_slice(&schema.data).ok()?;
    Some(definition.get("rootMessageTypeName")?.as_str()?.to_owned())
}

/// Types that are defined by an Avro schema in JSON.
pub(super) fn is_structure(schema_type: i32) -> bool {
    [Type::Avro, Type::Json, Type::Protobuf].iter().any(|kind| *kind as i32 == schema_type)
}

/// Types and definitions of a key-value schema's two parts.
fn key_value(schema: &SchemaRecord) -> Option<[(i32, &[u8]); 2]> {
    let (key, rest) = length_prefixed(&schema.data)?;
    let (value, _) = length_prefixed(rest)?;
    let kind = |part: &str| schema_type_number(schema.properties.get(&format!("{part}.schema.type"))?);
    Some([(kind("key")?, key), (kind("value")?, value)])
}

fn length_prefixed(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

#[cfg(test)]
mod tests {
    use super::super::tests::schema;
    use super::*;

    fn record(fields: &str) -> SchemaRecord {
        schema(Type::Avro, format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#).as_bytes())
    }

    const A: &str = r#"{"name":"a","type":"string"}"#;
    const B: &str = r#"{"name":"b","type":"int"}"#;
    const B_DEFAULT: &str = r#"{"name":"b","type":"int","default":0}"#;

    #[test]
    fn types_must_not_change_unless_anything_goes() {
        let (string, json) = (schema(Type::String, b""), schema(Type::Json, b"{}"));
        let reason = check_new(&[&string], &json, "FULL").unwrap_err();
        assert_eq!(reason, "exists schema type STRING, new schema type JSON");
        assert!(check_new(&[&string], &json, "ALWAYS_COMPATIBLE").is_ok());
        assert!(check_new(&[&json], &json, "ALWAYS_INCOMPATIBLE").is_err());
        assert!(check_new(&[], &json, "ALWAYS_INCOMPATIBLE").is_ok());
    }

    #[test]
    fn the_root_message_of_protobuf_keeps_its_name() {
        let native = |root| {
            let definition = format!(r#"{{"fileDescriptorSet":"Cg==","rootMessageTypeName":"{root}"}}"#);
            schema(Type::ProtobufNative, definition.as_bytes())
        };
        for strategy in ["BACKWARD", "FORWARD", "FULL", "FULL_TRANSITIVE"] {
            assert!(check_new(&[&native("p.A")], &native("p.A"), strategy).is_ok(), "{strategy}");
            assert!(check_new(&[&native("p.A")], &native("p.B"), strategy).is_err(), "{strategy}");
        }
        assert!(check_new(&[&native("p.A")], &native("p.B"), "ALWAYS_COMPATIBLE").is_ok());
        assert!(check_consumer(&[&native("p.A")], &native("p.B"), "FULL").is_err());
    }

    #[test]
    fn strategies_say_who_must_read_whom() {
        let (one, two, two_default) = (record(A), record(&format!("{A},{B}")), record(&format!("{A},{B_DEFAULT}")));
        // From one field to two, from two to one, to two of which one has a default.
        for (strategy, add, remove, add_default) in [
            ("BACKWARD", false, true, true),
            ("FORWARD", true, false, true),
            ("FULL", false, false, true),
            ("UNDEFINED", false, false, true),
        ] {
            assert_eq!(check_new(&[&one], &two, strategy).is_ok(), add, "{strategy}");
            assert_eq!(check_new(&[&two], &one, strategy).is_ok(), remove, "{strategy}");
            assert_eq!(check_new(&[&one], &two_default, strategy).is_ok(), add_default, "{strategy}");
        }
    }

    #[test]
    fn transitive_strategies_look_at_every_version() {
        let (first, second, third) = (record(A), record(&format!("{A},{B_DEFAULT}")), record(&format!("{A},{B}")));
        assert!(check_new(&[&first, &second], &third, "BACKWARD").is_ok());
        assert!(check_new(&[&first, &second], &third, "BACKWARD_TRANSITIVE").is_err());
        assert!(check_new(&[&first, &second], &third, "FORWARD_TRANSITIVE").is_ok());
        assert!(check_new(&[&first, &second], &third, "FULL_TRANSITIVE").is_err());
    }

    #[test]
    fn consumers_must_read_what_comes() {
        let (one, two) = (record(A), record(&format!("{A},{B}")));
        for strategy in ["BACKWARD", "FORWARD", "FORWARD_TRANSITIVE", "FULL"] {
            assert!(check_consumer(&[&one], &two, strategy).is_err(), "{strategy}");
            assert!(check_consumer(&[&two], &one, strategy).is_ok(), "{strategy}");
        }
    }

    #[test]
    fn keys_and_values_are_checked_each() {
        let pair = |key: &SchemaRecord, value: &SchemaRecord| {
            let mut data = Vec::new();
            for part in [key, value] {
                data.extend_from_slice(&(part.data.len() as u32).to_be_bytes());
                data.extend_from_slice(&part.data);
            }
            let mut pair = schema(Type::KeyValue, &data);
            for (name, part) in [("key", key), ("value", value)] {
                let kind = schema_type_name(part.schema_type).to_owned();
                pair.properties.insert(format!("{name}.schema.type"), kind);
            }
            pair
        };
        let (one, two) = (record(A), record(&format!("{A},{B}")));
        let string = schema(Type::String, b"");
        assert!(check_new(&[&pair(&string, &one)], &pair(&string, &one), "FULL").is_ok());
        assert!(check_new(&[&pair(&string, &one)], &pair(&string, &two), "BACKWARD").is_err());
        assert!(check_new(&[&pair(&string, &one)], &pair(&string, &two), "FORWARD").is_ok());
        assert!(check_new(&[&pair(&string, &one)], &pair(&one, &one), "FULL").is_err());
    }
}
