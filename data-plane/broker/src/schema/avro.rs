//! Avro schemas, as far as it takes to say whether data written with one can be read with another.
//!
//! The rules are those of Avro's schema resolution: numbers may widen, strings and bytes are exchangeable, a record's
//! reader needs a default for each field that the writer does not have, and a union fits if what may be written fits.

use std::collections::HashMap;

use rustc_hash::FxHashSet;
use serde_json::{Map, Value};

/// Deeper nesting than any schema needs.
const DEPTH_MAX: usize = 64;

#[derive(Debug, Clone)]
enum Type {
    Primitive(Primitive),
    Array(Box<Type>),
    Map(Box<Type>),
    Union(Vec<Type>),
    /// A record, an enumeration or a fixed, by its place in [`Schema::named`].
    Named(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Primitive {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
}

#[derive(Debug, Clone)]
struct Named {
    full_name: String,
    aliases: Vec<String>,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Record(Vec<Field>),
    Enum,
    Fixed(u64),
}

#[derive(Debug, Clone)]
struct Field {
    name: String,
    aliases: Vec<String>,
    of: Type,
    has_default: bool,
}

/// A schema that could be parsed.
#[derive(Debug, Clone)]
pub struct Schema {
    root: Type,
    named: Vec<Named>,
}

impl Schema {
    /// `None` for what is no Avro schema.
    pub fn parse(definition: &[u8]) -> Option<Self> {
        let definition: Value = serde_json::from_slice(definition).ok()?;
        let mut parser = Parser::default();
        let root = parser.parse(&definition, "", 0)?;
        Some(Self { root, named: parser.named })
    }

    /// Whether data written with `writer` can be read with this schema; what stands against it otherwise.
    pub fn check_reads(&self, writer: &Schema) -> Result<(), String> {
        Resolution { reader: self, writer, seen: FxHashSet::default() }.resolve(&self.root, &writer.root)
    }
}

#[derive(Default)]
struct Parser {
    named: Vec<Named>,
    by_name: HashMap<String, usize>,
}

impl Parser {
    fn parse(&mut self, value: &Value, namespace: &str, depth: usize) -> Option<Type> {
        if depth > DEPTH_MAX {
            return None;
        }
        match value {
            Value::String(name) => self.by_name(name, namespace),
            Value::Array(branches) => {
                let branches = branches.iter().map(|branch| self.parse(branch, namespace, depth + 1));
                Some(Type::Union(branches.collect::<Option<_>>()?))
            }
            Value::Object(fields) => self.parse_object(fields, namespace, depth),
            _ => None,
        }
    }

    fn by_name(&self, name: &str, namespace: &str) -> Option<Type> {
        if let Some(primitive) = primitive(name) {
            return Some(Type::Primitive(primitive));
        }
        let known = self.by_name.get(&full_name(name, namespace)).or_else(|| self.by_name.get(name))?;
        Some(Type::Named(*known))
    }

    fn parse_object(&mut self, object: &Map<String, Value>, namespace: &str, depth: usize) -> Option<Type> {
        let inner = |parser: &mut Self, key: &str| parser.parse(object.get(key)?, namespace, depth + 1).map(Box::new);
        match object.get("type")? {
            Value::String(kind) => match kind.as_str() {
                "array" => Some(Type::Array(inner(self, "items")?)),
                "map" => Some(Type::Map(inner(self, "values")?)),
                "record" | "error" | "enum" | "fixed" => self.parse_named(object, kind, namespace, depth),
                name => self.by_name(name, namespace),
            },
            nested => self.parse(nested, namespace, depth + 1),
        }
    }

    fn parse_named(&mut self, object: &Map<String, Value>, kind: &str, outer: &str, depth: usize) -> Option<Type> {
        let name = object.get("name")?.as_str()?;
        if !is_name(name.rsplit('.').next().unwrap_or(name)) {
            return None;
        }
        let namespace = object.get("namespace").and_then(Value::as_str).unwrap_or(outer);
        let full = full_name(name, namespace);
        let namespace = full.rsplit_once('.').map_or("", |(namespace, _)| namespace).to_owned();
        let aliases = aliases(object).iter().map(|alias| full_name(alias, &namespace)).collect();
        let index = self.named.len();
        if self.by_name.insert(full.clone(), index).is_some() {
            return None;
        }
        // Known before its fields are, which may be of this type.
        self.named.push(Named { full_name: full, aliases, kind: Kind::Enum });
        self.named[index].kind = match kind {
            "enum" => {
                object.get("symbols")?.as_array()?;
                Kind::Enum
            }
            "fixed" => Kind::Fixed(object.get("size")?.as_u64()?),
            _ => {
                let fields = object.get("fields")?.as_array()?.iter();
                let fields: Vec<Field> =
                    fields.map(|field| self.parse_field(field, &namespace, depth)).collect::<Option<_>>()?;
                let mut names = FxHashSet::default();
                if !fields.iter().all(|field| names.insert(field.name.as_str())) {
                    return None;
                }
                Kind::Record(fields)
            }
        };
        Some(Type::Named(index))
    }

    fn parse_field(&mut self, field: &Value, namespace: &str, depth: usize) -> Option<Field> {
        let object = field.as_object()?;
        Some(Field {
            name: object.get("name")?.as_str().filter(|name| is_name(name))?.to_owned(),
            aliases: aliases(object),
            of: self.parse(object.get("type")?, namespace, depth + 1)?,
            has_default: object.contains_key("default"),
        })
    }
}

fn primitive(name: &str) -> Option<Primitive> {
    Some(match name {
        "null" => Primitive::Null,
        "boolean" => Primitive::Boolean,
        "int" => Primitive::Int,
        "long" => Primitive::Long,
        "float" => Primitive::Float,
        "double" => Primitive::Double,
        "bytes" => Primitive::Bytes,
        "string" => Primitive::String,
        _ => return None,
    })
}

/// What Avro allows for a record or a field: a letter or underscore, then also digits.
fn is_name(name: &str) -> bool {
    let letter = |c: char| c == '_' || c.is_alphabetic();
    name.starts_with(letter) && name.chars().all(|c| letter(c) || c.is_numeric())
}

fn full_name(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() { name.to_owned() } else { format!("{namespace}.{name}") }
}

fn aliases(object: &Map<String, Value>) -> Vec<String> {
    let aliases = object.get("aliases").and_then(Value::as_array).into_iter().flatten();
    aliases.filter_map(|alias| alias.as_str().map(str::to_owned)).collect()
}

struct Resolution<'a> {
    reader: &'a Schema,
    writer: &'a Schema,
    /// Pairs of named types that are being compared: where they meet again, they fit.
    seen: FxHashSet<(usize, usize)>,
}

impl<'a> Resolution<'a> {
    fn resolve(&mut self, reader: &'a Type, writer: &'a Type) -> Result<(), String> {
        match (reader, writer) {
            (_, Type::Union(branches)) => branches.iter().try_for_each(|branch| self.resolve(reader, branch)),
            (Type::Union(branches), _) => {
                let fits = branches.iter().any(|branch| self.resolve(branch, writer).is_ok());
                if fits { Ok(()) } else { Err(format!("no branch of the union reads {}", self.name(writer))) }
            }
            (Type::Primitive(reader), Type::Primitive(writer)) if widens(*writer, *reader) => Ok(()),
            (Type::Array(reader), Type::Array(writer)) | (Type::Map(reader), Type::Map(writer)) => {
                self.resolve(reader, writer)
            }
            (Type::Named(reader), Type::Named(writer)) => self.resolve_named(*reader, *writer),
            _ => Err(format!("{} cannot be read as another type", self.name(writer))),
        }
    }

