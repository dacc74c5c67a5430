"""A client that shows a token which lasts three seconds, and a new one whenever it is asked: it sends messages one by one and takes them.

Usage: behind.py URL KEY TOPIC SECONDS [CA], the authority being that of the server's certificate. Prints as JSON how many messages came, and how many tokens were shown."""
import json
import sys
import time

import pulsar
from tokens import token

url, key, topic, seconds, *authority = sys.argv[1:]
tls = {"tls_trust_certs_file_path": authority[0], "tls_validate_hostname": True} if authority else {}
seconds, shown = float(seconds), []


def show():
    shown.append(token(bytes.fromhex(key), "client", lasts_s=3))
    return shown[-1]


client = pulsar.Client(url, authentication=pulsar.AuthenticationToken(show), operation_timeout_seconds=10,
                       logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error), **tls)
consumer, producer = client.subscribe(topic, "s"), client.create_producer(topic)
end, count = time.monotonic() + seconds, 0
while time.monotonic() < end:
    producer.send(str(count).encode())
    message = consumer.receive(10_000)
    assert message.data() == str(count).encode()
    consumer.acknowledge(message)
    count += 1
    time.sleep(0.05)
print(json.dumps({"messages": count, "tokens": len(set(shown))}), flush=True)
sys.stdin.readline()
client.close()
