"""What is acknowledged stays as long as retention wants it, and no longer."""
import time

import pulsar
from harness import servers

TOPIC = "persistent://public/default/retained"
RETENTION = "namespaces/public/default/retention"
MESSAGES, MESSAGE_BYTES = 100, 10 << 10


def read_all(client):
    reader = client.create_reader(TOPIC, pulsar.MessageId.earliest)
    found = []
    while reader.has_message_available():
        found.append(reader.read_next(10_000).data())
    reader.close()
    return found


def test_retention_keeps_what_is_acknowledged_until_it_ends(start):
    server = start(arguments=["--max-ledger-size", "100KiB", "--housekeeping-interval", "200ms"])

    def stats():
        return server.admin("GET", TOPIC.replace("://", "/") + "/stats")

    server.admin("POST", RETENTION, {"retentionTimeInMinutes": -1, "retentionSizeInMB": -1})
    client = pulsar.Client(server.pulsar_url, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
    consumer = client.subscribe(TOPIC, "s")
    producer = client.create_producer(TOPIC, batching_enabled=False)
    sent = [f"{i:<{MESSAGE_BYTES}}".encode() for i in range(MESSAGES)]
    for message in sent:
        producer.send(message)
        consumer.acknowledge(consumer.receive(10_000))
    servers.wait_for(lambda: stats()["subscriptions"]["s"]["msgBacklog"] == 0)
    time.sleep(1)       # housekeeping has looked several times
    assert read_all(client) == sent
    stored = stats()["storageSize"]
    assert stored >= MESSAGES * MESSAGE_BYTES

    server.admin("DELETE", RETENTION)
    servers.wait_for(lambda: stats()["storageSize"] < stored / 4)
    left = read_all(client)
    assert len(left) < MESSAGES / 4 and left == sent[MESSAGES - len(left):]
    client.close()
