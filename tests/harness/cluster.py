"""A cluster of processes on loopback: storage nodes in zones, brokers, metadata that they share."""
import json
import os
import pathlib
import signal
import subprocess
import time

from harness import servers

BINARY = os.environ.get("GEMINGA_BINARY", "geminga")


class Process:
    """One role of Geminga; keeps its folder and its ports over restarts, also of another `binary`."""

    def __init__(self, folder, *arguments, binary=BINARY):
        self.folder, self.arguments, self.binary, self.process = folder, list(arguments), binary, None
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self):
        """Starts it, and does not wait until it serves."""
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen([self.binary, *self.arguments, "--ready-file", str(ready)], stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=subprocess.STDOUT)

    def start(self, limit_s=30):
        self.begin()
        return self.wait_until_ready(limit_s)

    def wait_until_ready(self, limit_s=30):
        ready = self.folder / "ready.json"
        since = time.monotonic()
        while not servers.read_json(ready):
            if self.process.poll() is not None or time.monotonic() - since > limit_s:
                raise RuntimeError(f"{self.arguments[0]} did not become ready; its log ends:\n{self.log_end()}")
            time.sleep(0.01)
        self.ready = servers.read_json(ready)
        return self.ready

    def was_started(self):
        return self.process is not None

    def alive(self):
        return self.was_started() and self.process.poll() is None

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
    """Storage nodes, zone by zone and region by region, and brokers, of a cluster that `start` brings up."""

    def __init__(self, folder, url, nodes, zones=3, regions=1, brokers=1, node_arguments=(), broker_arguments=(), binary=BINARY):
        self.folder, self.url, self.binary = pathlib.Path(folder), url, binary
        self.nodes, self.brokers = [], []
        for n in range(nodes):
            own = self.folder / f"node-{n}"
            node = Process(own, "storage-node", "--data-dir", str(own / "data"), "--addr", f"127.0.0.1:{servers.free_port()}",
                           "--http-addr", "127.0.0.1:0", "--metadata-url", url, "--zone", f"zone-{n % zones}", "--region", f"region-{n % regions}",
                           *node_arguments, binary=binary)
            self.nodes.append(node)
        for n in range(brokers):
            port, http_port = servers.free_port(), servers.free_port()
            broker = Process(self.folder / f"broker-{n}", "broker", "--metadata-url", url, "--cluster", "test", "--pulsar-addr",
                             f"127.0.0.1:{port}", "--http-addr", f"127.0.0.1:{http_port}", *broker_arguments, binary=binary)
            broker.address, broker.id, broker.admin_url = f"127.0.0.1:{port}", f"127.0.0.1:{http_port}", f"http://127.0.0.1:{http_port}"
            self.brokers.append(broker)
        self.broker, self.admin_url = self.brokers[0], self.brokers[0].admin_url
        self.pulsar_url = "pulsar://" + ",".join(broker.address for broker in self.brokers)

    def start(self):
        subprocess.run([self.binary, "metadata", "init", "--metadata-url", self.url, "--cluster", "test"], check=True, capture_output=True)
        for process in [*self.nodes, *self.brokers]:
            process.start()

    def owner(self, topic):
        """The broker that serves a topic."""
        answer = servers.lookup(next(broker for broker in self.brokers if broker.alive()).admin_url, topic)
        return next(broker for broker in self.brokers if answer["brokerUrl"].endswith(broker.address))

    def command(self, *arguments):
        """What `geminga admin` prints, as JSON; nothing if it prints nothing."""
        done = subprocess.run([self.binary, "admin", *arguments, "--url", self.admin_url], check=True, capture_output=True, text=True)
        return json.loads(done.stdout) if done.stdout else None

    def admin(self, method, path, body=None):
        return servers.admin(self.admin_url, method, path, body)

    def close(self):
        for process in [*self.brokers, *self.nodes]:
            process.stop()
            assert "panicked" not in (process.folder / "log").read_text(errors="replace"), process.log_end()
