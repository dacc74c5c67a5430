"""Schemas: stored, versioned, checked."""
import urllib.error

import pulsar
import pytest
from pulsar.schema import AvroSchema, Array, Boolean, BytesSchema, Integer, JsonSchema, Map, Record, String, StringSchema

from helpers import receive


class Person(Record):
    name = String()
    age = Integer()
    tags = Array(String())


class Wider(Record):
    name = String()
    age = Integer()
    tags = Array(String())
    extra = String()


class Other(Record):
    something = Boolean(required=True)


@pytest.mark.parametrize("schema,value", [
    (StringSchema(), "héllo"),
    (BytesSchema(), b"\x00\xff"),
    (JsonSchema(Person), Person(name="a", age=1, tags=["x"])),
    (AvroSchema(Person), Person(name="b", age=2, tags=[])),
], ids=["string", "bytes", "json", "avro"])
def test_values_arrive(client, topic, schema, value):
    consumer = client.subscribe(topic, "s", schema=schema)
    producer = client.create_producer(topic, schema=schema)
    for _ in range(3):
        producer.send(value)
    for message in receive(consumer, 3):
        assert message.value() == value


def test_the_schema_is_stored(client, admin, topic):
    client.create_producer(topic, schema=JsonSchema(Person)).send(Person(name="a", age=1, tags=[]))
    stored = admin.get(admin.topic(topic).replace("persistent/", "schemas/") + "/schema")
    assert stored["type"] == "JSON" and stored["version"] == 0 and '"Person"' in stored["data"]


def test_versions(admin, namespace, client):
    admin.put(f"namespaces/{namespace}/schemaCompatibilityStrategy", "ALWAYS_COMPATIBLE")
    topic = f"persistent://{namespace}/t"
    consumer = client.subscribe(topic, "s")
    client.create_producer(topic, schema=AvroSchema(Person)).send(Person(name="a", age=1, tags=[]))
    client.create_producer(topic, schema=AvroSchema(Wider)).send(Wider(name="a", age=1, tags=[], extra="e"))
    client.create_producer(topic, schema=AvroSchema(Person)).send(Person(name="a", age=1, tags=[]))
    versions = [m.schema_version() for m in receive(consumer, 3)]
    assert versions[0] == versions[2] != versions[1]


class Defaulted(Record):
    name = String()
    age = Integer()
    tags = Array(String())
    extra = Integer(default=None, required_default=True)


class Required(Record):
    name = String()
    age = Integer()
    tags = Array(String())
    extra = Integer(required=True)


@pytest.mark.parametrize("strategy,wider,back", [
    ("BACKWARD", False, True),
    ("FORWARD", True, False),
    ("FULL", False, False),
    ("BACKWARD_TRANSITIVE", False, True),
    ("FORWARD_TRANSITIVE", True, False),
    ("FULL_TRANSITIVE", False, False),
])
@pytest.mark.parametrize("kind", [AvroSchema, JsonSchema], ids=["avro", "json"])
def test_strategies(admin, namespace, client, strategy, wider, back, kind):
    """`wider`: a field without default may be added; `back`: it may be left out again."""
    admin.put(f"namespaces/{namespace}/schemaCompatibilityStrategy", strategy)
    for first, second, allowed in [(Person, Required, wider), (Required, Person, back), (Person, Defaulted, True)]:
        topic = f"persistent://{namespace}/{first.__name__}-{second.__name__}"
        client.create_producer(topic, schema=kind(first)).close()
        if allowed:
            client.create_producer(topic, schema=kind(second)).close()
        else:
            with pytest.raises(pulsar.IncompatibleSchema):
                client.create_producer(topic, schema=kind(second))


def test_a_consumer_must_read_what_comes(client, topic):
    client.create_producer(topic, schema=AvroSchema(Person)).close()
    with pytest.raises(pulsar.IncompatibleSchema):
        client.subscribe(topic, "s", schema=AvroSchema(Required))
    client.subscribe(topic, "s", schema=AvroSchema(Defaulted))


def test_another_type_is_refused(client, topic):
    client.create_producer(topic, schema=JsonSchema(Person)).send(Person(name="a", age=1, tags=[]))
    with pytest.raises(pulsar.IncompatibleSchema):
        client.create_producer(topic, schema=StringSchema())


def test_no_schema_at_all_is_allowed(client, topic):
    client.create_producer(topic, schema=StringSchema()).send("a")
    client.create_producer(topic).send(b"b")
