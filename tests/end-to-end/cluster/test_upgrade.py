"""A cluster of the build before is changed to this one process by process, and back, under load."""
import os
import subprocess
import time

import pulsar
import pytest
from conftest import BINARY, run_cluster
from load import everything
from test_brokers import NAMESPACE, finish, loads

from harness import servers

PREVIOUS = os.environ.get("GEMINGA_PREVIOUS_BINARY")
HOLED = f"{NAMESPACE}/holed"


@pytest.fixture
def previous(postgres):
    """Three brokers on three nodes of the build before."""
    assert PREVIOUS, "there is no build before (GEMINGA_PREVIOUS_BINARY): see what './dev test cluster' says of it at its beginning"
    yield from run_cluster(postgres.new_database(), 3, brokers=3, binary=PREVIOUS)


def change(running, process, binary):
    """It goes on with another build, and every producer goes on beside it."""
    process.stop()
    process.binary = binary
    process.start()
    before = {topic: len(load.acknowledged) for topic, load in running.items()}
    servers.wait_for(lambda: all(len(load.acknowledged) >= before[topic] + 100 for topic, load in running.items()))


def leave_holes(cluster, numbers):
    """Publishes the numbers and acknowledges the even ones; returns the odd ones."""
    client = pulsar.Client(cluster.pulsar_url, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
    consumer, producer = client.subscribe(HOLED, "all"), client.create_producer(HOLED)
    odd = []
    for number in numbers:
        producer.send(str(number).encode())
        message = consumer.receive(30_000)
        assert message.data() == str(number).encode()
        if number % 2:
            odd.append(number)
        else:
            consumer.acknowledge(message)
    client.close()
    servers.wait_for(lambda: cluster.admin("GET", f"{HOLED}/stats")["subscriptions"]["all"]["msgBacklog"] == len(odd))
    return odd


def test_a_cluster_is_upgraded_and_downgraded_under_load(previous):
    """Nodes first, both ways: old brokers use new nodes on the way up, new brokers old nodes on the way down, and brokers of both
    builds share bundles on either."""
    cluster = previous
    running = loads(cluster, 6, deduplication=True)
    cluster.admin("PUT", f"{HOLED}/subscription/all")
    subprocess.run([BINARY, "metadata", "init", "--metadata-url", cluster.url, "--cluster", "test"], check=True, capture_output=True)
    for binary in [BINARY, PREVIOUS]:
        for n, process in enumerate([*cluster.nodes, *cluster.brokers]):
            odd = leave_holes(cluster, range(100 * n, 100 * n + 50))
            change(running, process, binary)
            # What one build has stored the other delivers, and what one knows to be acknowledged the other knows too.
            assert everything(cluster.pulsar_url, HOLED, "all", quiet_s=0.5, expected=odd) == odd
        print(f"all run {binary}: {sum(len(load.acknowledged) for load in running.values())} messages")
    assert finish(cluster, running, exactly_once=True) < 5
