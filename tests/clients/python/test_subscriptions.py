"""The four subscription types, what they promise about order, and who may join."""
import time

import pulsar
import pytest
from pulsar import ConsumerKeySharedPolicy, ConsumerType, InitialPosition, KeySharedMode

from conftest import new_client
from helpers import contents, nothing_more, produce, receive, receive_all, receive_data, until


def test_exclusive_refuses_a_second_consumer(client, topic):
    client.subscribe(topic, "s", consumer_type=ConsumerType.Exclusive)
    for kind in ConsumerType.Exclusive, ConsumerType.Shared, ConsumerType.Failover:
        with pytest.raises(pulsar.ConsumerBusy):
            client.subscribe(topic, "s", consumer_type=kind)


def test_the_type_changes_when_nobody_is_connected(client, topic):
    for kind in ConsumerType.Exclusive, ConsumerType.Shared, ConsumerType.KeyShared, ConsumerType.Failover:
        client.subscribe(topic, "s", consumer_type=kind).close()


def test_subscriptions_are_independent(client, topic):
    consumers = [client.subscribe(topic, f"s{i}") for i in range(5)]
    produce(client.create_producer(topic), 30)
    for consumer in consumers:
        assert receive_data(consumer, 30) == contents(30)


def test_initial_positions(client, topic):
    produce(client.create_producer(topic), 10)
    latest = client.subscribe(topic, "latest", initial_position=InitialPosition.Latest)
    earliest = client.subscribe(topic, "earliest", initial_position=InitialPosition.Earliest)
    produce(client.create_producer(topic), 5, first=10)
    assert receive_data(latest, 5) == contents(5, first=10)
    assert receive_data(earliest, 15) == contents(15)


def test_cumulative_acknowledgement(client, topic):
    consumer = client.subscribe(topic, "s")
    produce(client.create_producer(topic), 30)
    messages = receive(consumer, 30, ack=False)
    consumer.acknowledge_cumulative(messages[19])
    consumer.close()
    again = client.subscribe(topic, "s")
    assert receive_data(again, 10) == contents(10, first=20)


def test_cumulative_acknowledgement_is_refused_on_shared(client, topic):
    consumer = client.subscribe(topic, "s", consumer_type=ConsumerType.Shared)
    produce(client.create_producer(topic), 1)
    message = consumer.receive(10_000)
    with pytest.raises(pulsar.CumulativeAcknowledgementNotAllowedError):
        consumer.acknowledge_cumulative(message)


def test_individual_acknowledgement_leaves_holes(client, topic):
    consumer = client.subscribe(topic, "s")
    produce(client.create_producer(topic), 40)
    for i, message in enumerate(receive(consumer, 40, ack=False)):
        if i % 2:
            consumer.acknowledge(message)
    consumer.close()
    again = client.subscribe(topic, "s")
    assert receive_data(again, 20) == [f"m{i}".encode() for i in range(0, 40, 2)]
    nothing_more(again)


@pytest.mark.parametrize("kind", [ConsumerType.Exclusive, ConsumerType.Shared])
def test_batch_index_acknowledgement(client, topic, kind):
    options = dict(consumer_type=kind, batch_index_ack_enabled=True)
    consumer = client.subscribe(topic, "s", **options)
    producer = client.create_producer(topic, batching_enabled=True, batching_max_messages=20, batching_max_publish_delay_ms=5000)
    ids = produce(producer, 20)
    assert len({i.entry_id() for i in ids}) == 1
    for message in receive(consumer, 20, ack=False):
        if int(message.data()[1:]) % 3 == 0:
            consumer.acknowledge(message)
    consumer.close()
    again = client.subscribe(topic, "s", **options)
    left = [f"m{i}".encode() for i in range(20) if i % 3]
    assert receive_data(again, len(left)) == left
    nothing_more(again)


@pytest.mark.parametrize("kind", [ConsumerType.Exclusive, ConsumerType.Shared, ConsumerType.KeyShared])
def test_acknowledgements_inside_a_batch_survive_a_move(client, admin, topic, kind):
    """Apache Pulsar forgets them when a topic moves."""
    options = dict(consumer_type=kind, batch_index_ack_enabled=True)
    consumer = client.subscribe(topic, "s", **options)
    producer = client.create_producer(topic, batching_enabled=True, batching_max_messages=20, batching_max_publish_delay_ms=5000)
    ids = produce(producer, 20)
    assert len({i.entry_id() for i in ids}) == 1
    for message in receive(consumer, 20, ack=False)[::3]:
        consumer.acknowledge(message)
    consumer.close()
    admin.put(admin.topic(topic, "/unload"))
    again = client.subscribe(topic, "s", **options)
    left = [f"m{i}".encode() for i in range(20) if i % 3]
    assert receive_data(again, len(left)) == left
    nothing_more(again)


