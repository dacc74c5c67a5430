"""Partitioned topics, several topics at once, regex subscriptions, creation policies, topic admin."""
import re
import time
import urllib.error

import pulsar
import pytest
from pulsar import ConsumerType, InitialPosition, MessageId

from conftest import PULSAR_URL
from helpers import contents, nothing_more, produce, receive, receive_all, receive_data, until


@pytest.fixture
def partitioned(admin, topic):
    admin.put(admin.topic(topic, "/partitions"), 4)
    return topic


def test_partitions_are_known(client, admin, partitioned):
    assert client.get_topic_partitions(partitioned) == [f"{partitioned}-partition-{i}" for i in range(4)]
    assert admin.get(admin.topic(partitioned, "/partitions"))["partitions"] == 4


def test_round_robin_over_partitions(client, partitioned):
    consumer = client.subscribe(partitioned, "s")
    produce(client.create_producer(partitioned), 40)
    messages = receive(consumer, 40)
    assert {m.data() for m in messages} == set(contents(40))
    assert {m.message_id().partition() for m in messages} == set(range(4))


def test_a_key_stays_on_its_partition(client, partitioned):
    consumer = client.subscribe(partitioned, "s")
    produce(client.create_producer(partitioned), 60, key=lambda i: f"k{i % 6}")
    partition, order = {}, {}
    for m in receive(consumer, 60):
        assert partition.setdefault(m.partition_key(), m.message_id().partition()) == m.message_id().partition()
        order.setdefault(m.partition_key(), []).append(int(m.data()[1:]))
    assert all(numbers == sorted(numbers) for numbers in order.values())


@pytest.mark.parametrize("kind", [ConsumerType.Shared, ConsumerType.Failover, ConsumerType.KeyShared])
def test_consumers_share_partitions(client, partitioned, kind):
    consumers = [client.subscribe(partitioned, "s", consumer_type=kind) for _ in range(2)]
    produce(client.create_producer(partitioned), 100, key=lambda i: f"k{i}")
    got = [receive_all(c, quiet_ms=1000) for c in consumers]
    assert sorted(m.data() for part in got for m in part) == sorted(contents(100))
    assert all(got)


def test_reader_of_a_partitioned_topic(client, partitioned):
    produce(client.create_producer(partitioned), 20)
    reader = client.create_reader(partitioned, MessageId.earliest)
    got = []
    while reader.has_message_available():
        got.append(reader.read_next(10_000).data())
    assert sorted(got) == sorted(contents(20))


def test_several_topics_at_once(client, topic):
    topics = [f"{topic}-{i}" for i in range(3)]
    consumer = client.subscribe(topics, "s")
    for name in topics:
        produce(client.create_producer(name), 10, prefix=name)
    messages = receive(consumer, 30)
    for name in topics:
        assert [m.data() for m in messages if m.topic_name() == name] == contents(10, prefix=name)


def test_regex_subscription(client, topic):
    """Topics that exist; this client asks for new ones once a minute, the suites of other clients cover that."""
    stem = topic.split("/")[-1]
    for end in "ab":
        produce(client.create_producer(f"{topic}-{end}"), 5, prefix=end)
    client.create_producer(topic.replace(stem, f"x{stem}-a")).send(b"not mine")
    consumer = client.subscribe(re.compile(f"persistent://public/default/{stem}-.*"), "s", initial_position=InitialPosition.Earliest)
    assert {m.data() for m in receive(consumer, 10)} == set(contents(5, "a") + contents(5, "b"))
    nothing_more(consumer)


def test_auto_creation_off(admin, namespace, client):
    admin.post(f"namespaces/{namespace}/autoTopicCreation", {"allowAutoTopicCreation": False})
    topic = f"persistent://{namespace}/t"
    with pytest.raises(pulsar.PulsarException):
        client.create_producer(topic)
    with pytest.raises(pulsar.PulsarException):
        client.subscribe(topic, "s")
    admin.put(admin.topic(topic))
    client.create_producer(topic).send(b"x")


def test_auto_creation_of_partitioned_topics(admin, namespace, client):
    admin.post(f"namespaces/{namespace}/autoTopicCreation",
               {"allowAutoTopicCreation": True, "topicType": "partitioned", "defaultNumPartitions": 3})
    client.create_producer(f"persistent://{namespace}/t")
    assert admin.get(f"persistent/{namespace}/t/partitions")["partitions"] == 3


def test_auto_subscription_creation_off(admin, namespace, client):
    admin.post(f"namespaces/{namespace}/autoSubscriptionCreation", {"allowAutoSubscriptionCreation": False})
    topic = f"persistent://{namespace}/t"
    client.create_producer(topic)
    with pytest.raises(pulsar.PulsarException):
        client.subscribe(topic, "s")
    admin.put(admin.topic(topic, "/subscription/s"))
    client.subscribe(topic, "s")


