"""Real clients find everything at the proxy's address."""
import json
import os
import pathlib
import re
import subprocess
import sys
import urllib.request
import uuid

import pulsar
import pytest

from harness import servers

ROOT = pathlib.Path(__file__).parents[3]
SUITE_LIMIT_S = 900


@pytest.fixture(params=["plain", "tls"])
def client(request, shared):
    if request.param == "plain":
        client = pulsar.Client(shared.proxy.pulsar_url, operation_timeout_seconds=10)
    else:
        client = pulsar.Client(shared.proxy.tls_url, operation_timeout_seconds=10, tls_trust_certs_file_path=str(shared.proxy.ca))
    yield client
    client.close()


@pytest.fixture
def topic():
    return f"persistent://public/default/proxied-{uuid.uuid4().hex[:8]}"


def texts(consumer, count):
    found = []
    for _ in range(count):
        message = consumer.receive(10_000)
        consumer.acknowledge(message)
        found.append(message.data().decode())
    return found


def test_messages_pass_through_the_proxy(client, shared, topic):
    before = shared.proxy.metric("pulsar_proxy_binary_bytes")
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic)
    payload = b"x" * 1_000_000
    for _ in range(5):
        producer.send(payload)
    for _ in range(5):
        message = consumer.receive(10_000)
        assert message.data() == payload
        consumer.acknowledge(message)
    # In and out again.
    assert shared.proxy.metric("pulsar_proxy_binary_bytes") - before > 10_000_000
    assert shared.proxy.metric("pulsar_proxy_lookup_requests") > 0


def test_partitions_patterns_and_readers(client, shared, topic):
    servers.admin(shared.proxy.admin_url, "PUT", f"{topic}/partitions".replace("://", "/"), 3)
    producer = client.create_producer(topic, message_routing_mode=pulsar.PartitionsRoutingMode.RoundRobinDistribution,
                                      batching_enabled=False)
    sent = [f"m{n}" for n in range(9)]
    consumer = client.subscribe(re.compile(topic + ".*"), "pattern", initial_position=pulsar.InitialPosition.Earliest)
    for text in sent:
        producer.send(text.encode())
    assert sorted(texts(consumer, 9)) == sent
    reader = client.create_reader(f"{topic}-partition-0", pulsar.MessageId.earliest)
    found = []
    while reader.has_message_available():
        found.append(reader.read_next(10_000).data().decode())
    assert len(found) == 3 and set(found) < set(sent)


def test_lookups_name_the_broker_by_http(shared):
    """As Pulsar's proxy: the answer is the broker's own address."""
    with urllib.request.urlopen(f"{shared.proxy.admin_url}/lookup/v2/topic/persistent/public/default/t", timeout=10) as answer:
        assert json.load(answer)["brokerUrl"] == shared.broker.pulsar_url


def run_suite(command, environment):
    done = subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=SUITE_LIMIT_S)
    print(done.stdout[-5000:])
    assert done.returncode == 0


def test_the_python_suite(shared):
    before = shared.proxy.metric("pulsar_proxy_new_connections")
    environment = {**shared.proxy.environment(tls=False), "PYTHONPATH": "tests"}
    # test_frames.py speaks to a broker by itself, without naming one to the proxy; /metrics here are the proxy's own.
    suite = ["tests/clients/python", "--ignore", "tests/clients/python/test_frames.py",
             "--deselect", "test_admin.py::test_metrics_of_topics_and_subscriptions"]
    run_suite([sys.executable, "-m", "pytest", "-n", "4", *suite], environment)
    assert shared.proxy.metric("pulsar_proxy_new_connections") - before > 50


@pytest.mark.skipif("JAVA_BUILD" not in os.environ, reason="JAVA_BUILD names no folder")
def test_the_java_suite_with_tls(shared, tmp_path):
    build = os.environ["JAVA_BUILD"]
    run_suite(["mvn", "-q", "-B", "-f", "tests/clients/java/pom.xml", "test", f"-DbuildDirectory={build}",
               f"-DreportsDirectory={tmp_path}"], shared.proxy.environment(tls=True))


@pytest.mark.skipif("PULSAR_HOME" not in os.environ, reason="PULSAR_HOME names no distribution of Apache Pulsar")
def test_pulsars_tools(shared):
    environment = {**shared.proxy.environment(tls=False), "PYTHONPATH": "tests"}
    run_suite([sys.executable, "-m", "pytest", "tests/clients/tools"], environment)
