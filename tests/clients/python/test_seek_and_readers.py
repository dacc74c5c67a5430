"""Seeking, readers, last message id, the end of a terminated topic, table views."""
import time

import pulsar
import pytest
from pulsar import ConsumerType, InitialPosition, MessageId

from helpers import contents, nothing_more, position, produce, receive, receive_data, until


@pytest.mark.parametrize("batching", [False, True])
def test_seek_by_id(client, topic, batching):
    consumer = client.subscribe(topic, "s", start_message_id_inclusive=True)
    producer = client.create_producer(topic, batching_enabled=batching, batching_max_messages=5)
    ids = produce(producer, 20)
    receive(consumer, 20)
    consumer.seek(ids[7])
    assert receive_data(consumer, 13) == contents(13, first=7)


def test_seek_to_the_ends(client, topic):
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic)
    produce(producer, 10)
    receive(consumer, 10)
    consumer.seek(MessageId.earliest)
    assert receive_data(consumer, 10) == contents(10)
    consumer.seek(MessageId.earliest)
    consumer.seek(MessageId.latest)
    nothing_more(consumer)
    produce(producer, 2, first=10)
    assert receive_data(consumer, 2) == contents(2, first=10)


def test_seek_by_time(client, topic):
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic)
    produce(producer, 5)
    time.sleep(0.1)
    middle = int(time.time() * 1000)
    time.sleep(0.1)
    produce(producer, 5, first=5)
    receive(consumer, 10)
    consumer.seek(middle)
    assert receive_data(consumer, 5) == contents(5, first=5)
    consumer.seek(0)
    assert receive_data(consumer, 10) == contents(10)


def test_seek_of_a_shared_subscription(client, topic):
    consumer = client.subscribe(topic, "s", consumer_type=ConsumerType.Shared)
    ids = produce(client.create_producer(topic), 20)
    receive(consumer, 20)
    consumer.seek(ids[9])
    assert {m.data() for m in receive(consumer, 10)} == set(contents(10, first=10))
    nothing_more(consumer)


def test_reader_from_earliest_and_latest(client, topic):
    producer = client.create_producer(topic)
    produce(producer, 10)
    earliest = client.create_reader(topic, MessageId.earliest)
    latest = client.create_reader(topic, MessageId.latest)
    assert earliest.has_message_available() and not latest.has_message_available()
    produce(producer, 3, first=10)
    assert read(earliest, 13) == contents(13)
    assert not earliest.has_message_available()
    assert latest.has_message_available()
    assert read(latest, 3) == contents(3, first=10)


@pytest.mark.parametrize("batching", [False, True])
@pytest.mark.parametrize("inclusive", [False, True])
def test_reader_from_an_id(client, topic, batching, inclusive):
    producer = client.create_producer(topic, batching_enabled=batching, batching_max_messages=4)
    ids = produce(producer, 12)
    for start in 0, 5, 10:
        reader = client.create_reader(topic, ids[start], start_message_id_inclusive=inclusive)
        first = start if inclusive else start + 1
        assert read(reader, 12 - first) == contents(12 - first, first=first)
        assert not reader.has_message_available()
        reader.close()


def test_reader_from_a_serialized_id(client, topic):
    ids = produce(client.create_producer(topic), 5)
    reader = client.create_reader(topic, MessageId.deserialize(ids[2].serialize()))
    assert read(reader, 2) == contents(2, first=3)


def test_reader_seeks(client, topic):
    ids = produce(client.create_producer(topic), 10)
    reader = client.create_reader(topic, MessageId.latest)
    reader.seek(ids[3])
    assert read(reader, 6) == contents(6, first=4)
    reader.seek(0)
    assert read(reader, 10) == contents(10)


def test_readers_leave_no_subscription(client, admin, topic):
    client.create_producer(topic).send(b"x")
    reader = client.create_reader(topic, MessageId.earliest)
    reader.read_next(10_000)
    until(lambda: any(not s["durable"] for s in admin.stats(topic)["subscriptions"].values()))
    reader.close()
    until(lambda: not admin.stats(topic)["subscriptions"])


def test_many_readers_of_one_topic(client, topic):
    produce(client.create_producer(topic), 20)
    for reader in [client.create_reader(topic, MessageId.earliest) for _ in range(8)]:
        assert read(reader, 20) == contents(20)


def test_last_message_id(client, topic):
    consumer = client.subscribe(topic, "s")
    assert consumer.get_last_message_id().entry_id() == -1
    ids = produce(client.create_producer(topic, batching_enabled=True, batching_max_messages=3), 9)
    assert position(consumer.get_last_message_id()) == position(ids[-1])


def test_a_terminated_topic(client, admin, topic):
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic)
    ids = produce(producer, 5)
    last = admin.post(admin.topic(topic, "/terminate"))
    assert (last["ledgerId"], last["entryId"]) == (ids[-1].ledger_id(), ids[-1].entry_id())
    with pytest.raises(pulsar.PulsarException):
        producer.send(b"too late")
    with pytest.raises(pulsar.PulsarException):
        client.create_producer(topic)
    assert receive_data(consumer, 5) == contents(5)
    reader = client.create_reader(topic, MessageId.earliest)
    assert read(reader, 5) == contents(5)
    assert not reader.has_message_available()


def test_table_view(client, topic):
    producer = client.create_producer(topic)
    for i in range(20):
        producer.send(str(i).encode(), partition_key=f"k{i % 5}")
    view = client.create_table_view(topic)
    assert {k: view.get(k) for k in (f"k{i}" for i in range(5))} == {f"k{i}": str(15 + i).encode() for i in range(5)}
    producer.send(b"new", partition_key="k2")
    until(lambda: view.get("k2") == b"new")
    view.close()


def read(reader, count):
    return [reader.read_next(10_000).data() for _ in range(count)]


def test_who_comes_after_the_end_of_a_topic_finds_it(client, admin, topic):
    consumer = client.subscribe(topic, "s")
    produce(client.create_producer(topic), 5)
    receive(consumer, 5)
    until(lambda: admin.stats(topic)["subscriptions"]["s"]["msgBacklog"] == 0)
    admin.post(admin.topic(topic, "/terminate"))
    time.sleep(0.5)
    admin.post(admin.topic(topic, "/trim"))
    late = client.subscribe(topic, "late", initial_position=InitialPosition.Earliest)
    assert receive_data(late, 5) == contents(5)


def test_the_end_of_a_topic_does_not_keep_consumers_coming_back(client, admin, topic):
    """C++ clients take what they are told of it for an error, and connect again."""
    consumer = client.subscribe(topic, "s")
    client.create_producer(topic).send(b"x")
    receive(consumer, 1)
    until(lambda: admin.stats(topic)["subscriptions"]["s"]["msgBacklog"] == 0)
    admin.post(admin.topic(topic, "/terminate"))
    time.sleep(2)

    def connected():
        return [c["connectedSince"] for c in admin.stats(topic)["subscriptions"]["s"]["consumers"]]

    before = connected()
    time.sleep(1)
    assert before and connected() == before
