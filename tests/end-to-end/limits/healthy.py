"""Clients that behave, each beside a test."""
import contextlib
import threading
import time

import raw
from harness import frames

TOPIC = "persistent://public/default/healthy"


class Beside:
    """Goes round and round beside a test. Any error, and any round that takes longer than `patience_s`, is a failure at the end."""

    def __init__(self, port, patience_s=5):
        self.port, self.patience_s = port, patience_s
        self.rounds, self.slowest_s, self.error, self.ending = 0, 0.0, None, False
        self.thread, self.first_round = threading.Thread(target=self.run), threading.Event()

    def client(self):
        """A context of what one round is."""
        raise NotImplementedError

    def __enter__(self):
        self.thread.start()
        self.first_round.wait()
        return self

    def __exit__(self, kind, *_):
        self.ending = True
        self.thread.join()
        if kind is None:
            what = type(self).__name__
            print(f"{what}: {self.rounds} rounds, the slowest took {self.slowest_s * 1000:.0f} ms")
            assert self.error is None, f"{what} failed after {self.rounds} rounds: {self.error!r}"
            assert self.slowest_s < self.patience_s

    def run(self):
        try:
            with self.client() as one_round:
                last = False
                while not last:
                    last = self.ending      # one more, which begins when the test has done its worst
                    begin = time.monotonic()
                    one_round()
                    self.slowest_s = max(self.slowest_s, time.monotonic() - begin)
                    self.rounds += 1
                    self.first_round.set()
        except Exception as e:
            self.error = e
        finally:
            self.first_round.set()


class Healthy(Beside):
    """Publishes, receives and acknowledges one message after another on one connection."""

    @contextlib.contextmanager
    def client(self):
        with raw.Client(self.port) as c:
            c.subscribe(TOPIC, "s")
            c.flow(1_000_000)
            name = c.produce_on(TOPIC)

            def one_round():
                c.write(frames.send_frame(1, self.rounds, name, b"healthy"))
                published = raw.receipt_id(c.expect_beside_messages(frames.SEND_RECEIPT))
                received = c.receive(1)
                assert received == [published], (received, published)
                c.ack(received)

            yield one_round
