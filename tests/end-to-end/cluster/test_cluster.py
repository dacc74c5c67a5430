"""A broker on replicated ledgers, driven by the real Python client while its parts are killed."""
import concurrent.futures
import random
import time

import raw
from harness import frames
from load import Load, check, everything

NAMESPACE = "persistent://public/default"


def test_what_is_produced_is_consumed_and_survives_a_restart_of_everything(cluster_on_sqlite):
    cluster = cluster_on_sqlite
    topic = f"{NAMESPACE}/plain"
    load = Load(cluster.pulsar_url, topic)
    time.sleep(2)
    acknowledged = load.finish()
    assert len(acknowledged) > 1000 and not load.failed
    assert everything(cluster.pulsar_url, topic, "one") == acknowledged
    for process in [cluster.broker, *cluster.nodes]:
        process.kill()
    for process in [*cluster.nodes, cluster.broker]:
        process.start()
    assert everything(cluster.pulsar_url, topic, "one") == [], "an acknowledgement is forgotten"
    assert everything(cluster.pulsar_url, topic, "two") == acknowledged


def test_storage_nodes_are_killed_under_load(cluster):
    topic, random_state = f"{NAMESPACE}/nodes", random.Random(7)
    load = Load(cluster.pulsar_url, topic)
    for _ in range(4):
        time.sleep(2)
        node = random_state.choice(cluster.nodes)
        node.kill()
        time.sleep(2)
        node.start()
    acknowledged = load.finish()
    print(f"{len(acknowledged)} messages, the slowest took {load.slowest:.2f} s")
    assert not load.failed and load.slowest < 5
    delivered = everything(cluster.pulsar_url, topic, "all")
    check(acknowledged, delivered)
    assert len(delivered) == len(acknowledged), "no connection broke, so nothing is there twice"


def test_broker_and_nodes_are_killed_under_load(cluster):
    topic, random_state = f"{NAMESPACE}/all", random.Random(11)
    load = Load(cluster.pulsar_url, topic)
    for _ in range(6):
        time.sleep(1.5)
        victims = random_state.sample([cluster.broker, *cluster.nodes], random_state.choice([1, 1, 2]))
        # Two nodes of five may be all that an ack quorum has of an entry while they are away; they come back.
        for victim in victims:
            victim.kill()
        time.sleep(0.5)
        for victim in victims:
            victim.start()
    acknowledged = load.finish()
    print(f"{len(acknowledged)} messages, the slowest took {load.slowest:.2f} s")
    assert not load.failed
    check(acknowledged, everything(cluster.pulsar_url, topic, "all"))


def test_metadata_may_be_away_while_topics_are_loaded(cluster, postgres):
    topic = f"{NAMESPACE}/without-metadata"
    load = Load(cluster.pulsar_url, topic)
    time.sleep(1)
    before = len(load.acknowledged)
    postgres.stop("immediate")
    time.sleep(8)
    during = len(load.acknowledged)
    postgres.start()
    time.sleep(2)
    acknowledged = load.finish()
    assert not load.failed and during > before + 1000 and load.slowest < 5
    assert everything(cluster.pulsar_url, topic, "all") == acknowledged


def test_a_bundle_of_many_subscriptions_with_holes_loads_at_once(cluster_on_sqlite):
    """As in `limits`, on storage nodes: ten thousand subscriptions that have acknowledged every second message."""
    broker, topic, subscriptions, holes, threads = cluster_on_sqlite.broker, f"{NAMESPACE}/holes", 10_000, 100, 16

    def connect():
        client = raw.Client(int(broker.address.split(":")[1]), timeout_s=60)
        client.call(frames.command(frames.LOOKUP, {1: topic, 2: client.request(), 3: 0}), frames.LOOKUP_RESPONSE)
        return client

    with connect() as c:
        c.subscribe(topic, "s-0", raw.EXCLUSIVE)
        name = c.produce_on(topic)
        for number in range(2 * holes):
            c.write(frames.send_frame(1, number, name, b"content"))
            c.expect(frames.SEND_RECEIPT)
        c.flow(2 * holes)
        ids = c.receive(2 * holes)

    def acknowledge(first):
        with connect() as c:
            for n in range(first, subscriptions, threads):
                c.subscribe(topic, f"s-{n}", raw.EXCLUSIVE, consumer_id=n)
                c.ack(ids[::2], consumer_id=n)

    since = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(acknowledge, range(threads)))
    acknowledged = time.monotonic() - since
    broker.kill()
    broker.start()
    since = time.monotonic()
    with connect() as c:
        c.subscribe(topic, f"s-{subscriptions // 2}", raw.EXCLUSIVE)
        loaded = time.monotonic() - since
        c.flow(3 * holes)
        assert sorted(c.receive(holes)) == ids[1::2]
        assert c.receive_until_silence(0.5) == []
    print(f"{subscriptions} subscriptions with {holes} holes each: acknowledged in {acknowledged:.1f} s, loaded in {loaded:.2f} s")
    assert loaded < 1


def test_ledgers_of_deleted_topics_leave_the_nodes(cluster):
    topic = f"{NAMESPACE}/gone"
    load = Load(cluster.pulsar_url, topic)
    time.sleep(1)
    load.finish()
    cluster.admin("DELETE", "persistent/public/default/gone?force=true")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        logs = [(node.folder / "log").read_text(errors="replace") for node in cluster.nodes]
        if sum("deleting ledgers that are in no metadata" in log for log in logs) >= 3:
            return
        time.sleep(0.5)
    raise AssertionError("the nodes keep the ledgers of a topic that was deleted")
