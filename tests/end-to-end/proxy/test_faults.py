"""What is lost comes back, and clients notice no more than a pause."""
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request

import pulsar
import pytest
from conftest import Setting
from harness.certificates import make_certificates

TOPIC = "persistent://public/default/faults"


class Load:
    """Produces numbers one after another, and consumes them; both go on through whatever happens."""

    def __init__(self, url):
        self.client = pulsar.Client(url, operation_timeout_seconds=5, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
        self.consumer = self.client.subscribe(TOPIC, "s")
        self.producer = self.client.create_producer(TOPIC, send_timeout_millis=60_000, batching_enabled=False)
        self.sent, self.received, self.ending, self.error = 0, set(), False, None
        self.threads = [threading.Thread(target=self.produce), threading.Thread(target=self.consume)]
        for thread in self.threads:
            thread.start()

    def produce(self):
        try:
            while not self.ending:
                self.producer.send(str(self.sent).encode())
                self.sent += 1
        except Exception as e:
            self.error = e

    def consume(self):
        # What is being sent still is not counted yet.
        while self.threads[0].is_alive() or len(self.received) < self.sent:
            try:
                message = self.consumer.receive(1000)
                self.consumer.acknowledge(message)
                self.received.add(int(message.data()))
            except pulsar.Timeout:
                if self.ending and self.patience < time.monotonic():
                    return
            except pulsar.PulsarException:
                time.sleep(0.1)

    def progress(self, limit_s=40):
        """Returns when fifty more messages are acknowledged."""
        goal, end = self.sent + 50, time.monotonic() + limit_s
        while self.sent < goal:
            assert self.error is None and time.monotonic() < end, f"no progress after {self.sent} messages: {self.error}"
            time.sleep(0.02)

    def finish(self):
        self.patience, self.ending = time.monotonic() + 20, True
        for thread in self.threads:
            thread.join()
        self.client.close()
        assert self.error is None
        assert self.received >= set(range(self.sent)), f"{self.sent - len(self.received)} acknowledged messages never came"
        print(f"{self.sent} messages")


def test_the_broker_is_killed_and_comes_back(setting):
    load = Load(setting.proxy.pulsar_url)
    for _ in range(3):
        load.progress()
        setting.broker.kill()
        time.sleep(1)
        setting.broker.start()
    load.progress()
    load.finish()


def test_the_proxy_is_killed_and_comes_back(setting):
    """It has forgotten which brokers it knows; the one that is configured it knows from the beginning."""
    load = Load(setting.proxy.pulsar_url)
    load.progress()
    setting.proxy.kill()
    time.sleep(1)
    setting.proxy.start()
    load.progress()
    load.finish()


def test_a_proxy_whose_broker_is_away_says_so(setting):
    setting.broker.kill()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{setting.proxy.admin_url}/admin/v2/clusters", timeout=10)
    assert refused.value.code == 503
    client = pulsar.Client(setting.proxy.pulsar_url, operation_timeout_seconds=2,
                           logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
    with pytest.raises(pulsar.PulsarException):
        client.create_producer(TOPIC)
    client.close()
    with pytest.raises(urllib.error.HTTPError) as unready:
        urllib.request.urlopen(f"{setting.proxy.admin_url}/readyz", timeout=10)
    assert unready.value.code == 503
    setting.broker.start()
    client = pulsar.Client(setting.proxy.pulsar_url, operation_timeout_seconds=20)
    client.create_producer(TOPIC).send(b"again")
    client.close()


def test_new_certificates_are_used_without_a_restart(setting):
    proxy = setting.proxy
    old = ssl.create_default_context(cafile=proxy.ca)
    for port in (proxy.tls_port, proxy.https_port):
        handshake(port, old)
    make_certificates(proxy.folder)
    new = ssl.create_default_context(cafile=proxy.ca)
    for port in (proxy.tls_port, proxy.https_port):
        time.sleep(1.1)
        handshake(port, new)
        with pytest.raises(ssl.SSLError):
            handshake(port, old)
    client = pulsar.Client(proxy.tls_url, operation_timeout_seconds=10, tls_trust_certs_file_path=str(proxy.ca))
    client.create_producer(TOPIC).send(b"with the new one")
    client.close()


def handshake(port, context):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as s, context.wrap_socket(s, server_hostname="127.0.0.1"):
        pass


def test_connections_beyond_the_limit_are_refused_and_those_within_it_work():
    setting = Setting(arguments=["--max-connections", "20"])
    idle = []
    try:
        client = pulsar.Client(setting.proxy.pulsar_url, operation_timeout_seconds=10)
        producer = client.create_producer(TOPIC)
        for _ in range(100):
            idle.append(socket.create_connection(("127.0.0.1", setting.proxy.port), timeout=10))
        producer.send(b"in spite of them")
        end = time.monotonic() + 10
        while setting.proxy.metric("pulsar_proxy_rejected_connections") < 80:
            assert time.monotonic() < end
            time.sleep(0.05)
        client.close()
    finally:
        for s in idle:
            s.close()
        setting.close()
