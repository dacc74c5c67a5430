"""Refusals and orders that a client library would hide: frames by hand."""
import time
import urllib.parse
import urllib.request

import pytest

from conftest import ADMIN_URL, PULSAR_URL
from harness import frames
from harness.frames import (ACK, ACK_RESPONSE, CLOSE_CONSUMER, CONNECT, CONNECTED, ERROR, FLOW, LOOKUP, LOOKUP_RESPONSE, MESSAGE,
                            PARTITIONED_METADATA, PING, PONG, PRODUCER, PRODUCER_SUCCESS, REDELIVER, SEND_ERROR, SEND_RECEIPT, SUBSCRIBE, SUCCESS, command, message)
from helpers import until

METADATA_ERROR, TOPIC_NOT_FOUND, SUBSCRIPTION_NOT_FOUND, CONSUMER_NOT_FOUND, PRODUCER_BUSY, INVALID_NAME, INCOMPATIBLE_SCHEMA, NOT_ALLOWED = 1, 11, 12, 13, 16, 17, 18, 22
GET_TOPICS, WATCH_TOPIC_LIST, WATCH_TOPIC_LIST_SUCCESS, WATCH_TOPIC_UPDATE, WATCH_TOPIC_LIST_CLOSE = 32, 64, 65, 66, 67
PARTITIONED_METADATA_RESPONSE, UNSUBSCRIBE, CONSUMER_STATS, CONSUMER_STATS_RESPONSE = 22, 12, 25, 26
EXCLUSIVE, SHARED = 0, 1
AVRO = 4
ALL_DOMAINS = 2


def connect(**options):
    address = urllib.parse.urlparse(PULSAR_URL)
    return frames.Connection(address.hostname, address.port, **options)


@pytest.fixture
def connection(topic):
    with connect() as connection:
        look_up(connection, topic)
        yield connection


def look_up(connection, topic):
    """Somebody serves the topic from then on."""
    connection.call(command(LOOKUP, {1: topic, 2: 1, 3: 0}), LOOKUP_RESPONSE)


def subscribe(topic, subscription="s", kind=EXCLUSIVE, consumer=1, more=()):
    return command(SUBSCRIBE, {1: topic, 2: subscription, 3: kind, 4: consumer, 5: 7, **dict(more)})


def refusal(connection, cmd):
    return connection.call(cmd, ERROR)[2]


def publish(connection, producer, *payloads):
    """On producer 1, with receipts, when no messages come in between."""
    for sequence, payload in enumerate(payloads):
        connection.write(frames.send_frame(1, sequence, producer[2], payload))
        connection.expect(SEND_RECEIPT)


def test_a_ping_before_the_handshake():
    with connect(connect=False) as connection:
        connection.call(command(PING, {}), PONG)


@pytest.mark.parametrize("entry_metadata", [False, True])
@pytest.mark.parametrize("version", range(12, 23))
def test_versions_and_features(topic, version, entry_metadata):
    """Of those from 12 to 21 the client's is spoken, and the broker's entry metadata go only to those that understand them."""
    with connect(connect=False) as connection:
        features = message({2: int(entry_metadata)})
        connected = connection.call(command(CONNECT, {1: "frames", 4: version, 10: features}), CONNECTED)
        assert connected[2] == min(version, 21) and connected[3] == 5 << 20
        watchers, partitions_without_creation = 4, 5
        ours = {number for number, on in frames.parse(connected[4]).items() if on}
        assert ours >= {watchers, partitions_without_creation}
        look_up(connection, topic)
        connection.call(subscribe(topic), SUCCESS)
        publish(connection, connection.call(command(PRODUCER, {1: topic, 2: 1, 3: 7}), PRODUCER_SUCCESS), b"text")
        connection.write(frames.frame(command(FLOW, {1: 1, 2: 1})))
        received = connection.expect(MESSAGE)
        assert connection.payload.startswith(b"\x0e\x02") == entry_metadata and connection.payload.endswith(b"text")
        acknowledged = connection.call(command(ACK, {1: 1, 2: 0, 3: received[2], 8: 9}), ACK_RESPONSE)
        assert acknowledged[6] == 9 and 4 not in acknowledged


@pytest.mark.parametrize("kind, name", [(50, "NEW_TXN"), (56, "END_TXN"), (62, "TC_CLIENT_CONNECT_REQUEST")])
def test_what_is_not_supported_is_named(connection, kind, name):
    refused = connection.call(command(kind, {1: 42, 2: 1}), ERROR)
    assert (refused[1], refused[2]) == (42, NOT_ALLOWED) and f" {name} " in refused[3].decode()
    connection.call(command(PING, {}), PONG)


