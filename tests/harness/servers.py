"""Starts and ends one server for a test or a benchmark: `geminga standalone`, or Apache Pulsar's standalone.

Both have the same face: `start`, `stop`, `kill`, `pid`, `pulsar_url`, `admin_url`, and are context managers. A server keeps
its folder and its ports over restarts. Only processes started here are ended, by their pid.

As a program it runs Apache Pulsar in the foreground, set up as the client suites expect it:
    python3 -m harness.servers PULSAR_HOME [--port 6650] [--http-port 8080]"""
import argparse
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

from harness import frames


GIVEN = set()


class Server:
    """What both servers have in common. `host:port` are fixed at construction."""

    def __init__(self, folder, port=0, http_port=0):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port, self.http_port = port or free_port(), http_port or free_port()
        self.pulsar_url = f"pulsar://127.0.0.1:{self.port}"
        self.admin_url = f"http://127.0.0.1:{self.http_port}"
        self.log = self.folder / "server.log"
        self.process = None

    @property
    def pid(self):
        return self.process.pid

    @property
    def pids(self):
        """Of all processes that a figure of the server is about."""
        return [self.pid]

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def launch(self, command, environment=None):
        assert not self.alive()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                            env={**os.environ, **(environment or {})})

    def wait_first_publish(self, since, limit_s):
        """Publishes one message on a topic of its own; seconds from `since` (time.monotonic) to its receipt."""
        while True:
            try:
                frames.publish_once("127.0.0.1", self.port, "persistent://public/default/first-publish", 5)
                return time.monotonic() - since
            except (OSError, frames.Refused):
                if not self.alive() or time.monotonic() - since > limit_s:
                    raise RuntimeError(f"no publish acknowledged; the log ends:\n{self.log_end()}") from None
                time.sleep(0.002)

    def log_end(self, size=4000):
        return self.log.read_text(errors="replace")[-size:]

    def stop(self, limit_s=60):
        """SIGTERM; the exit code."""
        if self.process is None:
            return None
        if self.alive():
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise RuntimeError(f"did not end within {limit_s} s of SIGTERM") from None

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.alive():
            try:
                self.stop()
            except RuntimeError as e:
                print(e, file=sys.stderr)


class Geminga(Server):
    name = "geminga"

    def __init__(self, binary, folder, *, arguments=(), data_dir=None, **ports):
        super().__init__(folder, **ports)
        self.binary, self.arguments = binary, list(arguments)
        self.data_dir = pathlib.Path(data_dir or self.folder / "data")

    def start(self, limit_s=30):
        """Returns once the ready file is written; seconds that took."""
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        since = time.monotonic()
        self.launch([str(self.binary), "standalone", "--data-dir", str(self.data_dir), "--ready-file", str(ready),
                     "--pulsar-addr", f"127.0.0.1:{self.port}", "--http-addr", f"127.0.0.1:{self.http_port}", *self.arguments])
        while not read_json(ready):
            if not self.alive() or time.monotonic() - since > limit_s:
                raise RuntimeError(f"geminga did not become ready; the log ends:\n{self.log_end()}")
            time.sleep(0.002)
        return time.monotonic() - since


class ApachePulsar(Server):
    """The published distribution at `home`, without functions worker and stream storage; one ledger replica; fsync on.

    standalone.conf ships journalSyncData=false, with which a message is acknowledged before the disk has it, and without
    batch-index acknowledgement and broker entry metadata, which Geminga has on."""
    name = "pulsar"
    settings = {
        "journalWriteData": "true",
        "journalSyncData": "true",
        "bindAddress": "127.0.0.1",
        "advertisedAddress": "127.0.0.1",
    }
    like_geminga = {
        "acknowledgmentAtBatchIndexLevelEnabled": "true",
        "exposingBrokerEntryMetadataToClientEnabled": "true",
        "brokerEntryMetadataInterceptors": "org.apache.pulsar.common.intercept.AppendBrokerTimestampMetadataInterceptor,"
                                           "org.apache.pulsar.common.intercept.AppendIndexMetadataInterceptor",
    }

    def __init__(self, home, folder, *, settings=None, **ports):
        super().__init__(folder, **ports)
        self.home, self.bookie_port = pathlib.Path(home), free_port()
        self.changes = {**self.settings, **(settings or {})}

    def start(self, limit_s=180):
        """Returns once a publish is acknowledged; seconds that took."""
        configuration = self.folder / "standalone.conf"
        changes = {**self.changes, "brokerServicePort": str(self.port), "webServicePort": str(self.http_port)}
        lines = [line for line in (self.home / "conf/standalone.conf").read_text().splitlines()
                 if line.split("=")[0].strip() not in changes]
        configuration.write_text("\n".join(lines + [f"{k}={v}" for k, v in changes.items()]) + "\n")
        since = time.monotonic()
        self.launch([str(self.home / "bin/pulsar"), "standalone", "--config", str(configuration),
                     "--advertised-address", "127.0.0.1", "--bookkeeper-port", str(self.bookie_port),
                     "--metadata-dir", str(self.folder / "metadata"), "--bookkeeper-dir", str(self.folder / "bookkeeper"),
                     "--no-functions-worker", "--no-stream-storage"],
                    {"PULSAR_LOG_DIR": str(self.folder / "logs"), "PULSAR_MEM": "-Xms2g -Xmx2g -XX:MaxDirectMemorySize=4g"})
        return self.wait_first_publish(since, limit_s)


def free_port():
    """A port that nobody listens on, below those that the kernel gives to outgoing connections: it stays free over restarts. None is given
    twice, nor by two workers of pytest-xdist at a time: whoever asked for it may listen much later."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = random.randrange(20_000 + worker, 32_000, workers)
        if port in GIVEN:
            continue
        GIVEN.add(port)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition, limit_s=30):
    """Until it is true."""
    since = time.monotonic()
    while not condition():
        assert time.monotonic() - since < limit_s, "what was waited for does not come"
        time.sleep(0.05)


def read_json(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def admin(url, method, path, body=None, limit_s=60):
    """One call of the admin REST API below /admin/v2/; the decoded answer. A refusal raises urllib.error.HTTPError."""
    target = f"{url}/admin/v2/{path.replace('://', '/')}"
    while True:
        request = urllib.request.Request(target, method=method, headers={"Content-Type": "application/json"},
                                         data=None if body is None else json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=limit_s) as answer:
                content = answer.read()
            return json.loads(content) if content else None
        except urllib.error.HTTPError as e:
            # urllib follows redirects only where nothing is changed.
            if e.code != 307:
                raise
            target = e.headers["Location"]


def lookup(url, topic):
    """Where a topic is served, as the HTTP lookup of the broker at `url` says."""
    with urllib.request.urlopen(f"{url}/lookup/v2/topic/{topic.replace('://', '/')}", timeout=60) as answer:
        return json.loads(answer.read())


def main():
    parser = argparse.ArgumentParser(description="runs Apache Pulsar in the foreground, set up as the client suites expect it")
    parser.add_argument("home")
    parser.add_argument("--port", type=int, default=6650)
    parser.add_argument("--http-port", type=int, default=8080)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = ApachePulsar(options.home, folder, port=options.port, http_port=options.http_port, settings=ApachePulsar.like_geminga)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        with server:
            print(server.pulsar_url, server.admin_url, "pid", server.pid, flush=True)
            server.process.wait()


if __name__ == "__main__":
    main()
