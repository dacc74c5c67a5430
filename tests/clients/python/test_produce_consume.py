"""Sending and receiving: order, batches, compression, properties, limits, deduplication."""
import time
import uuid

import pulsar
import pytest
from pulsar import BatchingType, CompressionType, ConsumerType, InitialPosition

from conftest import new_client
from helpers import contents, nothing_more, position, produce, receive, receive_all, receive_data, until


@pytest.mark.parametrize("batching", [False, True])
def test_messages_arrive_in_order(client, topic, batching):
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic, batching_enabled=batching, batching_max_messages=10)
    ids = produce(producer, 105)
    messages = receive(consumer, 105)
    assert [m.data() for m in messages] == contents(105)
    assert [position(m.message_id()) for m in messages] == [position(i) for i in ids]
    assert sorted(map(position, ids)) == list(map(position, ids))
    assert all(m.topic_name() == topic for m in messages)
    assert all(m.producer_name() == producer.producer_name() for m in messages)
    nothing_more(consumer)


def test_a_batch_shares_one_entry(client, topic):
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic, batching_enabled=True, batching_max_messages=7, batching_max_publish_delay_ms=5000)
    ids = produce(producer, 7)
    assert len({(i.ledger_id(), i.entry_id()) for i in ids}) == 1
    assert [i.batch_index() for i in ids] == list(range(7))
    assert receive_data(consumer, 7) == contents(7)


def test_key_based_batches_keep_order_per_key(client, topic):
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic, batching_enabled=True, batching_type=BatchingType.KeyBased,
                                      batching_max_publish_delay_ms=50)
    produce(producer, 90, key=lambda i: f"k{i % 3}")
    messages = receive(consumer, 90)
    for key in range(3):
        assert [m.data() for m in messages if m.partition_key() == f"k{key}"] == [f"m{i}".encode() for i in range(key, 90, 3)]


@pytest.mark.parametrize("batching", [False, True])
@pytest.mark.parametrize("name", ["NONE", "LZ4", "ZLib", "ZSTD", "SNAPPY"])
def test_compression(client, topic, name, batching):
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic, compression_type=getattr(CompressionType, name), batching_enabled=batching)
    body = b"compressible " * 5000
    for i in range(5):
        producer.send_async(body + str(i).encode(), lambda *_: None)
    producer.flush()
    assert receive_data(consumer, 5) == [body + str(i).encode() for i in range(5)]


def test_properties_keys_and_times(client, topic):
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic)
    before = int(time.time() * 1000)
    producer.send(b"x", properties={"a": "1", "b": "", "ключ": "значение"}, partition_key="k", ordering_key="o",
                  event_timestamp=1234567890123, sequence_id=77)
    message = receive(consumer, 1)[0]
    assert message.properties() == {"a": "1", "b": "", "ключ": "значение"}
    assert message.partition_key() == "k" and message.ordering_key() == "o"
    assert message.event_timestamp() == 1234567890123
    assert before - 1000 <= message.publish_timestamp() <= int(time.time() * 1000) + 1000
    assert message.redelivery_count() == 0
    assert producer.last_sequence_id() == 77


def test_empty_and_null_payloads(client, topic):
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic)
    producer.send(b"")
    assert receive_data(consumer, 1) == [b""]


def test_names_of_producers(client, topic):
    first, second = client.create_producer(topic), client.create_producer(topic)
    assert first.producer_name() and first.producer_name() != second.producer_name()
    client.create_producer(topic, producer_name="mine")
    with pytest.raises(pulsar.ProducerBusy):
        client.create_producer(topic, producer_name="mine")


def test_a_closed_producer_frees_its_name(client, topic):
    for _ in range(3):
        producer = client.create_producer(topic, producer_name="mine")
        producer.send(b"x")
        producer.close()
    with pytest.raises(pulsar.AlreadyClosed):
        producer.send(b"y")


def test_a_message_too_large_is_refused(client, topic):
    producer = client.create_producer(topic)
    with pytest.raises(pulsar.MessageTooBig):
        producer.send(bytes(5 * 1024 * 1024 + 1))
    producer.send(b"still works")


def test_a_message_just_below_the_limit(client, topic):
    consumer = client.subscribe(topic, "s")
    body = bytes(5 * 1024 * 1024 - 1024)
    client.create_producer(topic).send(body)
    assert receive_data(consumer, 1) == [body]


def test_chunks_are_put_together(client, topic):
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic, chunking_enabled=True)
    body = bytes(i * 31 % 251 for i in range(1000)) * 12_500     # three chunks
    producer.send(b"before")
    large = producer.send(body, properties={"size": "large"})
    producer.send(b"after")
    messages = receive(consumer, 3)
    assert [m.data() for m in messages] == [b"before", body, b"after"]
    assert messages[1].properties() == {"size": "large"}
    assert position(messages[1].message_id()) == position(large)
    consumer.close()
    again = client.subscribe(topic, "s")
    nothing_more(again)


