"""A few requests to a storage node over version 2 of BookKeeper's protocol, made by hand: what a test wants to say or see
without a client that would go round trouble."""
import socket
import struct

OK, NO_LEDGER, NO_ENTRY, IO, UNAUTHORIZED, FENCED, READ_ONLY, UNKNOWN = 0, 1, 2, 101, 102, 104, 105, 107
ADD, READ = 1, 2
FENCE, RECOVERY_ADD = 1, 2
KEY = b"k" * 20


class Bookie:
    def __init__(self, address, limit_s=20):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), limit_s)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def call(self, operation, flags, content):
        """Code and what follows ledger and entry in the answer."""
        frame = struct.pack(">I", 2 << 24 | operation << 16 | flags) + content
        self.socket.sendall(struct.pack(">I", len(frame)) + frame)
        answer = self.take(struct.unpack(">I", self.take(4))[0])
        return struct.unpack(">i", answer[4:8])[0], answer[24:]

    def take(self, size):
        taken = b""
        while len(taken) < size:
            part = self.socket.recv(size - len(taken))
            if not part:
                raise ConnectionError("the node closed the connection")
            taken += part
        return taken

    def add(self, ledger, entry, payload, key=KEY, flags=0):
        """Code. The payload is behind the head that every entry has; a node does not look at its digest."""
        return self.call(ADD, flags, key + head(ledger, entry) + payload)[0]

    def read(self, ledger, entry):
        """Code, and the entry as it is stored."""
        return self.call(READ, 0, struct.pack(">qq", ledger, entry))

    def fence(self, ledger, key=KEY):
        """Code of a fencing read of the last entry."""
        return self.call(READ, FENCE, struct.pack(">qq", ledger, -1) + key)[0]


def head(ledger, entry):
    return struct.pack(">qqqq", ledger, entry, entry - 1, 0)