    fn resolve_named(&mut self, reader_index: usize, writer_index: usize) -> Result<(), String> {
        let (reader, writer) = (&self.reader.named[reader_index], &self.writer.named[writer_index]);
        let same_name = reader.full_name == writer.full_name || reader.aliases.contains(&writer.full_name);
        let renamed = || format!("{} is not {}", writer.full_name, reader.full_name);
        match (&reader.kind, &writer.kind) {
            (Kind::Record(reader_fields), Kind::Record(writer_fields)) => {
                if !self.seen.insert((reader_index, writer_index)) {
                    return Ok(());
                }
                let result = self.resolve_fields(reader_fields, writer_fields);
                self.seen.remove(&(reader_index, writer_index));
                result
            }
            (Kind::Enum, Kind::Enum) if same_name => Ok(()),
            (Kind::Fixed(reader_size), Kind::Fixed(writer_size)) if same_name && reader_size == writer_size => Ok(()),
            _ => Err(renamed()),
        }
    }

    fn resolve_fields(&mut self, reader: &'a [Field], writer: &'a [Field]) -> Result<(), String> {
        for field in reader {
            let written = writer.iter().find(|known| known.name == field.name);
            let written = written.or_else(|| writer.iter().find(|known| field.aliases.contains(&known.name)));
            match written {
                Some(written) => {
                    self.resolve(&field.of, &written.of).map_err(|reason| format!("field {}: {reason}", field.name))?;
                }
                None if field.has_default => {}
                None => return Err(format!("field {} is missing and has no default", field.name)),
            }
        }
        Ok(())
    }