def test_shared_spreads_and_loses_nothing(client, topic):
    consumers = [client.subscribe(topic, "s", consumer_type=ConsumerType.Shared, receiver_queue_size=10) for _ in range(4)]
    produce(client.create_producer(topic), 200)
    got, shares = [], [0] * 4
    while len(got) < 200:
        for i, consumer in enumerate(consumers):
            message = None
            try:
                message = consumer.receive(50)
            except pulsar.Timeout:
                continue
            consumer.acknowledge(message)
            got.append(message.data())
            shares[i] += 1
    assert sorted(got) == sorted(contents(200))
    assert min(shares) > 0


def test_shared_hands_on_what_a_leaver_held(client, topic):
    leaver = client.subscribe(topic, "s", consumer_type=ConsumerType.Shared)
    produce(client.create_producer(topic), 50)
    receive(leaver, 20, ack=True)
    receive(leaver, 20, ack=False)
    leaver.close()
    stayer = client.subscribe(topic, "s", consumer_type=ConsumerType.Shared)
    messages = receive_all(stayer, quiet_ms=1000)
    assert {m.data() for m in messages} == set(contents(30, first=20))


@pytest.fixture
def failover(client, topic):
    """The active consumer of a Failover subscription, the standby one, and a producer that has sent m0 to m19."""
    consumers = [client.subscribe(topic, "s", consumer_type=ConsumerType.Failover, consumer_name=name) for name in "ab"]
    producer = client.create_producer(topic)
    produce(producer, 20)
    for active, standby in (consumers, consumers[::-1]):
        try:
            first = active.receive(1000)
        except pulsar.Timeout:
            continue
        assert first.data() == b"m0"
        return active, standby, producer, [first] + receive(active, 19, ack=False)
    pytest.fail("neither consumer of a Failover subscription receives")


def test_failover_delivers_to_one_and_moves_on(failover):
    active, standby, producer, messages = failover
    assert [m.data() for m in messages] == contents(20)
    nothing_more(standby)
    for message in messages:
        active.acknowledge(message)
    active.close()
    produce(producer, 20, first=20)
    assert receive_data(standby, 20) == contents(20, first=20)


def test_failover_resumes_behind_the_last_acknowledgement(failover):
    active, standby, _, messages = failover
    active.acknowledge_cumulative(messages[11])
    active.close()
    assert receive_data(standby, 8) == contents(8, first=12)


def test_key_shared_keeps_a_key_together_and_in_order(client, topic):
    consumers = [client.subscribe(topic, "s", consumer_type=ConsumerType.KeyShared) for _ in range(3)]
    produce(client.create_producer(topic), 300, key=lambda i: f"key-{i % 30}")
    owner, order = {}, {}
    for n, consumer in enumerate(consumers):
        for message in receive_all(consumer, quiet_ms=1000):
            key = message.partition_key()
            assert owner.setdefault(key, n) == n
            order.setdefault(key, []).append(int(message.data()[1:]))
    assert sum(map(len, order.values())) == 300
    assert all(numbers == sorted(numbers) for numbers in order.values())
    assert len(set(owner.values())) == 3


def test_key_shared_by_ordering_key(client, topic):
    consumers = [client.subscribe(topic, "s", consumer_type=ConsumerType.KeyShared) for _ in range(2)]
    producer = client.create_producer(topic)
    for i in range(60):
        producer.send(str(i).encode(), ordering_key=f"o{i % 6}", partition_key=str(i))
    owner = {}
    total = 0
    for n, consumer in enumerate(consumers):
        for message in receive_all(consumer, quiet_ms=1000):
            assert owner.setdefault(message.ordering_key(), n) == n
            total += 1
    assert total == 60


def join_while_keys_are_held(client, topic):
    """Of 20 keys `first` has 5 messages each, when `second` joins and 5 more of each follow: both consumers, what is held, the producer."""
    def subscribe(name):
        return client.subscribe(topic, "s", consumer_type=ConsumerType.KeyShared, consumer_name=name)

    first, producer = subscribe("first"), client.create_producer(topic, batching_enabled=False)
    produce(producer, 100, key=lambda i: f"key-{i % 20}")
    held = receive(first, 100, ack=False)
    second = subscribe("second")
    produce(producer, 100, key=lambda i: f"key-{i % 20}", first=100)
    return first, second, held, producer


def test_key_shared_order_holds_while_consumers_join(client, topic):
    """A key may move to a new consumer only when nothing of it is still out; all other keys flow meanwhile."""
    first, second, held, producer = join_while_keys_are_held(client, topic)
    produce(producer, 40, key=lambda i: f"free-{i}", first=200)
    at_first, at_second = (receive_all(consumer, quiet_ms=1000) for consumer in (first, second))
    stayed = {m.partition_key() for m in at_first if m.partition_key().startswith("key-")}
    moved = {f"key-{i}" for i in range(20)} - stayed
    assert stayed and moved
    assert {m.partition_key() for m in at_second} < {f"free-{i}" for i in range(200, 240)}, "a key overtook what is out of it"
    assert len(at_first) + len(at_second) == 5 * len(stayed) + 40, "keys that are not held wait"
    for message in held:
        first.acknowledge(message)
    late = [(m.partition_key(), int(m.data()[1:])) for consumer in (first, second) for m in receive_all(consumer, quiet_ms=1000)]
    assert {key for key, _ in late} == moved and len(late) == 5 * len(moved)
    order = {}
    for key, number in [(m.partition_key(), int(m.data()[1:])) for m in at_first] + late:
        order.setdefault(key, []).append(number)
    assert all(numbers == sorted(numbers) for numbers in order.values())


