"""Servers and load for the tests of limits; sizes come from the environment (README.md)."""
import json
import os
import pathlib
import shutil
import subprocess
import tempfile

import pytest

from harness import procfs, servers

BINARY = os.environ.get("GEMINGA_BINARY", "geminga")


def size(name, default):
    return int(os.environ.get(f"GEMINGA_LIMITS_{name}", default))


class Server(servers.Geminga):
    """A server with the load generator aimed at it."""

    def __init__(self, folder, memory_mib, arguments=(), **options):
        super().__init__(BINARY, folder, arguments=["--memory-limit", f"{memory_mib}MiB", *arguments], **options)

    def kill(self):
        assert self.alive(), f"the server ended by itself ({self.process.returncode})"
        super().kill()
        self.killed = True

    def start(self, limit_s=30):
        self.killed = False
        return super().start(limit_s)

    def perf(self, kind, **options):
        """A running load generator; `finish` waits for it."""
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        return subprocess.Popen([BINARY, "perf", kind, "--url", self.pulsar_url, "--json", *arguments],
                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def produce(self, **options):
        return finish(self.perf("produce", **options))

    def consume(self, **options):
        return finish(self.perf("consume", **options))

    def admin(self, method, path, body=None):
        return servers.admin(self.admin_url, method, path, body)

    def rss_mib(self):
        return procfs.rss_mib(self.pid)

    def peak_mib(self):
        return procfs.held_peak_mib(self.pid)


def finish(load, limit_s=120):
    """The result of a load generator."""
    try:
        out, _ = load.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        load.kill()
        out, _ = load.communicate()
        raise AssertionError(f"the load generator did not end within {limit_s} s; it printed:\n{out[-2000:]}") from None
    assert load.returncode == 0, out[-2000:]
    return json.loads(out.splitlines()[-1])


class Starter:
    """Starts servers, and at the end sees that each is alive and has not panicked, and ends it."""

    def __init__(self):
        self.folder, self.started = pathlib.Path(tempfile.mkdtemp(prefix="geminga-limits-")), []

    def __call__(self, memory_mib=256, **options):
        server = Server(self.folder / f"server-{len(self.started)}", memory_mib, **options)
        self.started.append(server)
        server.start()
        return server

    def finish(self):
        try:
            for server in self.started:
                print(f"the end of {server.log.name}:\n{server.log_end()}")
                if not server.killed:
                    server.kill()
                assert "panicked" not in server.log.read_text(errors="replace")
        finally:
            shutil.rmtree(self.folder)


@pytest.fixture
def start():
    starter = Starter()
    yield starter
    starter.finish()


@pytest.fixture(scope="module")
def start_for_module():
    starter = Starter()
    yield starter
    starter.finish()