    fn name(&self, writer: &Type) -> String {
        match writer {
            Type::Primitive(primitive) => format!("{primitive:?}").to_lowercase(),
            Type::Array(_) => "an array".into(),
            Type::Map(_) => "a map".into(),
            Type::Union(_) => "a union".into(),
            Type::Named(index) => self.writer.named[*index].full_name.clone(),
        }
    }
}

/// Whether what was written as one can be read as the other.
fn widens(writer: Primitive, reader: Primitive) -> bool {
    use Primitive::{Bytes, Double, Float, Int, Long, String};
    writer == reader
        || matches!(
            (writer, reader),
            (Int, Long | Float | Double) | (Long, Float | Double) | (Float, Double) | (String, Bytes) | (Bytes, String)
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Schema {
        Schema::parse(text.as_bytes()).unwrap_or_else(|| panic!("{text}"))
    }

    fn record(fields: &str) -> Schema {
        parse(&format!(r#"{{"type":"record","name":"R","namespace":"n","fields":[{fields}]}}"#))
    }

    fn reads(reader: &Schema, writer: &Schema) -> bool {
        reader.check_reads(writer).is_ok()
    }

    #[test]
    fn what_is_no_schema_is_not_parsed() {
        for bad in
            ["", "{}", "junk", r#""unknown""#, r#"{"type":"record","name":"R"}"#, r#"{"type":"fixed","name":"F"}"#]
        {
            assert!(Schema::parse(bad.as_bytes()).is_none(), "{bad}");
        }
        let deep = "[".repeat(200) + &"]".repeat(200);
        assert!(Schema::parse(deep.as_bytes()).is_none());
        parse(r#"{"type":{"type":"bytes","logicalType":"decimal","precision":4}}"#);
    }

    #[test]
    fn readers_need_defaults_for_what_was_not_written() {
        let one = record(r#"{"name":"a","type":"string"}"#);
        let optional = record(r#"{"name":"a","type":"string"},{"name":"b","type":["null","int"],"default":null}"#);
        let required = record(r#"{"name":"a","type":"string"},{"name":"b","type":"int"}"#);
        assert!(reads(&optional, &one) && reads(&one, &optional));
        assert!(!reads(&required, &one) && reads(&one, &required));
        assert_eq!(required.check_reads(&one).unwrap_err(), "field b is missing and has no default");
        let renamed = record(r#"{"name":"c","aliases":["a"],"type":"string"}"#);
        assert!(reads(&renamed, &one) && !reads(&one, &renamed));
    }

    #[test]
    fn numbers_widen_and_strings_are_bytes() {
        for (reader, writer, fits) in [
            ("long", "int", true),
            ("int", "long", false),
            ("double", "float", true),
            ("string", "bytes", true),
            ("boolean", "int", false),
        ] {
            let of = |kind: &str| record(&format!(r#"{{"name":"a","type":"{kind}"}}"#));
            assert_eq!(reads(&of(reader), &of(writer)), fits, "{reader} {writer}");
        }
    }

    #[test]
    fn unions_read_what_each_branch_wrote() {
        let (plain, union) = (parse(r#""int""#), parse(r#"["null","int"]"#));
        assert!(reads(&union, &plain) && !reads(&plain, &union));
        assert!(reads(&parse(r#"["null","long","string"]"#), &union));
    }

    #[test]
    fn types_may_contain_themselves() {
        let list = r#"{"name":"next","type":["null","n.R"],"default":null}"#;
        assert!(reads(&record(list), &record(list)));
        let more = format!(r#"{list},{{"name":"v","type":"int"}}"#);
        assert!(!reads(&record(&more), &record(list)));
    }

    #[test]
    fn enumerations_and_fixed_keep_their_names() {
        let of = |name: &str, size: u32| parse(&format!(r#"{{"type":"fixed","name":"{name}","size":{size}}}"#));
        assert!(reads(&of("F", 4), &of("F", 4)));
        assert!(!reads(&of("F", 4), &of("F", 5)) && !reads(&of("G", 4), &of("F", 4)));
        let colours = |name: &str| parse(&format!(r#"{{"type":"enum","name":"{name}","symbols":["RED"]}}"#));
        assert!(reads(&colours("C"), &colours("C")) && !reads(&colours("D"), &colours("C")));
    }
}
