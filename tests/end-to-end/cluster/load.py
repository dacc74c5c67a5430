"""Load on a topic by the real Python client, and the check of what has become of it."""
import threading
import time

import pulsar


class Load:
    """A producer that sends numbered messages one batch after the other, for as long as it is let.

    The subscription `all` keeps everything: what no subscription needs is trimmed. `latencies` has the seconds from the send to the receipt of each message.
    Between two bursts of fifty it sleeps for `pause_s`."""

    def __init__(self, url, topic, keys=5, name=None, pause_s=0.01):
        self.client = pulsar.Client(url, operation_timeout_seconds=60, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
        self.client.subscribe(topic, "all", initial_position=pulsar.InitialPosition.Earliest).close()
        self.producer = self.client.create_producer(topic, producer_name=name, send_timeout_millis=60_000, block_if_queue_full=True, max_pending_messages=200)
        self.acknowledged, self.failed, self.latencies, self.stopping = [], [], [], False
        self.keys, self.pause_s, self.thread = keys, pause_s, threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        number = 0
        while not self.stopping:
            self.send(number)
            number += 1
            if number % 50 == 0:
                time.sleep(self.pause_s)
        self.producer.flush()

    @property
    def slowest(self):
        return max(self.latencies, default=0.0)

    def send(self, number):
        since = time.monotonic()

        def done(result, _):
            self.latencies.append(time.monotonic() - since)
            (self.acknowledged if result == pulsar.Result.Ok else self.failed).append(number)

        self.producer.send_async(str(number).encode(), done, partition_key=str(number % self.keys))

    def finish(self):
        self.stopping = True
        self.thread.join(120)
        assert not self.thread.is_alive(), "the producer hangs"
        self.client.close()
        return self.acknowledged


class Consuming:
    """A consumer that acknowledges whatever comes, for as long as it is let. `numbers` has what has come."""

    def __init__(self, url, topic, subscription):
        self.client = pulsar.Client(url, operation_timeout_seconds=60, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
        self.consumer = self.client.subscribe(topic, subscription, initial_position=pulsar.InitialPosition.Earliest)
        self.numbers, self.stopping = [], False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.stopping:
            try:
                message = self.consumer.receive(timeout_millis=200)
            except pulsar.Timeout:
                continue
            self.numbers.append(int(message.data()))
            self.consumer.acknowledge(message)

    def finish(self, expected, patience_s=60):
        """When everything expected has come."""
        deadline = time.monotonic() + patience_s
        while not set(expected) <= set(self.numbers) and time.monotonic() < deadline:
            time.sleep(0.2)
        self.stopping = True
        self.thread.join(10)
        self.client.close()
        return self.numbers


def everything(url, topic, subscription, quiet_s=5, expected=(), patience_s=60):
    """Numbers in the order in which they are delivered, until nothing comes for `quiet_s`; all are acknowledged. While something
    `expected` has not come, the next message may take `patience_s`: a machine that is busy must not look like one that has lost
    something, and one that has everything is not waited for."""
    client = pulsar.Client(url, operation_timeout_seconds=60, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
    consumer = client.subscribe(topic, subscription, initial_position=pulsar.InitialPosition.Earliest)
    numbers, missing = [], set(expected)
    while True:
        try:
            message = consumer.receive(timeout_millis=int(1000 * (patience_s if missing else quiet_s)))
        except pulsar.Timeout:
            break
        numbers.append(int(message.data()))
        missing.discard(numbers[-1])
        consumer.acknowledge(message)
    client.close()
    return numbers


def check(acknowledged, delivered):
    missing = set(acknowledged) - set(delivered)
    assert not missing, f"{len(missing)} acknowledged messages are lost, {sorted(missing)[:10]} among them"
    # What a producer sends again after a broken connection may be there twice; what is new is in order.
    first = list(dict.fromkeys(delivered))
    assert first == sorted(first), "messages are out of order"
