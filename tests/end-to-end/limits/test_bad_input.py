"""Whatever comes in at either port ends at most the connection that it came from."""
import concurrent.futures
import contextlib
import os
import random
import socket
import struct
import time
import urllib.request

import pytest
import raw
from conftest import size
from harness import frames, procfs
from healthy import Healthy

TOPIC = "persistent://public/default/attacked"
LIMIT_MIB = 64
CONNECT = frames.frame(frames.command(frames.CONNECT, {1: "attacker", 4: frames.PROTOCOL_VERSION}))


@pytest.fixture(scope="module")
def attacked(start_for_module):
    return start_for_module(memory_mib=LIMIT_MIB)


@pytest.fixture
def server(attacked):
    """The server, with a healthy client at work; at the end both are well and the server has stayed small."""
    procfs.reset_peak(attacked.pid)
    with Healthy(attacked.port):
        yield attacked
    print(f"peak {attacked.peak_mib():.0f} MiB")
    assert attacked.peak_mib() < LIMIT_MIB
    with urllib.request.urlopen(f"{attacked.admin_url}/healthz", timeout=10) as answer:
        assert answer.status == 200


@pytest.fixture
def rng():
    seed = int(os.environ.get("GEMINGA_LIMITS_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"GEMINGA_LIMITS_SEED={seed}")
    return random.Random(seed)


def session():
    """The frames of a client that does a little of everything."""
    return [
        CONNECT,
        *(frames.frame(frames.command(kind, body)) for kind, body in [
            (frames.LOOKUP, {1: TOPIC, 2: 1}),
            (frames.PARTITIONED_METADATA, {1: TOPIC, 2: 2}),
            (frames.PRODUCER, {1: TOPIC, 2: 1, 3: 3, 4: "attacker"}),
            (frames.SUBSCRIBE, {1: TOPIC, 2: "s", 3: raw.SHARED, 4: 1, 5: 4, 13: raw.EARLIEST}),
            (frames.FLOW, {1: 1, 2: 100}),
        ]),
        frames.send_frame(1, 0, "attacker", b"payload"),
        *(frames.frame(frames.command(kind, body)) for kind, body in [
            (frames.ACK, {1: 1, 2: 0, 3: frames.message({1: 1, 2: 0}), 8: 5}),
            (frames.GET_LAST_MESSAGE_ID, {1: 1, 2: 6}),
            (frames.REDELIVER, {1: 1}),
            (frames.SEEK, {1: 1, 2: 7, 3: frames.message({1: 1, 2: 0})}),
            (frames.CLOSE_CONSUMER, {1: 1, 2: 8}),
            (frames.CLOSE_PRODUCER, {1: 1, 2: 9}),
        ]),
    ]


def throw(port, data):
    """Sends bytes, and says no more; what comes back, and whether all could be sent, does not matter."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as s:
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        while s.recv(1 << 16):
            pass


def in_parallel(work, count, threads=8):
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(count)))


def test_random_bytes_on_both_ports(server, rng):
    inputs = [rng.randbytes(rng.choice([1, 3, 4, 9, 100, 5000])) for _ in range(size("ROUNDS", 400))]
    in_parallel(lambda i: throw(server.port, inputs[i]), len(inputs))
    in_parallel(lambda i: throw(server.port, CONNECT + inputs[i]), len(inputs))
    in_parallel(lambda i: throw(server.http_port, inputs[i]), len(inputs))


def test_damaged_sessions(server, rng):
    """Bits flipped, pieces cut out, repeated or exchanged, in frames that were right."""
    def damage():
        parts = session()
        if rng.random() < 0.3:
            rng.shuffle(parts)
        data = bytearray(b"".join(parts))
        for _ in range(rng.choice([1, 1, 2, 8])):
            at = rng.randrange(len(data))
            match rng.randrange(4):
                case 0: data[at] ^= 1 << rng.randrange(8)
                case 1: data[at] = rng.randrange(256)
                case 2: del data[at:at + rng.choice([1, 2, 50])]
                case 3: data[at:at] = data[at:at + rng.choice([1, 4, 50])]
        return bytes(data)

    inputs = [damage() for _ in range(size("ROUNDS", 400))]
    in_parallel(lambda i: throw(server.port, inputs[i]), len(inputs))


def test_every_truncation(server):
    data = b"".join(session())
    in_parallel(lambda i: throw(server.port, data[:i]), len(data))


@pytest.mark.parametrize("header", [
    b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff\x00\x00\x00\x10", b"\x10\x00\x00\x00\x00\x00\x00\x04",
    b"\x00\x00\x00\x08\x00\x00\x00\xff" + bytes(4), b"\x00\x00\x00\x08\xff\xff\xff\xff" + bytes(4),
    b"\x00\x00\x00\x00", b"\x00\x00\x00\x02\x00\x00",
], ids=lambda header: header.hex())
def test_lengths_that_cannot_be_close_the_connection(server, header):
    with raw.Client(server.port, timeout_s=5) as c:
        c.write(header)
        assert c.closed_by_server()


def test_many_connections_announce_large_frames(server):
    """Each may announce 5 MiB; what has been announced and has not come takes no memory."""
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            c = stack.enter_context(raw.Client(server.port))
            c.write(struct.pack(">II", 5 << 20, 40) + b"\x08")


def test_many_connections_stop_inside_large_frames(start):
    """What has come of unfinished frames counts as well: 100 connections with 4 MiB each, on a server of their own."""
    server = start(memory_mib=LIMIT_MIB)
    half = frames.send_frame(1, 0, "x", bytes(5 << 20))[:4 << 20]
    with Healthy(server.port), contextlib.ExitStack() as stack:
        for _ in range(100):
            c = stack.enter_context(raw.Client(server.port))
            c.socket.settimeout(0.2)
            with contextlib.suppress(OSError):
                c.write(half)
    print(f"peak {server.peak_mib():.0f} MiB")
    assert server.peak_mib() < LIMIT_MIB


@pytest.mark.parametrize("kind", [frames.PRODUCER, frames.SUBSCRIBE, frames.SEND, frames.ACK, frames.LOOKUP, frames.FLOW])
def test_commands_before_connect(server, kind):
    with raw.Client(server.port, timeout_s=5, connect=False) as c:
        c.write(frames.frame(frames.command(kind, {1: TOPIC, 2: 1, 3: 1})))
        assert c.closed_by_server()


def misordered():
    return {
        "send-to-unknown-producer": frames.send_frame(77, 0, "nobody", b"lost"),
        "ack-to-unknown-consumer": frames.frame(frames.command(frames.ACK, {1: 77, 2: 0, 3: frames.message({1: 1, 2: 1})})),
        "flow-on-nothing": frames.frame(frames.command(frames.FLOW, {1: 77, 2: 1000})),
        "redeliver-on-nothing": frames.frame(frames.command(frames.REDELIVER, {1: 77})),
        "close-unknown-producer": frames.frame(frames.command(frames.CLOSE_PRODUCER, {1: 77, 2: 1})),
        "close-unknown-consumer": frames.frame(frames.command(frames.CLOSE_CONSUMER, {1: 77, 2: 1})),
        "seek-on-nothing": frames.frame(frames.command(frames.SEEK, {1: 77, 2: 1, 3: frames.message({1: 1, 2: 1})})),
        "pong-without-ping": frames.frame(frames.command(frames.PONG, {})),
        "flow-of-nothing": frames.frame(frames.command(frames.FLOW, {1: 1, 2: 0})),
        "flow-without-end": frames.frame(frames.command(frames.FLOW, {1: 1, 2: 2**32 - 1})) * 3,
        "ack-of-what-never-was": frames.frame(frames.command(frames.ACK, {1: 1, 2: 0, 3: frames.message({1: 2**62, 2: 2**62})})),
    }


@pytest.mark.parametrize("name", misordered())
def test_misordered_commands_leave_the_connection_usable(server, name):
    with raw.Client(server.port) as c:
        c.subscribe(TOPIC, "s")
        c.write(misordered()[name])
        c.ping()
        producer = c.produce_on(TOPIC)
        c.flow(10)
        c.write(frames.send_frame(1, 0, producer, b"after"))
        c.expect_beside_messages(frames.SEND_RECEIPT)
        c.ack(c.receive(1))


@pytest.mark.parametrize("ack,reason", [
    ({1: 1, 2: 0, 3: frames.message({1: 1, 2: 1}), 6: 1, 7: 1}, "acknowledging in a transaction is not supported"),
    ({1: 1, 2: 1}, "a cumulative acknowledgement names one message"),
], ids=["transaction", "cumulative"])
def test_acknowledgements_that_cannot_be_are_told(start, ack, reason):
    """In the log when nobody asked for a receipt, with which the answer would come."""
    server = start(arguments=["--log-level", "info,geminga_protocol_pulsar=debug"])
    with raw.Client(server.port) as c:
        c.subscribe(TOPIC, "s")
        c.write(frames.frame(frames.command(frames.ACK, ack)))
        c.ping()
        assert reason in server.log.read_text()
        c.write(frames.frame(frames.command(frames.ACK, {**ack, 8: 1})))
        assert c.expect(frames.ACK_RESPONSE)[5].decode() == reason


def test_ids_in_use_are_answered(server):
    with raw.Client(server.port) as c:
        c.produce_on(TOPIC)
        c.write(frames.frame(frames.command(frames.PRODUCER, {1: TOPIC + "-other", 2: 1, 3: 99})))
        assert c.read()[0] in (frames.ERROR, frames.PRODUCER_SUCCESS)
        c.subscribe(TOPIC, "s")
        c.write(frames.frame(frames.command(frames.SUBSCRIBE, {1: TOPIC + "-other", 2: "s", 3: raw.SHARED, 4: 1, 5: 100})))
        assert c.read()[0] in (frames.ERROR, frames.SUCCESS)
        c.ping()


def test_unknown_command_types(server):
    """Answered with an error that names them, never with silence that a client would wait in; and the connection goes on."""
    with raw.Client(server.port) as c:
        for kind in (0, 1, 70, 99, 500, 2**31 - 1):
            for request in (7, None) if 1 < kind < 1000 else (None,):
                body = b"" if request is None else frames.field(kind, frames.message({1: request, 2: 8}))
                c.write(frames.frame(frames.field(1, kind) + body))
                answer = c.expect(frames.ERROR)
                assert answer[1] == (2**64 - 1 if request is None else request)
                assert f"command {kind} " in answer[3].decode()
                c.write(frames.frame(frames.command(frames.PING, {})))
                c.expect(frames.PONG)


def test_wrong_checksum_is_refused_and_the_next_message_is_not(server):
    with raw.Client(server.port) as c:
        name = c.produce_on(TOPIC)
        c.write(frames.send_frame(1, 0, name, b"damaged", checksum=0x12345678))
        assert c.expect(frames.SEND_ERROR)[3] == raw.CHECKSUM_ERROR
        c.write(frames.send_frame(1, 0, name, b"right"))
        c.expect(frames.SEND_RECEIPT)


def test_metadata_that_does_not_parse_is_not_stored(server):
    topic = TOPIC + "-metadata"
    with raw.Client(server.port) as c:
        c.subscribe(topic, "s")
        c.flow(10)
    for metadata in (b"\xff" * 20, b"", struct.pack(">I", 1 << 30), b"\x0a\xff\xff\xff\xff\x0f"):
        with raw.Client(server.port, timeout_s=5) as c:
            c.produce_on(topic)
            body = struct.pack(">I", len(metadata)) + metadata
            c.write(frames.frame(frames.command(frames.SEND, {1: 1, 2: 0, 3: 1}), body))
            with contextlib.suppress(ConnectionError):
                assert c.read()[0] == frames.SEND_ERROR, metadata
    with raw.Client(server.port) as c:
        c.subscribe(topic, "s")
        c.flow(10)
        assert c.receive_until_silence(0.3) == []


def test_slow_writers(server):
    """Twenty clients that send a byte at a time come to their receipts."""
    def slowly(i):
        data = b"".join(frames.frame(frames.command(kind, body)) for kind, body in [
            (frames.CONNECT, {1: "slow", 4: frames.PROTOCOL_VERSION}), (frames.PRODUCER, {1: TOPIC, 2: 1, 3: 1, 4: f"slow-{i}"}),
        ]) + frames.send_frame(1, 0, f"slow-{i}", b"slow")
        with raw.Client(server.port, connect=False) as c:
            for byte in data:
                c.write(bytes([byte]))
                time.sleep(0.01)      # the pace is what is tested
            c.expect(frames.CONNECTED)
            c.expect(frames.PRODUCER_SUCCESS)
            c.expect(frames.SEND_RECEIPT)

    in_parallel(slowly, 20, threads=20)


def test_half_open_connections(server):
    """A thousand that never say a word, on both ports."""
    with contextlib.ExitStack() as stack:
        for port in [server.port, server.http_port] * 500:
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
        with raw.Client(server.port) as c:
            c.ping()
        server.admin("GET", "clusters")


def test_garbage_over_http(server, rng):
    for data in [
        b"GET / HTTP/1.1\r\n\r\n", b"GET /healthz HTTP/9.9\r\n\r\n", b"\r\n" * 5000, b"GET " + b"/a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 10_000 + b"\r\n", b"GET / HTTP/1.1\r\nx: " + b"y" * 2_000_000 + b"\r\n\r\n",
        b"PUT /admin/v2/persistent/public/default/%ff%00 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PUT /admin/v2/tenants/x HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n{",
        b"POST /admin/v2/namespaces/public/default/retention HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: 100000\r\n\r\n" + b"[" * 100_000,
        b"PUT /admin/v2/tenants/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(1000), CONNECT,
    ]:
        for port in (server.http_port, server.port):
            throw(port, data)


def test_large_bodies_over_http(server):
    """300 MB that no call wants."""
    def post(_):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.http_port), timeout=5) as s:
            s.sendall(b"PUT /admin/v2/tenants/x HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 30000000\r\n\r\n\"")
            for _ in range(30):
                s.sendall(b"x" * 1_000_000)
            s.recv(1000)

    in_parallel(post, 10, threads=10)


def test_thousands_of_connects_and_disconnects(server):
    """Rude ones: a third says nothing, a third ends after the handshake, a third in the middle of having opened things."""
    opened = session()

    def connect(i):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=5) as s:
            if i % 3 == 0:
                # No farewell: the server gets a reset.
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            s.sendall(b"".join(opened[:[0, 1, 5][i % 3]]))

    connect(0)
    in_parallel(connect, 3000, threads=16)
    until = time.monotonic() + 20
    while (left := len(os.listdir(f"/proc/{server.pid}/fd"))) > 60:
        assert time.monotonic() < until, f"{left} files are still open"
        time.sleep(0.05)