@pytest.mark.parametrize("subscription, code", [("", PRODUCER_BUSY), ("pulsar.dedup", PRODUCER_BUSY), ("pulsar.repl.x", PRODUCER_BUSY)])
def test_reserved_subscriptions(connection, topic, subscription, code):
    assert refusal(connection, subscribe(topic, subscription)) == code


def test_compacted_reads_need_one_active_consumer(connection, topic):
    read_compacted = {11: 1}
    assert refusal(connection, subscribe(topic, kind=SHARED, more=read_compacted)) == NOT_ALLOWED
    non_persistent = topic.replace("persistent", "non-persistent")
    assert refusal(connection, subscribe(non_persistent, more=read_compacted)) == NOT_ALLOWED
    connection.call(subscribe(topic, consumer=2, more=read_compacted), SUCCESS)


def test_a_partition_beyond_the_last(connection, admin, topic):
    admin.put(admin.topic(topic, "/partitions"), 2)
    look_up(connection, f"{topic}-partition-1")
    assert refusal(connection, subscribe(f"{topic}-partition-2")) == TOPIC_NOT_FOUND
    assert refusal(connection, command(PRODUCER, {1: f"{topic}-partition-2", 2: 1, 3: 7})) == TOPIC_NOT_FOUND
    connection.call(subscribe(f"{topic}-partition-1"), SUCCESS)


def test_a_partition_of_nothing_comes_into_being_only_where_that_is_asked_for(connection, topic):
    may_create = 6

    def partitions(flags={}):
        return connection.call(command(PARTITIONED_METADATA, {1: f"{topic}-partition-0", 2: 7, **flags}), PARTITIONED_METADATA_RESPONSE)

    found = partitions({may_create: 0})
    assert (found[3], found[4]) == (1, TOPIC_NOT_FOUND)
    found = partitions()
    assert (found[1], found[3]) == (0, 0)


def test_a_lookup_keeps_clients_at_the_url_that_they_have(connection, topic):
    """They may have come through a forwarded port: what is advertised means this machine only."""
    connected, through_service_url = 1, 8
    found = connection.call(command(LOOKUP, {1: topic, 2: 1}), LOOKUP_RESPONSE)
    assert (found[3], found[through_service_url]) == (connected, 1)


def test_a_cumulative_acknowledgement_beyond_the_end_changes_nothing(connection, admin, topic):
    connection.call(subscribe(topic), SUCCESS)
    publish(connection, connection.call(command(PRODUCER, {1: topic, 2: 1, 3: 7}), PRODUCER_SUCCESS), b"a")
    connection.write(frames.frame(command(FLOW, {1: 1, 2: 1})))
    ledger = frames.parse(connection.expect(MESSAGE)[2])[1]
    cumulative, error = 1, 4
    for beyond in ({1: ledger, 2: 100}, {1: ledger + 1000, 2: 0}):
        answer = connection.call(command(ACK, {1: 1, 2: cumulative, 3: message(beyond), 8: 9}), ACK_RESPONSE)
        assert answer[6] == 9 and error not in answer
    assert admin.stats(topic)["subscriptions"]["s"]["msgBacklog"] == 1


def test_a_seek_to_nowhere(connection, topic):
    connection.call(subscribe(topic), SUCCESS)
    assert refusal(connection, command(frames.SEEK, {1: 1, 2: 8})) == METADATA_ERROR


