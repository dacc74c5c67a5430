"""Pulsar's binary protocol by hand, with nothing but the standard library: for tests of malformed input, and to time a
first publish without a client's start-up.

A frame is [total size][command size][command] and for SEND also [0x0e01][CRC32C][metadata size][metadata][payload]; the
checksum is optional. A command is a protobuf message whose field 1 is its type and whose field of that number is its body."""
import socket
import struct
import time

CONNECT, CONNECTED, SUBSCRIBE, PRODUCER, SEND, SEND_RECEIPT, SEND_ERROR, MESSAGE, ACK, FLOW = 2, 3, 4, 5, 6, 7, 8, 9, 10, 11
SUCCESS, ERROR, CLOSE_PRODUCER, CLOSE_CONSUMER, PRODUCER_SUCCESS, PING, PONG = 13, 14, 15, 16, 17, 18, 19
REDELIVER, PARTITIONED_METADATA, LOOKUP, LOOKUP_RESPONSE, CONSUMER_STATS, SEEK, GET_LAST_MESSAGE_ID = 20, 21, 23, 24, 25, 28, 29
ACK_RESPONSE, WATCH_TOPIC_LIST, WATCH_TOPIC_LIST_SUCCESS = 38, 64, 65

PROTOCOL_VERSION = 19
MAGIC_CRC32C = b"\x0e\x01"


class Refused(Exception):
    """The server answered with an error or something unexpected."""


def varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(fields):
    """A protobuf message from {field number: int, str or bytes}."""
    return b"".join(field(number, value) for number, value in fields.items())


def command(kind, fields):
    return field(1, kind) + field(kind, message(fields))


def frame(cmd, headers_and_payload=b""):
    return struct.pack(">II", 4 + len(cmd) + len(headers_and_payload), len(cmd)) + cmd + headers_and_payload


def send_frame(producer_id, sequence_id, producer_name, payload, checksum=None, encryption_key=None):
    """A SEND of one message; `checksum`: the CRC32C to claim, none when it is absent."""
    metadata = message({1: producer_name, 2: sequence_id, 3: int(time.time() * 1000), **({13: encryption_key} if encryption_key else {})})
    body = struct.pack(">I", len(metadata)) + metadata + payload
    if checksum is not None:
        body = MAGIC_CRC32C + struct.pack(">I", checksum) + body
    return frame(command(SEND, {1: producer_id, 2: sequence_id, 3: 1}), body)


def parse(data):
    """{field number: last value} of a protobuf message; nested messages stay bytes."""
    fields, at = {}, 0

    def read():
        nonlocal at
        n = shift = 0
        while True:
            b = data[at]
            at += 1
            n |= (b & 127) << shift
            shift += 7
            if b < 128:
                return n

    while at < len(data):
        key = read()
        if key & 7 == 0:
            fields[key >> 3] = read()
        elif key & 7 == 2:
            size = read()
            fields[key >> 3] = data[at:at + size]
            at += size
        else:
            at += 8 if key & 7 == 1 else 4
    return fields


class Connection:
    """A blocking connection. `connect=False` leaves the handshake out."""

    def __init__(self, host, port, timeout_s=10, connect=True):
        self.socket = socket.create_connection((host, port), timeout=timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if connect:
            self.call(command(CONNECT, {1: "frames", 4: PROTOCOL_VERSION}), CONNECTED)

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def write(self, data):
        self.socket.sendall(data)

    def read(self):
        """The next command as (type, body fields), pings answered on the way; OSError when the server closed. What stood
        behind the command is in `payload`."""
        while True:
            size, = struct.unpack(">I", self.exactly(4))
            content = self.exactly(size)
            length, = struct.unpack(">I", content[:4])
            got, self.payload = parse(content[4:4 + length]), content[4 + length:]
            if got[1] == PING:
                self.write(frame(command(PONG, {})))
                continue
            return got[1], parse(got.get(got[1], b""))

    def call(self, cmd, answer):
        self.write(frame(cmd))
        return self.expect(answer)

    def expect(self, answer):
        kind, body = self.read()
        if kind != answer:
            raise Refused(f"expected command {answer}, got {kind}: {body}")
        return body

    def exactly(self, count):
        out = b""
        while len(out) < count:
            part = self.socket.recv(count - len(out))
            if not part:
                raise OSError("closed by the server")
            out += part
        return out


def publish_once(host, port, topic, timeout_s=10):
    """Lookup, producer, one message, receipt."""
    with Connection(host, port, timeout_s) as c:
        found = c.call(command(LOOKUP, {1: topic, 2: 1, 3: 0}), LOOKUP_RESPONSE)
        if found.get(3) == 2:
            raise Refused(f"lookup: {found}")
        producer = c.call(command(PRODUCER, {1: topic, 2: 1, 3: 2}), PRODUCER_SUCCESS)
        c.write(send_frame(1, 0, producer[2], b"first"))
        c.expect(SEND_RECEIPT)