def test_explain_says_who_holds_what_from_whom(client, admin, topic):
    first, _, _, _ = join_while_keys_are_held(client, topic)
    moved = {f"key-{i}" for i in range(20)} - {m.partition_key() for m in receive_all(first, quiet_ms=1000)}

    def explain():
        return admin.get(admin.topic(topic, "/subscription/s/explain"))

    until(lambda: explain()["unackedMessages"] == 100)
    explanation = explain()
    first, second = explanation["consumers"]
    assert [(c["name"], c["unackedMessages"], c["waitsFor"]) for c in (first, second)] == [("first", 100, None), ("second", 0, None)]
    assert first["permits"] > 0 and second["permits"] > 0 and first["ranges"] and second["ranges"]
    assert sum(r["end"] - r["start"] + 1 for c in (first, second) for r in c["ranges"]) == 65535, "all but slot 0, which no key has"
    draining = explanation["drainingHashes"]
    assert len(draining) == explanation["drainingHashesTotal"] == len(moved)
    assert sum(r["draining"] for r in second["ranges"]) == len(moved) and not any(r["draining"] for r in first["ranges"])
    for block in draining:
        assert (block["heldBy"], block["wantedBy"], block["heldEntries"], block["waitingEntries"]) == ("first", "second", 5, 5)
        assert any(r["start"] <= block["hash"] <= r["end"] for r in second["ranges"])
        assert 0 < block["forMs"] < 60_000 and abs(block["since"] + block["forMs"] - time.time() * 1000) < 5_000
        assert block["releasedBy"] == "first acknowledges or gives back 5 entries, or disconnects"
    assert explanation["summary"] == f"delivering, except {len(moved)} hashes that drain"


def test_key_shared_sticky_ranges(client, topic):
    def subscribe(*ranges):
        policy = ConsumerKeySharedPolicy(KeySharedMode.Sticky, sticky_ranges=list(ranges))
        return client.subscribe(topic, "s", consumer_type=ConsumerType.KeyShared, key_shared_policy=policy)
    low, high = subscribe((0, 32767)), subscribe((32768, 65535))
    with pytest.raises(pulsar.PulsarException):
        subscribe((100, 200))
    produce(client.create_producer(topic), 100, key=lambda i: f"key-{i}")
    a, b = receive_all(low, quiet_ms=1000), receive_all(high, quiet_ms=1000)
    assert len(a) + len(b) == 100 and a and b


def test_unsubscribe_forgets_the_position(client, topic):
    consumer = client.subscribe(topic, "s", initial_position=InitialPosition.Earliest)
    produce(client.create_producer(topic), 10)
    receive(consumer, 10)
    consumer.unsubscribe()
    again = client.subscribe(topic, "s", initial_position=InitialPosition.Earliest)
    assert receive_data(again, 10) == contents(10)


def test_unsubscribe_is_refused_while_others_are_connected(client, topic):
    first = client.subscribe(topic, "s", consumer_type=ConsumerType.Shared)
    client.subscribe(topic, "s", consumer_type=ConsumerType.Shared)
    with pytest.raises(pulsar.PulsarException):
        first.unsubscribe()


def test_a_subscription_lives_on_without_consumers(client, topic):
    client.subscribe(topic, "s").close()
    produce(client.create_producer(topic), 10)
    assert receive_data(client.subscribe(topic, "s"), 10) == contents(10)


def test_a_client_that_vanishes_frees_its_exclusive_subscription(client, topic):
    other = new_client()
    other.subscribe(topic, "s")
    with pytest.raises(pulsar.ConsumerBusy):
        client.subscribe(topic, "s")
    other.close()
    until(lambda: subscribes(client, topic))


def subscribes(client, topic):
    try:
        client.subscribe(topic, "s").close()
        return True
    except pulsar.ConsumerBusy:
        return False


def test_a_client_may_want_its_subscription_replicated(client, admin, topic):
    client.subscribe(topic, "s", consumer_type=ConsumerType.Shared)
    assert admin.stats(topic)["subscriptions"]["s"]["isReplicated"] is False
    client.subscribe(topic, "s", consumer_type=ConsumerType.Shared, replicate_subscription_state_enabled=True)
    client.subscribe(topic, "new", replicate_subscription_state_enabled=True)
    assert {s["isReplicated"] for s in admin.stats(topic)["subscriptions"].values()} == {True}
    admin.put(admin.topic(topic, "/unload"))
    assert admin.stats(topic)["subscriptions"]["s"]["isReplicated"] is True


def test_failover_stats_have_the_order_of_choice(client, admin, topic):
    for name in "bca":
        client.subscribe(topic, "s", consumer_type=ConsumerType.Failover, consumer_name=name)
    assert [c["consumerName"] for c in admin.stats(topic)["subscriptions"]["s"]["consumers"]] == ["a", "b", "c"]