def test_patterns(connection, namespace):
    assert refusal(connection, command(WATCH_TOPIC_LIST, {1: 7, 2: 1, 3: namespace, 4: f"persistent://{namespace}/(["})) == INVALID_NAME
    assert refusal(connection, command(GET_TOPICS, {1: 7, 2: f"{namespace}-none", 3: ALL_DOMAINS})) == METADATA_ERROR


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def test_a_watch_sees_topics_come_and_go(connection, admin, namespace):
    def topics_hash(*names):
        return crc32c(",".join(sorted(names)).encode()).to_bytes(4, "little").hex().encode()

    def update(connection):
        seen = connection.expect(WATCH_TOPIC_UPDATE)
        return seen[1], seen.get(2), seen.get(3), seen[4]

    first, second, other = (f"persistent://{namespace}/{name}" for name in ("a-1", "a-2", "b"))
    admin.put(admin.topic(first))
    watch = {1: 7, 2: 5, 3: namespace, 4: f"persistent://{namespace}/a-.*"}
    found = connection.call(command(WATCH_TOPIC_LIST, watch), WATCH_TOPIC_LIST_SUCCESS)
    assert (found[1], found[2], found[3], found[4]) == (7, 5, first.encode(), topics_hash(first))
    admin.put(admin.topic(other))
    admin.put(admin.topic(second))
    assert update(connection) == (5, second.encode(), None, topics_hash(first, second))
    admin.delete(admin.topic(first))
    assert update(connection) == (5, None, first.encode(), topics_hash(second))
    again = connection.call(command(WATCH_TOPIC_LIST, {**watch, 5: topics_hash(second)}), WATCH_TOPIC_LIST_SUCCESS)
    assert 3 not in again and again[4] == topics_hash(second), "who knows the list is told so"
    connection.call(command(WATCH_TOPIC_LIST_CLOSE, {1: 8, 2: 5}), SUCCESS)
    admin.put(admin.topic(first))
    time.sleep(0.5)
    connection.call(command(PING, {}), PONG)


def test_consumer_stats(connection, topic):
    connection.call(subscribe(topic, kind=SHARED, more={6: "c"}), SUCCESS)
    publish(connection, connection.call(command(PRODUCER, {1: topic, 2: 1, 3: 7}), PRODUCER_SUCCESS), b"a", b"b", b"c")
    connection.write(frames.frame(command(FLOW, {1: 1, 2: 2})))
    received = [connection.expect(MESSAGE) for _ in range(2)]
    connection.call(command(ACK, {1: 1, 2: 0, 3: received[0][2], 8: 9}), ACK_RESPONSE)
    connection.write(frames.frame(command(FLOW, {1: 1, 2: 10})))
    connection.expect(MESSAGE)
    stats = connection.call(command(CONSUMER_STATS, {1: 10, 4: 1}), CONSUMER_STATS_RESPONSE)
    request, name, permits, unacknowledged, kind, backlog = (stats[number] for number in (1, 7, 8, 9, 13, 15))
    assert (request, name, permits, unacknowledged, kind, backlog) == (10, b"c", 9, 2, b"Shared", 2)


def test_consumer_stats_of_none(connection):
    """Apache Pulsar has the code for it, and closes the connection."""
    none = connection.call(command(CONSUMER_STATS, {1: 11, 4: 77}), CONSUMER_STATS_RESPONSE)
    assert (none[1], none[2]) == (11, CONSUMER_NOT_FOUND)
    connection.call(command(PING, {}), PONG)


def test_what_comes_again_has_the_epoch_in_which_it_was_asked_for(connection, topic):
    connection.call(subscribe(topic), SUCCESS)
    producer = connection.call(command(PRODUCER, {1: topic, 2: 1, 3: 7}), PRODUCER_SUCCESS)
    publish(connection, producer, *[b"m"] * 3)

    def deliveries(count):
        """(entry, epoch) of each."""
        came = [connection.expect(MESSAGE) for _ in range(count)]
        return [(frames.parse(body[2])[2], body.get(5, 0)) for body in came]

    connection.write(frames.frame(command(FLOW, {1: 1, 2: 100})))
    assert deliveries(3) == [(0, 0), (1, 0), (2, 0)]
    connection.write(frames.frame(command(REDELIVER, {1: 1, 3: 2})))
    assert deliveries(3) == [(0, 2), (1, 2), (2, 2)]
    connection.write(frames.send_frame(1, 3, producer[2], b"new"))
    answers = dict(connection.read() for _ in range(2))
    assert answers.keys() == {MESSAGE, SEND_RECEIPT} and answers[MESSAGE][5] == 2


def test_a_forced_unsubscribe_sends_everybody_away(connection, admin, topic):
    force = 3
    for consumer in (1, 2):
        connection.call(subscribe(topic, kind=SHARED, consumer=consumer), SUCCESS)
    assert refusal(connection, command(UNSUBSCRIBE, {1: 1, 2: 8})) == METADATA_ERROR
    connection.write(frames.frame(command(UNSUBSCRIBE, {1: 1, 2: 9, force: 1})))
    answers = {}
    while set(answers) < {SUCCESS, CLOSE_CONSUMER}:
        kind, body = connection.read()
        answers.setdefault(kind, []).append(body[1])
    assert answers[SUCCESS] == [9] and 2 in answers[CLOSE_CONSUMER], answers
    assert "s" not in admin.get(admin.topic(topic, "/subscriptions"))


