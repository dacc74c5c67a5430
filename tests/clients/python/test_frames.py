"""Refusals and orders that a client library would hide: frames by hand."""
import time
import urllib.parse
import urllib.request

import pytest

from conftest import ADMIN_URL, PULSAR_URL
from harness import frames
from helpers import until
from harness.frames import (ERROR, FLOW, LOOKUP, LOOKUP_RESPONSE, MESSAGE, PONG, PRODUCER, PRODUCER_SUCCESS, SUBSCRIBE, SUCCESS, command,
                            message)

METADATA_ERROR, TOPIC_NOT_FOUND, PRODUCER_BUSY, INVALID_NAME, INCOMPATIBLE_SCHEMA, NOT_ALLOWED = 1, 11, 16, 17, 18, 22
WATCH_TOPIC_LIST, GET_TOPICS = 64, 32
EXCLUSIVE, SHARED = 0, 1
AVRO = 4
ALL_DOMAINS = 2


@pytest.fixture
def connection(topic):
    address = urllib.parse.urlparse(PULSAR_URL)
    with frames.Connection(address.hostname, address.port) as connection:
        look_up(connection, topic)
        yield connection


def look_up(connection, topic):
    """Somebody serves the topic from then on."""
    connection.call(command(LOOKUP, {1: topic, 2: 1, 3: 0}), LOOKUP_RESPONSE)


def subscribe(topic, subscription="s", kind=EXCLUSIVE, consumer=1, more=()):
    return command(SUBSCRIBE, {1: topic, 2: subscription, 3: kind, 4: consumer, 5: 7, **dict(more)})


def refusal(connection, cmd):
    return connection.call(cmd, ERROR)[2]


def test_a_ping_before_the_handshake():
    address = urllib.parse.urlparse(PULSAR_URL)
    with frames.Connection(address.hostname, address.port, connect=False) as connection:
        connection.call(command(frames.PING, {}), PONG)


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


def test_a_seek_to_nowhere(connection, topic):
    connection.call(subscribe(topic), SUCCESS)
    assert refusal(connection, command(frames.SEEK, {1: 1, 2: 8})) == METADATA_ERROR


def test_patterns(connection, namespace):
    assert refusal(connection, command(WATCH_TOPIC_LIST, {1: 7, 2: 1, 3: namespace, 4: f"persistent://{namespace}/(["})) == INVALID_NAME
    assert refusal(connection, command(GET_TOPICS, {1: 7, 2: f"{namespace}-none", 3: ALL_DOMAINS})) == METADATA_ERROR


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
