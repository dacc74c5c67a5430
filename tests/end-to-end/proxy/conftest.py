"""A server and a proxy before it, and certificates for the proxy."""
import os
import pathlib
import re
import shutil
import signal
import tempfile
import time
import urllib.request

import pytest

from harness import servers
from harness.certificates import make_certificates

BINARY = os.environ.get("GEMINGA_BINARY", "geminga")


class Proxy(servers.Server):
    """Listens on four ports: for both protocols, with TLS and without."""

    def __init__(self, folder, brokers, http_brokers, arguments=()):
        super().__init__(folder)
        self.tls_port, self.https_port = servers.free_port(), servers.free_port()
        self.tls_url = f"pulsar+ssl://127.0.0.1:{self.tls_port}"
        self.https_url = f"https://127.0.0.1:{self.https_port}"
        self.ca = self.folder / "ca.pem"
        make_certificates(self.folder)
        self.arguments = ["--brokers", ",".join(brokers), "--broker-http", ",".join(http_brokers), *arguments]

    def start(self, limit_s=30):
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        self.launch([BINARY, "proxy", "--ready-file", str(ready), "--tls-cert", str(self.folder / "cert.pem"),
                     "--tls-key", str(self.folder / "key.pem"), "--pulsar-addr", f"127.0.0.1:{self.port}",
                     "--tls-addr", f"127.0.0.1:{self.tls_port}", "--http-addr", f"127.0.0.1:{self.http_port}",
                     "--https-addr", f"127.0.0.1:{self.https_port}", *self.arguments])
        end = time.monotonic() + limit_s
        while not servers.read_json(ready):
            if not self.alive() or time.monotonic() > end:
                raise RuntimeError(f"the proxy did not become ready; its log ends:\n{self.log_end()}")
            time.sleep(0.01)

    def metric(self, name):
        with urllib.request.urlopen(f"{self.admin_url}/metrics", timeout=10) as answer:
            return int(re.search(rf"^{name} (\d+)$", answer.read().decode(), re.M)[1])

    def environment(self, tls):
        """What the clients' suites read."""
        where = {"PULSAR_URL": self.tls_url, "ADMIN_URL": self.https_url, "TLS_CA": str(self.ca), "SSL_CERT_FILE": str(self.ca)} \
            if tls else {"PULSAR_URL": self.pulsar_url, "ADMIN_URL": self.admin_url}
        return {**os.environ, **where}


class Setting:
    """A server and a proxy that stands before it."""

    def __init__(self, arguments=()):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="geminga-proxy-"))
        self.broker = servers.Geminga(BINARY, self.folder / "broker")
        self.broker.start()
        self.proxy = Proxy(self.folder / "proxy", [self.broker.pulsar_url], [self.broker.admin_url], arguments)
        self.proxy.start()

    def close(self):
        try:
            for server in (self.proxy, self.broker):
                print(f"the end of the log of {server.folder.name}:\n{server.log_end(3000)}")
                assert server.alive(), f"{server.folder.name} ended by itself"
                server.process.send_signal(signal.SIGTERM)
                assert server.process.wait(60) == 0
                assert "panicked" not in server.log.read_text(errors="replace")
        finally:
            for server in (self.proxy, self.broker):
                if server.alive():
                    server.kill()
            shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def shared():
    """For tests that leave both as they are."""
    setting = Setting()
    yield setting
    setting.close()


@pytest.fixture
def setting():
    setting = Setting()
    yield setting
    setting.close()