def test_a_schema_that_is_none(connection, topic):
    schema = message({1: "s", 3: b"xx", 4: AVRO})
    assert refusal(connection, command(PRODUCER, {1: topic, 2: 1, 3: 7, 7: schema})) == INCOMPATIBLE_SCHEMA


def test_an_initial_subscription_has_what_is_there(connection, admin, topic):
    producer = connection.call(command(PRODUCER, {1: topic, 2: 1, 3: 7}), PRODUCER_SUCCESS)
    connection.write(frames.send_frame(1, 0, producer[2], b"first"))
    connection.expect(frames.SEND_RECEIPT)
    initial_subscription = 13
    connection.call(command(PRODUCER, {1: topic, 2: 2, 3: 8, initial_subscription: "kept"}), PRODUCER_SUCCESS)
    assert admin.stats(topic)["subscriptions"]["kept"]["msgBacklog"] == 1


def test_an_initial_subscription_follows_the_policy(connection, admin, namespace):
    admin.post(f"namespaces/{namespace}/autoSubscriptionCreation", {"allowAutoSubscriptionCreation": False})
    topic = f"persistent://{namespace}/t"
    look_up(connection, topic)
    assert refusal(connection, command(PRODUCER, {1: topic, 2: 1, 3: 7, 13: "kept"})) == NOT_ALLOWED


def test_plain_messages_where_encryption_is_required(connection, admin, namespace):
    admin.post(f"namespaces/{namespace}/encryptionRequired", True)
    topic, encrypted = f"persistent://{namespace}/t", 5
    look_up(connection, topic)
    assert refusal(connection, command(PRODUCER, {1: topic, 2: 1, 3: 7})) == METADATA_ERROR
    producer = connection.call(command(PRODUCER, {1: topic, 2: 2, 3: 7, encrypted: 1}), PRODUCER_SUCCESS)
    connection.write(frames.send_frame(2, 0, producer[2], b"plain"))
    refused = connection.expect(SEND_ERROR)
    assert (refused[2], refused.get(3)) == (0, METADATA_ERROR)
    connection.write(frames.send_frame(2, 1, producer[2], b"secret", encryption_key=message({1: "key", 2: b"..."})))
    assert connection.expect(SEND_RECEIPT)[2] == 1


def test_a_topic_that_keeps_nothing_has_subscriptions_without_their_being_allowed(connection, admin, namespace):
    admin.post(f"namespaces/{namespace}/autoSubscriptionCreation", {"allowAutoSubscriptionCreation": False})
    kept, lost = f"persistent://{namespace}/t", f"non-persistent://{namespace}/t"
    look_up(connection, kept)
    assert refusal(connection, subscribe(kept)) == SUBSCRIPTION_NOT_FOUND
    look_up(connection, lost)
    connection.call(subscribe(lost), SUCCESS)
    admin.delete(admin.topic(lost, "?force=true"))


def test_what_comes_again_comes_before_what_is_new(connection, topic):
    connection.call(subscribe(topic, kind=SHARED), SUCCESS)
    producer = connection.call(command(PRODUCER, {1: topic, 2: 1, 3: 7}), PRODUCER_SUCCESS)
    connection.write(frames.frame(command(FLOW, {1: 1, 2: 3})))
    for i in range(5):
        connection.write(frames.send_frame(1, i, producer[2], b"m"))
    got = [connection.read() for _ in range(5 + 3)]
    assert sum(kind == MESSAGE for kind, _ in got) == 3
    connection.write(frames.frame(command(frames.REDELIVER, {1: 1})))
    connection.write(frames.frame(command(FLOW, {1: 1, 2: 100})))
    positions = [frames.parse(connection.expect(MESSAGE)[2])[2] for _ in range(5)]
    assert positions == [0, 1, 2, 3, 4]


def test_a_non_persistent_topic_has_no_last_message(connection, topic):
    get_last_message_id, unknown_error = 29, 0
    non_persistent = topic.replace("persistent", "non-persistent")
    look_up(connection, non_persistent)
    connection.call(subscribe(non_persistent), SUCCESS)
    assert refusal(connection, command(get_last_message_id, {1: 1, 2: 9})) == unknown_error


