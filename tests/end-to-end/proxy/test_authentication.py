"""A real broker that wants tokens, behind the proxy, and a client that reaches nothing but the proxy."""
import base64
import json
import os
import pathlib
import secrets
import subprocess
import sys
import time
import urllib.request

import pulsar
import pytest
from conftest import BINARY

from harness import servers
from tokens import token

TOPIC = "persistent://public/default/with-tokens"
HERE, THERE = "10.98.76.1", "10.98.76.2"
SECONDS = 10


class PulsarWithTokens(servers.ApachePulsar):
    """Asks each connection for a new token when its own has run out, and breaks it if none comes."""

    def __init__(self, folder, key):
        self.token = token(key, "admin", lasts_s=3600)
        super().__init__(os.environ["PULSAR_HOME"], folder, settings={
            "authenticationEnabled": "true",
            "authenticationProviders": "org.apache.pulsar.broker.authentication.AuthenticationProviderToken",
            "tokenSecretKey": f"data:;base64,{base64.b64encode(key).decode()}",
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
                client.create_producer(TOPIC).send(b"first")
                return time.monotonic() - since
            except pulsar.PulsarException:
                if not self.alive() or time.monotonic() - since > limit_s:
                    raise RuntimeError(f"no publish acknowledged; the log ends:\n{self.log_end()}") from None
                time.sleep(1)
            finally:
                client.close()

    def sessions(self):
        """Since when the topic's producer and consumer are connected."""
        request = urllib.request.Request(f"{self.admin_url}/admin/v2/{TOPIC.replace('://', '/')}/stats", headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            stats = json.load(answer)
        return [one["connectedSince"] for one in stats["publishers"] + stats["subscriptions"]["s"]["consumers"]]


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


@pytest.mark.skipif("PULSAR_HOME" not in os.environ, reason="PULSAR_HOME names no distribution of Apache Pulsar")
def test_tokens_are_renewed_on_connections_that_stay(private_network, tmp_path):
    key, ready, program = secrets.token_bytes(32), tmp_path / "ready.json", pathlib.Path(__file__).parent / "behind.py"
    with PulsarWithTokens(tmp_path / "pulsar", key) as broker:
        port = servers.free_port()
        command = [BINARY, "proxy", "--brokers", broker.pulsar_url, "--broker-http", broker.admin_url, "--pulsar-addr", f"{HERE}:{port}",
                   "--http-addr", f"{HERE}:{servers.free_port()}", "--ready-file", str(ready)]
        with open(tmp_path / "proxy.log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as proxy:
            try:
                servers.wait_for(lambda: servers.read_json(ready))
                for address in [broker.pulsar_url, broker.admin_url]:
                    host, own_port = address.split("//")[1].split(":")
                    assert subprocess.run([*private_network, sys.executable, "-c", f"import socket; socket.create_connection(({host!r}, {own_port}), 2)"],
                                          stderr=subprocess.DEVNULL).returncode, "the client reaches a broker"
                client = subprocess.Popen([*private_network, sys.executable, str(program), f"pulsar://{HERE}:{port}", key.hex(), TOPIC, str(SECONDS)],
                                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                with client:
                    time.sleep(SECONDS / 3)
                    before = broker.sessions()
                    seen = json.loads(next(line for line in client.stdout if line.startswith("{")))     # its logger writes there, too
                    assert broker.sessions() == before and len(before) == 2, "a connection was broken"
            finally:
                proxy.terminate()
                assert proxy.wait(60) == 0
    print(seen)
    assert seen["messages"] > 50 and seen["tokens"] >= 3
