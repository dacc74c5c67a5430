"""Clients of the HTTP port that do not finish what they begin, or do not take what they asked for, beside clients that do."""
import contextlib
import http.client
import resource
import socket
import time

import pytest
from harness import procfs
from healthy import Beside, Healthy

LIMIT_MIB = 64
CLIENTS = 300
MANY_CLIENTS = 3000     # together they would have too much, were they not counted
PATIENCE_S = 5
TENANT = b'{"allowedClusters": ["standalone"]}'


class HealthyHttp(Beside):
    """Asks and writes, each time on a connection of its own."""

    @contextlib.contextmanager
    def client(self):
        def one_round():
            assert ask(self.port, "GET", "/admin/v2/clusters") == 200
            assert ask(self.port, "PUT", f"/admin/v2/tenants/t-{self.rounds}", TENANT) == 204
            time.sleep(0.02)

        yield one_round


def ask(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2 * PATIENCE_S)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Content-Type": "application/json"})
        return connection.getresponse().status


@pytest.fixture
def server(start):
    """With healthy clients at work on both ports; at the end all are well and the server has stayed small."""
    server = start(memory_mib=LIMIT_MIB)
    procfs.reset_peak(server.pid)
    with Healthy(server.port), HealthyHttp(server.http_port):
        yield server
    print(f"peak {server.peak_mib():.0f} MiB")
    assert server.peak_mib() < LIMIT_MIB


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 2 * MANY_CLIENTS), hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def write(port, data):
    """A connection on which as much of `data` was sent as was taken at once."""
    s = socket.create_connection(("127.0.0.1", port), timeout=10)
    s.settimeout(0.05)
    with contextlib.suppress(OSError):
        s.sendall(data)
    return s


def beginning(length, sent):
    head = f"PUT /admin/v2/tenants/slow HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    return head.encode() + b"x" * sent


@pytest.mark.parametrize("clients, data", [
    (CLIENTS, b"GET /admin/v2/clusters HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 60 + b"z: " + b"z" * 350_000),
    (MANY_CLIENTS, b"GET /admin/v2/clusters HTTP/1.1\r\nhost: x\r\nz: " + b"z" * 12_000),
    (CLIENTS, beginning(2 << 20, (2 << 20) - 1)),
    (MANY_CLIENTS, beginning(16 << 10, (16 << 10) - 1)),
], ids=["large-heads", "heads", "large-bodies", "bodies"])
def test_many_requests_that_are_never_finished(server, many_descriptors, clients, data):
    with contextlib.ExitStack() as stack:
        begun = []
        for _ in range(clients):
            begun.append(stack.enter_context(write(server.http_port, data)))
            time.sleep(0.001)   # those that behave have to come in between
        until = time.monotonic() + 8
        while time.monotonic() < until:     # each goes on with a byte now and then
            for s in begun:
                with contextlib.suppress(OSError):
                    s.send(data[-1:])
            time.sleep(1)


def test_a_slow_but_steady_upload_is_served(server):
    body = TENANT + b" " * 100_000
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as s:
        s.sendall(beginning(len(body), 0).replace(b"/slow", b"/steady"))
        for at in range(0, len(body), 5_000):
            time.sleep(0.2)     # the pace is what is tested
            s.sendall(body[at:at + 5_000])
        assert s.recv(1000).startswith(b"HTTP/1.1 204 ")


def message(server):
    server.produce(topic="persistent://public/default/large", size=5_000_000, num_messages=1, batching_max_messages=0)
    return "persistent/public/default/large/examinemessage"


def names(server):
    server.admin("PUT", f"persistent/public/default/{'long-' * 200}/partitions", 4000)
    return "persistent/public/default"


@pytest.mark.parametrize("large", [message, names])
def test_many_answers_that_are_not_taken(server, large):
    path = f"/admin/v2/{large(server)}"
    with contextlib.ExitStack() as stack:
        for _ in range(2):      # more of them when those in the way have been ended
            for _ in range(CLIENTS):
                stack.enter_context(write(server.http_port, f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()))
            time.sleep(PATIENCE_S + 1)
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=4 * PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("GET", path)
        assert len(connection.getresponse().read()) > 4_000_000