def metrics():
    """Each line of the page by its name with its labels."""
    text = urllib.request.urlopen(f"{ADMIN_URL}/metrics/").read().decode()
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def test_metrics_of_stages_storage_and_the_process(connection, admin, topic):
    """What dashboards ask for beside the figures of topics (test_admin.py), and that each grows with what it counts."""
    def of_topic(name):
        return sum(value for key, value in metrics().items() if key.startswith(f"{name}{{") and f'topic="{topic}"' in key)

    def stages():
        return {stage: value for key, value in metrics().items() for stage in ("append", "receipt", "dispatch", "read", "ack")
                if key.startswith("geminga_stage_seconds_count{") and f'stage="{stage}"' in key}

    before, stages_before = metrics(), stages()
    assert len(stages_before) == 5
    connection.call(subscribe(topic), SUCCESS)
    producer = connection.call(command(PRODUCER, {1: topic, 2: 1, 3: 7}), PRODUCER_SUCCESS)
    for i in range(3):
        connection.write(frames.send_frame(1, i, producer[2], b"m"))
        connection.expect(frames.SEND_RECEIPT)
        admin.stats(topic)      # takes a sample for the rates, if the last one is a second old
        time.sleep(0.6)
    until(lambda: admin.stats(topic) and of_topic("pulsar_storage_write_rate") > 0)
    connection.write(frames.frame(command(FLOW, {1: 1, 2: 1})))
    ids = connection.expect(MESSAGE)[2]
    connection.write(frames.frame(command(frames.ACK, {1: 1, 2: 0, 3: ids, 8: 9})))
    ack_response = 38
    connection.expect(ack_response)

    assert of_topic("pulsar_storage_write_latency_count") == of_topic("pulsar_entry_size_count") == 3
    bounds = ("0_5", "1", "5", "10", "20", "50", "100", "200", "1000")
    assert sum(of_topic(f"pulsar_storage_write_latency_{name}") for name in [*(f"le_{n}" for n in bounds), "overflow"]) == 3
    assert of_topic("pulsar_storage_write_latency_sum") > 0
    assert [of_topic(f"pulsar_entry_size_le_{n}") for n in ("128", "512", "1_kb", "2_kb", "4_kb", "16_kb", "100_kb", "1_mb", "overflow")] \
        == [3, 0, 0, 0, 0, 0, 0, 0, 0]
    assert 3 * 20 < of_topic("pulsar_entry_size_sum") < 3 * 128

    # Loaded anew, nothing is in the caches: what a new subscription gets is read from storage.
    admin.put(admin.topic(topic, "/unload"))
    address = urllib.parse.urlparse(PULSAR_URL)
    with frames.Connection(address.hostname, address.port) as again:
        look_up(again, topic)
        again.call(subscribe(topic, "from-storage", more={13: 1}), SUCCESS)
        again.write(frames.frame(command(FLOW, {1: 1, 2: 10})))
        for _ in range(3):
            again.expect(MESSAGE)
        assert of_topic("pulsar_storage_read_latency_count") >= 1 and of_topic("pulsar_storage_read_latency_sum") > 0
        assert any(key.startswith("pulsar_storage_read_latency_overflow{") for key in metrics())
        assert any(key.startswith("pulsar_storage_read_rate{") and topic in key for key in metrics())

    after = metrics()
    assert all(grown > stages_before[stage] for stage, grown in stages().items()), (stages_before, stages())
    growing = ("pulsar_connection_created_total_count", "pulsar_connection_create_success_count", "pulsar_broker_publish_latency_count",
               "pulsar_broker_publish_latency_sum", "geminga_log_commits", "geminga_log_committed_bytes")
    for name in growing:
        was, now = (sum(value for key, value in page.items() if key.split("{")[0] == name) for page in (before, after))
        assert now > was, (name, was, now)
    present = ("pulsar_active_connections", "geminga_log_segments", "geminga_log_data_bytes", "geminga_log_live_bytes",
               "geminga_log_free_bytes", "process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds",
               "process_threads", "process_start_time_seconds")
    for name in present:
        assert sum(value for key, value in after.items() if key.split("{")[0] == name) > 0, name
    for name in ("pulsar_connection_create_fail_count", "pulsar_connection_closed_total_count", "geminga_log_queued_bytes",
                 "geminga_log_failed_commits", "geminga_log_full"):
        assert any(key.split("{")[0] == name for key in after), name
    quantiles = {key.split('quantile="')[1].split('"')[0]: value for key, value in after.items() if key.startswith("pulsar_broker_publish_latency{")}
    assert quantiles.keys() == {"0.0", "0.5", "0.95", "0.99", "0.999", "0.9999", "1.0"}
    assert 0 < quantiles["0.0"] <= quantiles["0.5"] <= quantiles["0.99"] <= quantiles["1.0"]
