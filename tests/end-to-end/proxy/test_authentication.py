"""A real broker that wants tokens, behind the proxy: with TLS on both sides, and before a client that reaches nothing but the proxy."""
import base64
import json
import os
import pathlib
import re
import secrets
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pulsar
import pytest
from conftest import BINARY, Proxy

from harness import servers
from harness.certificates import make_certificates
from tokens import token

NAMESPACE = "persistent://public/default"
HERE, THERE = "10.98.76.1", "10.98.76.2"
SECONDS = 10
PROGRAM = pathlib.Path(__file__).parent / "behind.py"

pytestmark = pytest.mark.skipif("PULSAR_HOME" not in os.environ, reason="PULSAR_HOME names no distribution of Apache Pulsar")


class PulsarWithTokens(servers.ApachePulsar):
    """Asks each connection for a new token when its own has run out, and breaks it if none comes. Serves both protocols with TLS, too."""

    def __init__(self, folder):
        self.key = secrets.token_bytes(32)
        self.token = token(self.key, "admin", lasts_s=3600)
        self.tls_port, self.https_port = servers.free_port(), servers.free_port()
        self.tls_url, self.https_url = f"pulsar+ssl://127.0.0.1:{self.tls_port}", f"https://127.0.0.1:{self.https_port}"
        folder.mkdir()
        make_certificates(folder)
        self.ca = folder / "ca.pem"
        super().__init__(os.environ["PULSAR_HOME"], folder, settings={
            "brokerServicePortTls": str(self.tls_port),
            "webServicePortTls": str(self.https_port),
            "tlsCertificateFilePath": str(folder / "cert.pem"),
            "tlsKeyFilePath": str(folder / "key.pem"),
            "authenticationEnabled": "true",
            "authenticationProviders": "org.apache.pulsar.broker.authentication.AuthenticationProviderToken",
            "tokenSecretKey": f"data:;base64,{base64.b64encode(self.key).decode()}",
            "authenticationRefreshCheckSeconds": "1",
            "brokerClientAuthenticationPlugin": "org.apache.pulsar.client.impl.auth.AuthenticationToken",
            "brokerClientAuthenticationParameters": f"token:{self.token}",
        })

    def wait_first_publish(self, since, limit_s):
        servers.wait_for(lambda: servers.listens(self.http_port) and servers.listens(self.port), limit_s)
        while True:
            client = pulsar.Client(self.pulsar_url, authentication=pulsar.AuthenticationToken(self.token), operation_timeout_seconds=5,
                                   logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
            try:
                client.create_producer(f"{NAMESPACE}/first").send(b"first")
                return time.monotonic() - since
            except pulsar.PulsarException:
                if not self.alive() or time.monotonic() - since > limit_s:
                    raise RuntimeError(f"no publish acknowledged; the log ends:\n{self.log_end()}") from None
                time.sleep(1)
            finally:
                client.close()

    def sessions(self, topic, url=None, authority=None):
        """Since when the topic's producer and consumer are connected, as is said at `url`, whose certificate the authority has signed."""
        request = urllib.request.Request(f"{url or self.admin_url}/admin/v2/{topic.replace('://', '/')}/stats",
                                         headers={"Authorization": f"Bearer {self.token}"})
        trust = ssl.create_default_context(cafile=authority) if authority else None
        with urllib.request.urlopen(request, timeout=60, context=trust) as answer:
            stats = json.load(answer)
        return [one["connectedSince"] for one in stats["publishers"] + stats["subscriptions"]["s"]["consumers"]]


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with PulsarWithTokens(tmp_path_factory.mktemp("tokens") / "pulsar") as broker:
        yield broker


@pytest.fixture
def private_network():
    """A command that runs others in a network of their own, from which only this machine's address `HERE` can be reached."""
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        inside = ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
        try:
            for command in [f"ip link add gmproxy type veth peer name eth0 netns {holder.pid}", f"ip addr add {HERE}/30 dev gmproxy", "ip link set gmproxy up"]:
                subprocess.run(command.split(), check=True)
            for command in [f"ip addr add {THERE}/30 dev eth0", "ip link set eth0 up"]:
                subprocess.run([*inside, *command.split()], check=True)
            yield inside
        finally:
            holder.kill()


def check_renewal(broker, topic, url, sessions, prefix=(), authority=()):
    """A client at `url` sends and takes messages while its tokens run out, and its sessions stay the same."""
    command = [*prefix, sys.executable, str(PROGRAM), url, broker.key.hex(), topic, str(SECONDS), *authority]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        time.sleep(SECONDS / 3)
        before = sessions()
        seen = json.loads(next(line for line in client.stdout if line.startswith("{")))     # its logger writes there, too
        assert sessions() == before and len(before) == 2, "a connection was broken"
    print(seen)
    assert seen["messages"] > 50 and seen["tokens"] >= 3


def test_tokens_are_renewed_on_connections_that_stay(broker, private_network, tmp_path):
    ready, port, topic = tmp_path / "ready.json", servers.free_port(), f"{NAMESPACE}/with-tokens"
    command = [BINARY, "proxy", "--brokers", broker.pulsar_url, "--broker-http", broker.admin_url, "--pulsar-addr", f"{HERE}:{port}",
               "--http-addr", f"{HERE}:{servers.free_port()}", "--ready-file", str(ready)]
    with open(tmp_path / "proxy.log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as proxy:
        try:
            servers.wait_for(lambda: servers.read_json(ready))
            for address in [broker.pulsar_url, broker.admin_url]:
                host, own_port = address.split("//")[1].split(":")
                assert subprocess.run([*private_network, sys.executable, "-c", f"import socket; socket.create_connection(({host!r}, {own_port}), 2)"],
                                      stderr=subprocess.DEVNULL).returncode, "the client reaches a broker"
            check_renewal(broker, topic, f"pulsar://{HERE}:{port}", lambda: broker.sessions(topic), prefix=private_network)
        finally:
            proxy.terminate()
            assert proxy.wait(60) == 0


@pytest.fixture
def proxy_with_tls(broker, tmp_path):
    """Starts a proxy that knows of the broker's ports with TLS only, and trusts an authority for it. Its own one is another."""
    started = []

    def start(name, authority):
        proxy = Proxy(tmp_path / name, [broker.tls_url], [broker.https_url], ["--broker-ca", str(authority)])
        started.append(proxy)
        proxy.start()
        return proxy

    yield start
    for proxy in started:
        print(f"the end of the log of {proxy.folder.name}:\n{proxy.log_end(3000)}")
        assert proxy.stop() == 0


def peers(pid):
    """The ports of those that a process has connections to."""
    listed = subprocess.run(["ss", "-Htnp", "state", "established"], check=True, capture_output=True, text=True).stdout.splitlines()
    return {int(line.split()[3].rsplit(":", 1)[1]) for line in listed if f"pid={pid}," in line}


def test_a_real_broker_is_reached_by_tls_alone(broker, proxy_with_tls):
    proxy, topic = proxy_with_tls("proxy", broker.ca), f"{NAMESPACE}/with-tls"

    def sessions():
        connected = peers(proxy.pid)
        assert broker.tls_port in connected and broker.port not in connected
        return broker.sessions(topic, proxy.https_url, proxy.ca)

    check_renewal(broker, topic, proxy.tls_url, sessions, authority=[str(proxy.ca)])
    assert proxy.metric("geminga_proxy_http_requests") == 2 and proxy.metric("geminga_proxy_http_failures") == 0


def test_a_real_broker_that_is_not_trusted_is_not_spoken_to(broker, proxy_with_tls, tmp_path):
    proxy, topic = proxy_with_tls("distrusting", tmp_path / "distrusting/ca.pem"), f"{NAMESPACE}/in-vain"
    with pytest.raises(urllib.error.HTTPError) as refused:
        broker.sessions(topic, proxy.https_url, proxy.ca)
    assert refused.value.code == 503 and "invalid peer certificate" in refused.value.read().decode()
    client = pulsar.Client(proxy.tls_url, authentication=pulsar.AuthenticationToken(broker.token), operation_timeout_seconds=3,
                           tls_trust_certs_file_path=str(proxy.ca), logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
    with pytest.raises(pulsar.PulsarException):
        client.create_producer(topic)
    client.close()
    # One for each port of the broker.
    assert len(re.findall("a broker cannot be reached.*invalid peer certificate", proxy.log.read_text())) == 2
