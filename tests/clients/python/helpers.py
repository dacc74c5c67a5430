"""Small verbs that the tests share."""
import time

import pulsar
import pytest

WAIT_MS = 10_000
QUIET_MS = 400


def produce(producer, count, key=None, prefix="m", first=0):
    """Sends `count` messages and waits for all receipts; the message ids in order."""
    ids = {}

    def receipt(i):
        def done(result, message_id):
            assert result == pulsar.Result.Ok, result
            ids[i] = message_id
        return done

    for i in range(first, first + count):
        producer.send_async(f"{prefix}{i}".encode(), receipt(i), partition_key=key(i) if key else None)
    producer.flush()
    until(lambda: len(ids) == count)
    return [ids[i] for i in range(first, first + count)]


def contents(count, prefix="m", first=0):
    return [f"{prefix}{i}".encode() for i in range(first, first + count)]


def receive(consumer, count, ack=True):
    """`count` messages; each has to come within WAIT_MS."""
    messages = []
    for _ in range(count):
        message = consumer.receive(WAIT_MS)
        if ack:
            consumer.acknowledge(message)
        messages.append(message)
    return messages


def receive_data(consumer, count, ack=True):
    return [m.data() for m in receive(consumer, count, ack)]


def receive_all(consumer, ack=True, quiet_ms=QUIET_MS):
    """All that comes until it has been quiet for a while."""
    messages = []
    while True:
        try:
            message = consumer.receive(quiet_ms)
        except pulsar.Timeout:
            return messages
        if ack:
            consumer.acknowledge(message)
        messages.append(message)


def nothing_more(consumer, quiet_ms=QUIET_MS):
    with pytest.raises(pulsar.Timeout):
        message = consumer.receive(quiet_ms)
        print("unexpected:", message.data(), message.message_id())


def until(condition, limit_s=10):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "condition not reached in time"
        time.sleep(0.02)


def position(message_id):
    return message_id.ledger_id(), message_id.entry_id(), message_id.batch_index()
