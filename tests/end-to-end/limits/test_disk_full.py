"""A full disk refuses new messages, and nothing else: what is stored is read and acknowledged, and room that is made is used."""
import os
import time

import pulsar
import pytest
import raw
from harness import frames
from harness.small_disk import small_disk

TOPIC = "persistent://public/default/full"
MESSAGE_BYTES = 64 << 10
IN_FLIGHT = 16
HOUSEKEEPING_LIMIT_S = 60


def fill(port):
    """Publishes until the server refuses. The ids that have a receipt, and the body of the refusal."""
    with raw.Client(port, timeout_s=60) as c:
        name, receipts, sent = c.produce_on(TOPIC), [], 0
        while True:
            while sent - len(receipts) < IN_FLIGHT:
                c.write(frames.send_frame(1, sent, name, os.urandom(16) * (MESSAGE_BYTES // 16)))
                sent += 1
            kind, body = c.read()
            if kind == frames.SEND_ERROR:
                receipts += rest_of_receipts(c)
                return receipts, body
            assert kind == frames.SEND_RECEIPT, (kind, body)
            receipts.append(raw.receipt_id(body))


def rest_of_receipts(c):
    """What else is answered before a pong: the connection itself is in order."""
    c.write(frames.frame(frames.command(frames.PING, {})))
    found = []
    while True:
        kind, body = c.read()
        if kind == frames.PONG:
            return found
        if kind == frames.SEND_RECEIPT:
            found.append(raw.receipt_id(body))


@pytest.mark.parametrize("kind, restart", [("tmpfs", False), ("ext4", False), ("ext4", True)])
def test_full_disk_refuses_only_new_messages_until_there_is_room(start, kind, restart):
    with small_disk(192, kind) as disk:
        server = start(memory_mib=128, data_dir=f"{disk}/data")
        try:
            fill_read_ack_and_resume(server, disk, restart)
        finally:
            server.kill()       # before its disk goes


def fill_read_ack_and_resume(server, disk, restart):
    with raw.Client(server.port) as c:
        c.subscribe(TOPIC, "s")
    receipts, refusal = fill(server.port)
    print(f"{len(receipts)} messages of {MESSAGE_BYTES} bytes, then {refusal}; {free_mib(disk):.1f} MiB free")
    assert refusal[3] == raw.PERSISTENCE_ERROR
    assert len(receipts) * MESSAGE_BYTES > 64 << 20
    again, refusal = fill(server.port)
    receipts += again
    assert refusal[3] == raw.PERSISTENCE_ERROR

    with raw.Client(server.port) as c:
        c.subscribe(TOPIC, "s")
        c.flow(1_000_000)
        first = c.receive(len(receipts))
        assert set(receipts) <= set(first + c.receive_until_silence(1)), "an acknowledged message is not read back"
        acked = receipts[::2]
        for i in range(0, len(acked), 50):      # many small writes, which a full disk must have room for
            c.ack(acked[i:i + 50])

    if restart:
        server.kill()
        server.start()
    client = pulsar.Client(server.pulsar_url, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
    with raw.Client(server.port) as c:
        c.subscribe(TOPIC, "s")
        c.flow(1_000_000)
        back = c.receive_until_silence(2)
        assert not set(back) & set(acked), "acknowledgements are lost"
        assert set(receipts) - set(acked) <= set(back), "acknowledged messages are lost"

        sent = []
        producer = client.create_producer(TOPIC, send_timeout_millis=0)
        for i in range(5):
            producer.send_async(bytes([i]) * MESSAGE_BYTES, lambda result, _: sent.append(result))
        c.ack(back)
        wait_for(lambda: len(sent) == 5, lambda: f"{sent} after everything is acknowledged; {free_mib(disk):.1f} MiB free")
        assert sent == [pulsar.Result.Ok] * 5
        new = c.receive(5)
        assert not set(new) & set(receipts)
        c.ack(new)
        client.close()

    # Room was made, not just found: as much as before goes in again.
    wait_for(lambda: free_mib(disk) > 96, lambda: f"only {free_mib(disk):.1f} MiB are free again")
    more, _ = fill(server.port)
    assert len(more) * MESSAGE_BYTES > 64 << 20


def free_mib(folder):
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize / 2**20


def wait_for(condition, complaint):
    until = time.monotonic() + HOUSEKEEPING_LIMIT_S
    while not condition():
        assert time.monotonic() < until, complaint()
        time.sleep(0.05)
