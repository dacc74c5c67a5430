"""A Pulsar client without any intelligence: commands out, commands in, over one blocking socket.

It never reconnects, retries or asks for permits by itself; whatever the server does to a connection is seen by the test."""
import collections
import socket

from harness import frames

EXCLUSIVE, SHARED = 0, 1
EARLIEST = 1
ACKS_IN_A_COMMAND = 2000
PERSISTENCE_ERROR, CHECKSUM_ERROR = 2, 9


class Client(frames.Connection):
    """Reads through a buffer, which hundreds of thousands of small messages need."""

    def __init__(self, port, timeout_s=20, receive_buffer=None, connect=True):
        self.buffer, self.at, self.requests, self.messages = b"", 0, 0, collections.deque()
        super().__init__("127.0.0.1", port, timeout_s, connect)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)

    def exactly(self, count):
        while len(self.buffer) - self.at < count:
            part = self.socket.recv(1 << 18)
            if not part:
                raise ConnectionError("closed by the server")
            self.buffer, self.at = self.buffer[self.at:] + part, 0
        self.at += count
        return self.buffer[self.at - count:self.at]

    def request(self):
        self.requests += 1
        return self.requests

    def produce_on(self, topic, producer_id=1):
        """The name that the server gave."""
        body = {1: topic, 2: producer_id, 3: self.request()}
        return self.call(frames.command(frames.PRODUCER, body), frames.PRODUCER_SUCCESS)[2].decode()

    def subscribe(self, topic, subscription, kind=SHARED, consumer_id=1):
        body = {1: topic, 2: subscription, 3: kind, 4: consumer_id, 5: self.request(), 13: EARLIEST}
        self.call(frames.command(frames.SUBSCRIBE, body), frames.SUCCESS)

    def flow(self, permits, consumer_id=1):
        self.write(frames.frame(frames.command(frames.FLOW, {1: consumer_id, 2: permits})))

    def receive(self, count):
        """The ids (ledger, entry) of the next `count` messages."""
        return [message_id(self.messages.popleft() if self.messages else self.expect(frames.MESSAGE)) for _ in range(count)]

    def receive_until_silence(self, seconds):
        """The ids of what comes until nothing has come for that long."""
        found, before = [], self.socket.gettimeout()
        self.socket.settimeout(seconds)
        try:
            while True:
                found += self.receive(1)
        except TimeoutError:
            return found
        finally:
            self.socket.settimeout(before)

    def ack(self, ids, consumer_id=1):
        """Acknowledges messages one by one, and returns when the server has confirmed all."""
        for begin in range(0, len(ids), ACKS_IN_A_COMMAND):
            some = b"".join(frames.field(3, frames.message({1: ledger, 2: entry}))
                            for ledger, entry in ids[begin:begin + ACKS_IN_A_COMMAND])
            body = frames.message({1: consumer_id, 2: 0}) + some + frames.message({8: self.request()})
            self.write(frames.frame(frames.field(1, frames.ACK) + frames.field(frames.ACK, body)))
            answer = self.expect_beside_messages(frames.ACK_RESPONSE)
            if answer.get(4):
                raise frames.Refused(f"acknowledgement refused: {answer}")

    def expect_beside_messages(self, answer):
        """As `expect`; messages that come before the answer are kept for `receive`."""
        while True:
            kind, body = self.read()
            if kind == frames.MESSAGE:
                self.messages.append(body)
            elif kind == answer:
                return body
            else:
                raise frames.Refused(f"expected command {answer}, got {kind}: {body}")

    def ping(self):
        """Returns when the server answered; other commands before that are dropped."""
        self.write(frames.frame(frames.command(frames.PING, {})))
        while self.read()[0] != frames.PONG:
            pass

    def closed_by_server(self):
        """Reads until the server closes; False when it has not within the time limit."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True


def message_id(body):
    """(ledger, entry) of a body that has a message id as its field 2, as MESSAGE."""
    fields = frames.parse(body[2])
    return fields[1], fields[2]


def receipt_id(body):
    fields = frames.parse(body[3])
    return fields[1], fields[2]
