"""The leader moves bundles by measured load, and says why."""
import threading
import time
import urllib.error
import urllib.request

import pulsar
from conftest import run_cluster
from test_brokers import bundle_of, move

from harness import servers

PAYLOAD = b"x" * 250_000


class Traffic:
    """A producer on each topic, and ten subscriptions: large messages, as those cost a balancer's broker most and this machine least."""

    def __init__(self, url, topics):
        self.client = pulsar.Client(url, operation_timeout_seconds=60, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
        self.received, self.stopping = dict.fromkeys(topics, 0), False
        self.consumers = [self.client.subscribe(topic, f"s-{n}", message_listener=self.count(topic), receiver_queue_size=10)
                          for topic in topics for n in range(10)]
        self.producers = [self.client.create_producer(topic, batching_enabled=False, send_timeout_millis=60_000) for topic in topics]
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def count(self, topic):
        def listen(consumer, message):
            self.received[topic] += 1
            consumer.acknowledge(message)
        return listen

    def run(self):
        while not self.stopping:
            for producer in self.producers:
                producer.send_async(PAYLOAD, None)
                time.sleep(0.01)

    def finish(self):
        self.stopping = True
        self.thread.join(60)
        self.client.close()


def alone(binary, folder):
    """A program that runs a broker as if its machine had one processor, and did not say how busy it is: here all brokers have the same one."""
    (folder / "stat").write_text("cpu 0 0 0 0 0 0 0 0\n")
    program = folder / "broker"
    program.write_text(f"""#!/bin/sh
exec unshare --mount sh -c 'mount --bind "$0" /proc/stat && exec taskset -c 0 "$@"' {folder}/stat {binary} "$@"
""")
    program.chmod(0o755)
    return str(program)


def explanation(cluster):
    """What the leader says; nothing while nobody leads."""
    try:
        leader = cluster.admin("GET", "brokers/leaderBroker")["serviceUrl"]
        with urllib.request.urlopen(f"{leader}/admin/v2/broker-stats/balance", timeout=60) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as refused:
        assert refused.code == 404, refused
        return ""


def test_a_broker_with_all_the_load_gives_some_away(postgres, tmp_path):
    """At a report a second, so that what is twelve reports long lasts twelve seconds."""
    options = {"brokers": 3, "broker_arguments": ["--balance-interval", "1s"]}
    for cluster in run_cluster(postgres.new_database(), 3, **options):
        for broker in cluster.brokers:
            broker.stop()
            broker.binary = alone(broker.binary, tmp_path)
            broker.start()
        names, topics = (f"non-persistent://public/default/busy-{n}" for n in range(1000)), {}
        while len(topics) < 4 or any(len(some) < 3 for some in topics.values()):
            topic = next(names)
            of_bundle = topics.setdefault(bundle_of(cluster, topic), [])
            if len(of_bundle) < 3:
                of_bundle.append(topic)
        loaded = cluster.brokers[1]
        for some in topics.values():
            cluster.owner(some[0])
            move(cluster, some[0], loaded)
            assert cluster.owner(some[0]) is loaded
        traffic, said = Traffic(cluster.pulsar_url, sum(topics.values(), [])), []

        def is_spread():
            said.append(explanation(cluster))
            return {cluster.owner(some[0]) for some in topics.values()} == set(cluster.brokers)

        try:
            servers.wait_for(is_spread, 60)
            before = dict(traffic.received)
            servers.wait_for(lambda: all(traffic.received[topic] > before[topic] for topic in before))
        finally:
            print(*dict.fromkeys(said), sep="\n")
            traffic.finish()
        reasons = [line for text in said for line in text.splitlines() if "too little: takes" in line or "too much: gives" in line]
        assert reasons and not any(line.startswith(loaded.id) and "takes" in line for line in reasons), reasons
        log = "".join(broker.log_end(10**9) for broker in cluster.brokers)
        assert "spreading load" in log
