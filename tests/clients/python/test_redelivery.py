"""Negative acknowledgement, acknowledgement timeout, redelivery counts, dead letters, delayed delivery."""
import time

import pulsar
import pytest
from pulsar import ConsumerDeadLetterPolicy, ConsumerType, InitialPosition

from helpers import contents, nothing_more, produce, receive, receive_all, receive_data

KINDS = [ConsumerType.Exclusive, ConsumerType.Shared, ConsumerType.KeyShared]


@pytest.mark.parametrize("kind", KINDS)
def test_negative_acknowledgement(client, topic, kind):
    consumer = client.subscribe(topic, "s", consumer_type=kind, negative_ack_redelivery_delay_ms=100)
    produce(client.create_producer(topic), 10)
    for message in receive(consumer, 10, ack=False):
        assert message.redelivery_count() == 0
        consumer.negative_acknowledge(message)
    assert {m.data() for m in receive(consumer, 10)} == set(contents(10))
    nothing_more(consumer)


def test_redelivery_counts_grow_on_shared(client, topic):
    consumer = client.subscribe(topic, "s", consumer_type=ConsumerType.Shared, negative_ack_redelivery_delay_ms=50)
    client.create_producer(topic).send(b"x")
    for count in range(4):
        message = consumer.receive(10_000)
        assert message.redelivery_count() == count
        consumer.negative_acknowledge(message)


def test_only_the_refused_come_again(client, topic):
    consumer = client.subscribe(topic, "s", consumer_type=ConsumerType.Shared, negative_ack_redelivery_delay_ms=100)
    produce(client.create_producer(topic), 20)
    for i, message in enumerate(receive(consumer, 20, ack=False)):
        (consumer.negative_acknowledge if i % 4 == 0 else consumer.acknowledge)(message)
    assert sorted(m.data() for m in receive(consumer, 5)) == sorted(f"m{i}".encode() for i in range(0, 20, 4))
    nothing_more(consumer)


def test_redeliver_all_unacknowledged_keeps_the_order(client, topic):
    consumer = client.subscribe(topic, "s")
    produce(client.create_producer(topic), 30)
    messages = receive(consumer, 30, ack=False)
    consumer.acknowledge_cumulative(messages[9])
    consumer.redeliver_unacknowledged_messages()
    assert receive_data(consumer, 20) == contents(20, first=10)


@pytest.mark.parametrize("kind", [ConsumerType.Exclusive, ConsumerType.Shared])
def test_acknowledgement_timeout(client, topic, kind):
    consumer = client.subscribe(topic, "s", consumer_type=kind, unacked_messages_timeout_ms=10_000)
    produce(client.create_producer(topic), 5)
    receive(consumer, 5, ack=False)
    nothing_more(consumer)
    assert {consumer.receive(25_000).data() for _ in range(5)} == set(contents(5))


def test_a_refused_message_goes_to_another_consumer(client, topic):
    first = client.subscribe(topic, "s", consumer_type=ConsumerType.Shared, negative_ack_redelivery_delay_ms=50)
    client.create_producer(topic).send(b"x")
    message = first.receive(10_000)
    second = client.subscribe(topic, "s", consumer_type=ConsumerType.Shared)
    first.negative_acknowledge(message)
    first.close()
    assert second.receive(10_000).data() == b"x"


def test_dead_letters(client, topic):
    dead = f"{topic}-s-DLQ"
    policy = ConsumerDeadLetterPolicy(max_redeliver_count=2, initial_subscription_name="init")
    consumer = client.subscribe(topic, "s", consumer_type=ConsumerType.Shared, negative_ack_redelivery_delay_ms=50, dead_letter_policy=policy)
    letters = client.subscribe(dead, "r", initial_position=InitialPosition.Earliest)
    client.create_producer(topic).send(b"poison", properties={"p": "1"})
    for count in range(3):
        message = consumer.receive(10_000)
        assert message.redelivery_count() == count
        consumer.negative_acknowledge(message)
    letter = letters.receive(10_000)
    assert letter.data() == b"poison" and letter.properties()["p"] == "1"
    nothing_more(consumer)


def test_delayed_delivery_waits(client, topic):
    consumer = client.subscribe(topic, "s", consumer_type=ConsumerType.Shared)
    producer = client.create_producer(topic)
    begin = time.time()
    producer.send(b"late", deliver_at=int(begin * 1000) + 2500)
    producer.send(b"now")
    assert receive_data(consumer, 1) == [b"now"]
    assert receive_data(consumer, 1) == [b"late"]
    assert 2.0 <= time.time() - begin <= 6


def test_delayed_messages_come_in_the_order_of_their_time(client, topic):
    import datetime
    consumer = client.subscribe(topic, "s", consumer_type=ConsumerType.Shared)
    producer = client.create_producer(topic)
    for seconds in 5, 3, 1:
        producer.send(str(seconds).encode(), deliver_after=datetime.timedelta(seconds=seconds))
    assert receive_data(consumer, 3) == [b"1", b"3", b"5"]


def test_delay_is_ignored_on_exclusive(client, topic):
    consumer = client.subscribe(topic, "s")
    client.create_producer(topic).send(b"x", deliver_at=int(time.time() * 1000) + 60_000)
    assert receive_data(consumer, 1) == [b"x"]


def test_delayed_messages_survive_their_consumer(client, topic):
    consumer = client.subscribe(topic, "s", consumer_type=ConsumerType.Shared)
    client.create_producer(topic).send(b"x", deliver_at=int(time.time() * 1000) + 2000)
    consumer.close()
    consumer = client.subscribe(topic, "s", consumer_type=ConsumerType.Shared)
    assert receive_data(consumer, 1) == [b"x"]


@pytest.mark.parametrize("kind", [ConsumerType.Shared, ConsumerType.KeyShared])
def test_what_a_leaver_held_was_not_refused(client, topic, kind):
    first = client.subscribe(topic, "s", consumer_type=kind)
    produce(client.create_producer(topic), 5)
    receive(first, 5, ack=False)
    second = client.subscribe(topic, "s", consumer_type=kind)
    first.close()
    messages = receive(second, 5)
    assert sorted(m.data() for m in messages) == contents(5)
    assert {m.redelivery_count() for m in messages} == {0}
