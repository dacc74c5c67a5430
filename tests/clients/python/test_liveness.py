"""A client that hangs keeps its place only until somebody else wants it."""
import contextlib
import os
import signal
import subprocess
import sys
import time

import pulsar
import pytest

from conftest import PULSAR_URL

HOLDER = """
import sys, pulsar
client = pulsar.Client(sys.argv[1], logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
if sys.argv[3] == "consumer":
    held = client.subscribe(sys.argv[2], "s")
else:
    held = client.create_producer(sys.argv[2], producer_name="p")
print("ready", flush=True)
sys.stdin.read()
client.close()
"""


@contextlib.contextmanager
def hung(topic, what):
    """Another process that holds the exclusive subscription or the producer's name, stopped."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, PULSAR_URL, topic, what],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGSTOP)
        yield
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.mark.parametrize("what", ["consumer", "producer"])
def test_a_hung_client_makes_room(client, topic, what):
    def take_place():
        return client.subscribe(topic, "s") if what == "consumer" else client.create_producer(topic, producer_name="p")

    with hung(topic, what):
        since = time.monotonic()
        while True:
            try:
                take_place().close()
                break
            except pulsar.PulsarException:
                # As on Apache Pulsar: the first attempt may find what the client sent before it hung.
                assert time.monotonic() - since < 20
        assert time.monotonic() - since < 20


def test_a_client_that_is_alive_keeps_its_place(client, topic):
    from conftest import new_client
    client.subscribe(topic, "s")
    other = new_client()
    since = time.monotonic()
    with pytest.raises(pulsar.ConsumerBusy):
        other.subscribe(topic, "s")
    assert time.monotonic() - since < 3
    other.close()
