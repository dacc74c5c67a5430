"""Whatever comes in at a port of the proxy ends at most the connection that it came from."""
import contextlib
import os
import random
import socket
import ssl
import struct
import time
import urllib.request

import healthy
import pytest
import raw
from harness import frames, procfs

PROXY_TARGET = 6
TOPIC = "persistent://public/default/attacked"
CONNECT = frames.frame(frames.command(frames.CONNECT, {1: "attacker", 4: frames.PROTOCOL_VERSION}))
MEMORY_MIB = 150

# The one of the healthy client is replaced below.
Direct = raw.Client


def client_through(target):
    """Clients that name the broker which they want to be connected to."""
    class Through(Direct):
        def __init__(self, port, **options):
            super().__init__(port, connect=False, **options)
            self.call(frames.command(frames.CONNECT, {1: "frames", 4: frames.PROTOCOL_VERSION, PROXY_TARGET: target}), frames.CONNECTED)
    return Through


@pytest.fixture
def proxy(shared, monkeypatch):
    """The proxy, with a client at work behind it; at the end both are well and the proxy is small."""
    through = client_through(f"127.0.0.1:{shared.broker.port}")
    monkeypatch.setattr(healthy.raw, "Client", through)
    with healthy.Healthy(shared.proxy.port):
        yield shared.proxy
    peak = procfs.rss_peak_mib(shared.proxy.pid)
    print(f"peak {peak:.0f} MiB")
    assert peak < MEMORY_MIB
    with urllib.request.urlopen(f"{shared.proxy.admin_url}/healthz", timeout=10) as answer:
        assert answer.status == 200


@pytest.fixture
def rng():
    seed = int(os.environ.get("GEMINGA_LIMITS_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"GEMINGA_LIMITS_SEED={seed}")
    return random.Random(seed)


def connect_to(target):
    return frames.frame(frames.command(frames.CONNECT, {1: "attacker", 4: frames.PROTOCOL_VERSION, PROXY_TARGET: target}))


def lookup(number):
    return frames.frame(frames.command(frames.LOOKUP, {1: TOPIC, 2: number}))


def throw(port, data, timeout_s=2):
    """Sends bytes, and says no more; what comes back, and whether all could be sent, does not matter."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as s:
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        while s.recv(1 << 16):
            pass


def test_noise_on_every_port(proxy, rng):
    for port in (proxy.port, proxy.tls_port, proxy.http_port, proxy.https_port):
        for _ in range(100):
            throw(port, rng.randbytes(rng.randrange(1, 2000)))


def test_changed_bytes_in_what_a_client_says(proxy, rng):
    good = CONNECT + b"".join(lookup(number) for number in range(5))
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        throw(proxy.port, bytes(bad[:rng.randrange(1, len(bad) + 1)]))


def test_targets_that_are_nobodys_business(proxy, shared):
    before = proxy.metric("geminga_proxy_denied_targets")
    targets = ["169.254.169.254:80", f"127.0.0.1:{shared.broker.http_port}", "localhost:22", "", ":", "pulsar://", "x" * 10_000,
               "pulsar://127.0.0.1:1/../", "127.0.0.1:99999", "[::1]:6650", f"user@127.0.0.1:{shared.broker.port}"]
    for target in targets:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as s:
            s.sendall(connect_to(target))
            s.shutdown(socket.SHUT_WR)
            # An empty target is none: a client that asks where topics are.
            while s.recv(1 << 16):
                pass
    assert proxy.metric("geminga_proxy_denied_targets") - before == len(targets) - 1


def test_huge_and_negative_lengths(proxy):
    for prefix in (b"", CONNECT):
        for total, command in [(0xFFFFFFFF, 4), (0x7FFFFFFF, 0x7FFFFFFF), (4, 0xFFFFFFFF), (0, 0), (3, 0)]:
            throw(proxy.port, prefix + struct.pack(">II", total, command) + b"x" * 100)


def test_large_frames_that_never_end(proxy):
    """Each may have room for one large frame; together they get a bounded part of memory, and are sent away in the end."""
    connections = []
    for _ in range(200):
        s = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
        s.sendall(CONNECT)
        connections.append(s)
    time.sleep(1)
    for s in connections:
        with contextlib.suppress(OSError):
            s.setblocking(False)
            s.send(struct.pack(">II", 5_000_000, 4_000_000) + b"x" * 200_000)
    time.sleep(3)
    for s in connections:
        s.close()


def test_clients_that_say_nothing_or_little(proxy):
    """Silence before CONNECT is not waited for, with TLS or without, by HTTP neither."""
    silent = [socket.create_connection(("127.0.0.1", port), timeout=30) for port in (proxy.port, proxy.tls_port) for _ in range(50)]
    dripping = socket.create_connection(("127.0.0.1", proxy.port), timeout=30)
    begin = time.monotonic()
    with contextlib.suppress(OSError):
        for byte in CONNECT:
            dripping.sendall(bytes([byte]))
            time.sleep(1)
    assert 5 < time.monotonic() - begin < 20, "a CONNECT that comes byte by byte is cut off"
    for s in silent:
        with contextlib.suppress(OSError):
            while s.recv(1 << 16):
                pass
        s.close()
    assert time.monotonic() - begin < 25


def test_a_client_that_asks_and_does_not_listen(proxy):
    """Its questions are not taken in without bound."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=3) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.sendall(CONNECT)
        number = 0
        with contextlib.suppress(TimeoutError, OSError):
            while number < 300_000:
                s.sendall(b"".join(lookup(n) for n in range(number, number + 1000)))
                number += 1000
        print(f"{number} questions were taken")
        assert number < 300_000


def test_a_consumer_that_does_not_read_holds_back_its_broker_only(proxy, shared):
    through = client_through(f"127.0.0.1:{shared.broker.port}")
    topic = "persistent://public/default/stalled"
    with through(proxy.port) as consumer, through(proxy.port) as producer:
        consumer.subscribe(topic, "s")
        consumer.flow(100_000)
        name = producer.produce_on(topic)
        for n in range(200):
            producer.write(frames.send_frame(1, n, name, b"x" * 500_000))
            producer.expect(frames.SEND_RECEIPT)
        # 100 MB wait at the broker, not here; and they are not lost.
        assert procfs.rss_mib(proxy.pid) < MEMORY_MIB
        assert len(consumer.receive(200)) == 200


def test_http_that_never_ends(proxy):
    heads = [b"GET /admin/v2/clusters HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 200_000,
             b"PUT /admin/v2/clusters/x HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999\r\n\r\n" + b"x" * 3_000_000,
             b"PUT /admin/v2/clusters/x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nx",
             b"GET http://169.254.169.254/latest HTTP/1.1\r\nhost: a\r\n\r\n",
             b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nhost: a\r\n\r\n"]
    for head in heads:
        for _ in range(10):
            throw(proxy.http_port, head)


def test_tls_that_breaks_off(proxy):
    context = ssl.create_default_context(cafile=proxy.ca)
    for _ in range(20):
        s = socket.create_connection(("127.0.0.1", proxy.tls_port), timeout=10)
        tls = context.wrap_socket(s, server_hostname="127.0.0.1")
        tls.sendall(CONNECT)
        # Without a word, in the middle of what it says.
        socket.socket.close(tls)