def test_chunks_of_two_producers_interleave(client, topic):
    consumer = client.subscribe(topic, "s")
    bodies = [bytes([n]) * 11_000_000 for n in (1, 2)]
    producers = [client.create_producer(topic, chunking_enabled=True) for _ in bodies]
    for producer, body in zip(producers, bodies):
        producer.send_async(body, lambda *_: None)
    for producer in producers:
        producer.flush()
    assert sorted(receive_data(consumer, 2)) == bodies


def test_deduplication_by_sequence_id(admin, namespace, client):
    admin.post(f"namespaces/{namespace}/deduplication", True)
    topic = f"persistent://{namespace}/dedup"
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic, producer_name="p", initial_sequence_id=9)
    for i in range(10, 20):
        producer.send(str(i).encode(), sequence_id=i)
    producer.close()
    producer = client.create_producer(topic, producer_name="p")
    assert producer.last_sequence_id() == 19
    for i in range(15, 25):
        producer.send(str(i).encode(), sequence_id=i)
    assert receive_data(consumer, 15) == [str(i).encode() for i in range(10, 25)]
    nothing_more(consumer)


def test_duplicates_pass_without_deduplication(client, topic):
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic, producer_name="p")
    for _ in range(2):
        producer.send(b"same", sequence_id=5)
    assert receive_data(consumer, 2) == [b"same", b"same"]


def test_encrypted_messages(client, topic, tmp_path):
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import rsa
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (tmp_path / "private").write_bytes(private.private_bytes(s.Encoding.PEM, s.PrivateFormat.TraditionalOpenSSL, s.NoEncryption()))
    (tmp_path / "public").write_bytes(private.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    keys = pulsar.CryptoKeyReader(str(tmp_path / "public"), str(tmp_path / "private"))
    knows = client.subscribe(topic, "knows", crypto_key_reader=keys)
    opaque = client.subscribe(topic, "opaque", crypto_failure_action=pulsar.ConsumerCryptoFailureAction.CONSUME)
    producer = client.create_producer(topic, encryption_key="k1", crypto_key_reader=keys, batching_enabled=True)
    produce(producer, 5)
    assert receive_data(knows, 5) == contents(5)
    sealed = receive(opaque, 1)[0]
    assert sealed.data() not in contents(5)


def test_a_listener_gets_every_message(client, topic):
    got = []

    def listener(consumer, message):
        got.append(message.data())
        consumer.acknowledge(message)

    client.subscribe(topic, "s", message_listener=listener)
    produce(client.create_producer(topic), 50)
    until(lambda: len(got) == 50)
    assert got == contents(50)


def test_batch_receive(client, topic):
    policy = pulsar.ConsumerBatchReceivePolicy(10, -1, 2000)
    consumer = client.subscribe(topic, "s", batch_receive_policy=policy)
    produce(client.create_producer(topic), 25)
    sizes, got = [], []
    while len(got) < 25:
        batch = consumer.batch_receive()
        sizes.append(len(batch))
        got += [m.data() for m in batch]
        for m in batch:
            consumer.acknowledge(m)
    assert got == contents(25) and max(sizes) <= 10


def test_a_small_receiver_queue(client, topic):
    consumer = client.subscribe(topic, "s", receiver_queue_size=1)
    produce(client.create_producer(topic, batching_enabled=True, batching_max_messages=30), 200)
    assert receive_data(consumer, 200) == contents(200)


def test_a_topic_survives_its_clients(topic):
    first = new_client()
    first.subscribe(topic, "s", initial_position=InitialPosition.Earliest)
    produce(first.create_producer(topic), 20)
    first.close()
    second = new_client()
    assert receive_data(second.subscribe(topic, "s"), 20) == contents(20)
    second.close()


def test_many_topics_on_one_connection(client, topic):
    names = [f"{topic}-{i}" for i in range(40)]
    consumers = [client.subscribe(name, "s") for name in names]
    for i, name in enumerate(names):
        client.create_producer(name).send(str(i).encode())
    assert [receive_data(c, 1)[0] for c in consumers] == [str(i).encode() for i in range(40)]


@pytest.mark.parametrize("name", ["persistent://public/default", "bogus://public/default/t"])
def test_bad_topic_names(client, name):
    with pytest.raises(pulsar.PulsarException):
        client.create_producer(name)


def test_a_missing_namespace(client):
    with pytest.raises(pulsar.PulsarException):
        client.create_producer(f"persistent://public/no-{uuid.uuid4().hex[:8]}/t")


def test_non_persistent_topics_deliver_to_who_is_there(client, topic):
    topic = topic.replace("persistent://", "non-persistent://")
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic)
    for i in range(10):
        producer.send(str(i).encode())
    assert receive_data(consumer, 10) == [str(i).encode() for i in range(10)]
    consumer.close()
    producer.send(b"lost")
    nothing_more(client.subscribe(topic, "s", consumer_type=ConsumerType.Shared))


def test_stats_say_that_there_were_chunks(client, admin, topic):
    """Pulsar notices with its next look at rates, once a minute."""
    producer = client.create_producer(topic, chunking_enabled=True)
    producer.send(b"small")
    assert admin.stats(topic)["msgChunkPublished"] is False
    producer.send(bytes(6_000_000))
    until(lambda: admin.stats(topic)["msgChunkPublished"], limit_s=70)
