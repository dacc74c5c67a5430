"""A cluster of processes on loopback: storage nodes in zones, brokers, metadata that they share."""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

import pytest

from harness import servers
from harness.postgres import Postgres

BINARY = os.environ.get("GEMINGA_BINARY", "geminga")


class Process:
    """One role of Geminga; keeps its folder and its ports over restarts."""

    def __init__(self, folder, *arguments):
        self.folder, self.arguments, self.process = folder, list(arguments), None
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, limit_s=30):
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen([BINARY, *self.arguments, "--ready-file", str(ready)], stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=subprocess.STDOUT)
        since = time.monotonic()
        while not servers.read_json(ready):
            if self.process.poll() is not None or time.monotonic() - since > limit_s:
                raise RuntimeError(f"{self.arguments[0]} did not become ready; its log ends:\n{self.log_end()}")
            time.sleep(0.01)
        self.ready = servers.read_json(ready)
        return self.ready

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        assert self.alive(), f"{self.arguments[0]} ended by itself; its log ends:\n{self.log_end()}"
        self.process.kill()
        self.process.wait()

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def stop(self):
        if self.alive():
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(60) == 0, self.log_end()

    def log_end(self, size=4000):
        return (self.folder / "log").read_text(errors="replace")[-size:]


class Cluster:
    def __init__(self, folder, url, nodes, zones=3, brokers=1, node_arguments=()):
        self.folder = pathlib.Path(folder)
        subprocess.run([BINARY, "metadata", "init", "--metadata-url", url, "--cluster", "test"], check=True, capture_output=True)
        self.nodes = []
        for n in range(nodes):
            own = self.folder / f"node-{n}"
            node = Process(own, "storage-node", "--data-dir", str(own / "data"), "--addr", f"127.0.0.1:{servers.free_port()}",
                           "--http-addr", "127.0.0.1:0", "--metadata-url", url, "--zone", f"zone-{n % zones}", "--garbage-interval", "2s",
                           *node_arguments)
            node.start()
            self.nodes.append(node)
        self.brokers = []
        for n in range(brokers):
            port, http_port = servers.free_port(), servers.free_port()
            broker = Process(self.folder / f"broker-{n}", "broker", "--metadata-url", url, "--cluster", "test", "--pulsar-addr",
                             f"127.0.0.1:{port}", "--http-addr", f"127.0.0.1:{http_port}")
            broker.address, broker.id, broker.admin_url = f"127.0.0.1:{port}", f"127.0.0.1:{http_port}", f"http://127.0.0.1:{http_port}"
            broker.start()
            self.brokers.append(broker)
        self.broker, self.admin_url = self.brokers[0], self.brokers[0].admin_url
        self.pulsar_url = "pulsar://" + ",".join(broker.address for broker in self.brokers)

    def owner(self, topic):
        """The broker that serves a topic."""
        answer = servers.lookup(next(broker for broker in self.brokers if broker.alive()).admin_url, topic)
        return next(broker for broker in self.brokers if answer["brokerUrl"].endswith(broker.address))

    def command(self, *arguments):
        """What `geminga admin` prints, as JSON; nothing if it prints nothing."""
        done = subprocess.run([BINARY, "admin", *arguments, "--url", self.admin_url], check=True, capture_output=True, text=True)
        return json.loads(done.stdout) if done.stdout else None

    def admin(self, method, path, body=None):
        return servers.admin(self.admin_url, method, path, body)

    def close(self):
        for process in [*self.brokers, *self.nodes]:
            process.stop()
            assert "panicked" not in (process.folder / "log").read_text(errors="replace"), process.log_end()


@pytest.fixture(scope="session")
def postgres():
    server = Postgres()
    yield server
    server.close()


@pytest.fixture
def cluster(request, postgres):
    """Five nodes in three zones, metadata in PostgreSQL."""
    yield from run_cluster(postgres.new_database(), 5)


@pytest.fixture
def cluster_on_sqlite(tmp_path):
    """Four nodes, metadata in a file that the processes share: for one machine."""
    yield from run_cluster(f"sqlite:{tmp_path / 'metadata.db'}", 4)


@pytest.fixture
def brokers(postgres):
    """Three brokers on three nodes in three zones, metadata in PostgreSQL."""
    yield from run_cluster(postgres.new_database(), 3, brokers=3)


@pytest.fixture
def cluster_that_repairs(postgres):
    """Six nodes in three zones that miss each other soon."""
    options = ["--lost-node-after", "6s", "--open-ledger-grace", "3s", "--audit-interval", "2s", "--self-check-interval", "5s"]
    yield from run_cluster(postgres.new_database(), 6, node_arguments=options)


def run_cluster(url, nodes, **options):
    folder = tempfile.mkdtemp(prefix="geminga-cluster-")
    made = Cluster(folder, url, nodes, **options)
    try:
        yield made
        made.close()
    finally:
        for process in [*made.brokers, *made.nodes]:
            print(f"the end of the log of {process.folder.name}:\n{process.log_end(3000)}")
        for process in [*made.brokers, *made.nodes]:
            if process.alive():
                process.process.kill()
                process.process.wait()
        shutil.rmtree(folder)