def test_topic_life_by_admin(client, admin, topic):
    admin.put(admin.topic(topic))
    assert topic in admin.get("persistent/public/default")
    with pytest.raises(urllib.error.HTTPError) as refused:
        admin.put(admin.topic(topic))
    assert refused.value.code == 409
    producer = client.create_producer(topic)
    with pytest.raises(urllib.error.HTTPError) as refused:
        admin.delete(admin.topic(topic))
    assert refused.value.code == 412
    producer.close()
    admin.delete(admin.topic(topic))
    assert topic not in admin.get("persistent/public/default")
    with pytest.raises(urllib.error.HTTPError) as missing:
        admin.stats(topic)
    assert missing.value.code == 404


def test_stats_count(client, admin, topic):
    consumer = client.subscribe(topic, "s", consumer_type=ConsumerType.Shared, consumer_name="c")
    produce(client.create_producer(topic, producer_name="p"), 10)
    receive(consumer, 4)
    receive(consumer, 2, ack=False)
    until(lambda: admin.stats(topic)["subscriptions"]["s"]["msgBacklog"] == 6)
    stats = admin.stats(topic)
    assert stats["msgInCounter"] == 10 and stats["bytesInCounter"] > 0 and stats["storageSize"] > 0
    assert [p["producerName"] for p in stats["publishers"]] == ["p"]
    subscription = stats["subscriptions"]["s"]
    assert subscription["type"] == "Shared" and subscription["msgOutCounter"] == 10
    assert [c["consumerName"] for c in subscription["consumers"]] == ["c"]
    assert subscription["unackedMessages"] == 6 and subscription["consumers"][0]["unackedMessages"] == 6


def test_subscriptions_by_admin(client, admin, topic):
    producer = client.create_producer(topic)
    produce(producer, 10)
    admin.put(admin.topic(topic, "/subscription/s?replicated=false"), {"ledgerId": -1, "entryId": -1})
    admin.put(admin.topic(topic, "/subscription/end"))
    assert set(admin.get(admin.topic(topic, "/subscriptions"))) == {"s", "end"}
    stats = admin.stats(topic)["subscriptions"]
    assert stats["s"]["msgBacklog"] == 10 and stats["end"]["msgBacklog"] == 0
    admin.post(admin.topic(topic, "/subscription/s/skip/3"))
    until(lambda: admin.stats(topic)["subscriptions"]["s"]["msgBacklog"] == 7)
    consumer = client.subscribe(topic, "s")
    assert receive_data(consumer, 7) == contents(7, first=3)
    consumer.close()
    admin.post(admin.topic(topic, "/subscription/s/resetcursor/0"))
    until(lambda: admin.stats(topic)["subscriptions"]["s"]["msgBacklog"] == 10)
    admin.post(admin.topic(topic, "/subscription/s/skip_all"))
    until(lambda: admin.stats(topic)["subscriptions"]["s"]["msgBacklog"] == 0)
    admin.delete(admin.topic(topic, "/subscription/s"))
    assert admin.get(admin.topic(topic, "/subscriptions")) == ["end"]


def test_more_partitions_for_live_clients(client, admin, topic):
    """The C++ client looks for new partitions once a minute; a new client sees them at once."""
    admin.put(admin.topic(topic, "/partitions"), 2)
    client.create_producer(topic).send(b"x")
    admin.post(admin.topic(topic, "/partitions"), 5)
    assert len(client.get_topic_partitions(topic)) == 5
    consumer = client.subscribe(topic, "s")
    produce(client.create_producer(topic), 30)
    assert {m.message_id().partition() for m in receive(consumer, 30)} == set(range(5))


def test_a_listener_that_the_broker_does_not_have(topic):
    """Its lookups fail, and the client tries again until its time is up."""
    client = pulsar.Client(PULSAR_URL, operation_timeout_seconds=1, listener_name="nowhere")
    with pytest.raises(pulsar.PulsarException):
        client.create_producer(topic)
    client.close()


def test_a_producer_goes_on_where_its_topic_is_unloaded(client, admin, topic):
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic, send_timeout_millis=15_000)
    for turn in range(3):
        produce(producer, 10, first=20 * turn)
        admin.put(admin.topic(topic, "/unload"))
        produce(producer, 10, first=20 * turn + 10)
    assert receive_data(consumer, 60) == contents(60)


def test_messages_under_way_while_a_topic_is_unloaded_are_sent_again(client, admin, topic):
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic, send_timeout_millis=15_000, block_if_queue_full=True, max_pending_messages=500)
    sent = []
    for number in range(6000):
        producer.send_async(f"m{number}".encode(), lambda result, _: sent.append(result))
        if number % 2000 == 1000:
            admin.put(admin.topic(topic, "/unload"))
    producer.flush()
    until(lambda: len(sent) == 6000)
    assert set(sent) == {pulsar.Result.Ok}
    # What has lost its receipt is there twice.
    received = dict.fromkeys(m.data() for m in receive_all(consumer, quiet_ms=2000))
    assert list(received) == contents(6000)


def test_readers_count_as_subscriptions(client, admin, topic):
    admin.put(admin.topic(topic))
    admin.post(admin.topic(topic, "/maxSubscriptionsPerTopic"), 1)
    until(lambda: admin.get(admin.topic(topic, "/maxSubscriptionsPerTopic")) == 1)
    time.sleep(1)
    client.subscribe(topic, "s")
    with pytest.raises(pulsar.NotAllowedError):
        client.create_reader(topic, MessageId.earliest)
