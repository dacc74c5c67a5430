"""Three brokers that share bundles, driven by real clients while brokers die, sleep, move bundles and lose their metadata."""
import concurrent.futures
import itertools
import random
import time
import urllib.request

import pytest
import raw

from harness import frames, servers
from load import Consuming, Load, check, everything

NAMESPACE = "persistent://public/default"


def loads(cluster, count, deduplication=False, **options):
    """Producers on as many topics, which several brokers serve."""
    if deduplication:
        cluster.admin("POST", "namespaces/public/default/deduplication", True)
    topics = [f"{NAMESPACE}/load-{n}" for n in range(count)]
    return {topic: Load(cluster.pulsar_url, topic, name=f"producer-{n}", **options) for n, topic in enumerate(topics)}


def finish(cluster, running, exactly_once=False):
    """The slowest send of all; nothing that was acknowledged is lost or out of order."""
    acknowledged = [load.finish() for load in running.values()]
    with concurrent.futures.ThreadPoolExecutor(len(running)) as pool:
        delivered = list(pool.map(lambda topic: everything(cluster.pulsar_url, topic, "all"), running))
    for load, sent, received in zip(running.values(), acknowledged, delivered):
        assert not load.failed, load.failed[:10]
        check(sent, received)
        if exactly_once:
            assert len(received) == len(set(received)), "a message is there twice"
    total = sum(len(sent) for sent in acknowledged)
    slowest = max(load.slowest for load in running.values())
    print(f"{total} messages, the slowest took {slowest:.2f} s")
    return slowest


def bundle_of(cluster, topic):
    with urllib.request.urlopen(f"{cluster.admin_url}/lookup/v2/topic/{topic.replace('://', '/')}/bundle", timeout=60) as answer:
        return answer.read().decode()


def move(cluster, topic, target):
    """The topic's bundle goes to another broker."""
    cluster.admin("PUT", f"namespaces/public/default/{bundle_of(cluster, topic)}/unload?destinationBroker={target.id}")


def test_bundles_are_spread_and_every_broker_knows_where(brokers):
    running = loads(brokers, 12)
    owners = {topic: brokers.owner(topic).id for topic in running}
    assert len(set(owners.values())) >= 2, owners
    for topic, owner in owners.items():
        for broker in brokers.brokers:
            assert servers.lookup(broker.admin_url, topic)["httpUrl"] == f"http://{owner}"
            # Whichever is asked about a topic sends the client to its owner.
            assert servers.admin(broker.admin_url, "GET", f"{topic}/stats")["ownerBroker"] == owner
    assert sorted(brokers.admin("GET", "brokers/test")) == sorted(broker.id for broker in brokers.brokers)
    finish(brokers, running)


@pytest.mark.parametrize("deduplication", [False, True], ids=["plain", "deduplication"])
def test_brokers_are_killed_under_load(brokers, deduplication):
    running, random_state = loads(brokers, 6, deduplication), random.Random(3)
    for _ in range(3):
        time.sleep(2)
        victim = random_state.choice(brokers.brokers)
        victim.kill()
        time.sleep(6)
        victim.start()
    assert finish(brokers, running, exactly_once=deduplication) < 5


def test_a_zone_is_lost_with_its_broker(zones):
    running = loads(zones, 6, deduplication=True)
    time.sleep(1)
    victim = zones.owner(next(iter(running)))
    number = zones.brokers.index(victim)
    for process in [victim, *zones.nodes[number::3]]:
        process.kill()
    time.sleep(10)
    zones.broker = next(broker for broker in zones.brokers if broker is not victim)
    zones.admin_url = zones.broker.admin_url
    assert all(zones.owner(topic) is not victim for topic in running)
    assert finish(zones, running, exactly_once=True) < 5


def test_an_owner_that_slept_longer_than_its_session_acknowledges_nothing(brokers):
    topic = f"{NAMESPACE}/sleeper"
    load = Load(brokers.pulsar_url, topic)
    time.sleep(1)
    owner = brokers.owner(topic)
    others = [broker for broker in brokers.brokers if broker is not owner]
    idle = next(name for name in (f"{NAMESPACE}/idle-{n}" for n in itertools.count()) if bundle_of(brokers, name) == bundle_of(brokers, topic))
    with raw.Client(int(owner.address.split(":")[1])) as client:
        name = client.produce_on(topic)
        client.subscribe(idle, "s", consumer_id=2)
        client.write(frames.send_frame(1, 0, name, b"-1"))
        client.expect(frames.SEND_RECEIPT)
        owner.pause()
        try:
            time.sleep(0.1)
            # What stands before the sleeper when it wakes.
            for number in range(1, 101):
                client.write(frames.send_frame(1, number, name, b"-2"))
            # Somebody asks for the topic: after the session of its owner it gets another one.
            deadline = time.monotonic() + 20
            while servers.lookup(others[0].admin_url, topic)["httpUrl"].endswith(owner.id):
                assert time.monotonic() < deadline, "nobody takes the bundle"
                time.sleep(0.1)
            second = Load("pulsar://" + ",".join(broker.address for broker in others), topic)
            time.sleep(1)
        finally:
            owner.resume()
        since, said = time.monotonic(), {}
        while not {frames.CLOSE_PRODUCER, frames.CLOSE_CONSUMER} <= set(said):
            kind, _ = client.read()
            said[kind] = time.monotonic() - since
        took = max(said[frames.CLOSE_PRODUCER], said[frames.CLOSE_CONSUMER])
        print(f"dropped both topics within {took * 1000:.0f} ms of waking")
        assert frames.SEND_RECEIPT not in said and took < 1
        client.socket.settimeout(2)
        with pytest.raises(TimeoutError):
            while True:
                assert client.read()[0] != frames.SEND_RECEIPT
    for broker in brokers.brokers:
        assert not servers.lookup(broker.admin_url, topic)["httpUrl"].endswith(owner.id)
    before = len(load.acknowledged)
    time.sleep(1)
    assert len(load.acknowledged) > before, "the first producer goes on at the new owner"
    by_first, by_second = load.finish(), second.finish()
    assert not load.failed and not second.failed
    delivered = everything(brokers.pulsar_url, topic, "all")
    missing = [set(by_first) - set(delivered), set(by_second) - set(delivered)]
    assert not any(missing), f"acknowledged messages are lost: {[sorted(lost)[:10] for lost in missing]}"
    assert -1 in delivered and -2 not in delivered, "what the sleeper was sent is stored"


@pytest.mark.alone
def test_bundles_move_while_messages_are_published(brokers):
    topic = f"{NAMESPACE}/mover"
    load = Load(brokers.pulsar_url, topic)
    time.sleep(1)
    for n in range(12):
        target = brokers.brokers[n % 3]
        move(brokers, topic, target)
        assert brokers.owner(topic) is target
        time.sleep(0.5)
    acknowledged = load.finish()
    latencies = sorted(load.latencies)
    p999 = latencies[int(len(latencies) * 0.999)]
    print(f"{len(acknowledged)} messages over 12 moves: p99.9 {p999 * 1000:.0f} ms, the slowest took {latencies[-1] * 1000:.0f} ms")
    assert not load.failed and p999 < 0.2
    check(acknowledged, everything(brokers.pulsar_url, topic, "all"))


def test_clients_are_told_where_their_topic_goes(brokers):
    topic = f"{NAMESPACE}/told"
    for _ in range(3):
        owner = brokers.owner(topic)
        target = next(broker for broker in brokers.brokers if broker is not owner)
        host, port = owner.address.split(":")
        with frames.Connection(host, int(port)) as client:
            client.call(frames.command(frames.PRODUCER, {1: topic, 2: 5, 3: 1}), frames.PRODUCER_SUCCESS)
            client.call(frames.command(frames.SUBSCRIBE, {1: topic, 2: "s", 3: 0, 4: 6, 5: 2}), frames.SUCCESS)
            move(brokers, topic, target)
            closed = dict(client.read() for _ in range(2))
            assert {kind: (body[1], body[3].decode()) for kind, body in closed.items()} == {
                frames.CLOSE_PRODUCER: (5, f"pulsar://{target.address}"), frames.CLOSE_CONSUMER: (6, f"pulsar://{target.address}")}


def test_a_bundle_is_split_under_load(brokers):
    running = loads(brokers, 6)
    time.sleep(1)
    before = brokers.admin("GET", "namespaces/public/default/bundles")["boundaries"]
    for low, high in zip(before, before[1:]):
        brokers.admin("PUT", f"namespaces/public/default/{low}_{high}/split?unload=true")
    after = brokers.admin("GET", "namespaces/public/default/bundles")
    assert after["numBundles"] == 8 and set(before) < set(after["boundaries"])
    time.sleep(1)
    assert finish(brokers, running) < 5
    for topic in running:
        assert everything(brokers.pulsar_url, topic, "all", quiet_s=1) == [], "an acknowledgement is forgotten"


def test_a_broker_that_is_stopped_hands_its_bundles_over(brokers):
    running = loads(brokers, 6)
    for broker in brokers.brokers:
        time.sleep(1)
        broker.stop()
        time.sleep(1)
        broker.start()
    assert finish(brokers, running) < 3


def test_metadata_are_away_for_a_minute_and_nobody_stops(brokers, postgres):
    running = loads(brokers, 4, pause_s=0.1)
    consuming = {topic: Consuming(brokers.pulsar_url, topic, "acknowledging") for topic in running}
    time.sleep(1)
    owners = {topic: brokers.owner(topic).id for topic in running}
    assert len(set(owners.values())) >= 2, owners

    def done():
        return {topic: (len(running[topic].acknowledged), len(consuming[topic].numbers)) for topic in running}

    before = done()
    postgres.stop("immediate")
    for _ in range(20):
        time.sleep(3)
        now = done()
        assert all(now[topic][0] > before[topic][0] + 100 and now[topic][1] > before[topic][1] + 100 for topic in running), (before, now)
        before = now
    postgres.start()
    time.sleep(5)
    assert {topic: brokers.owner(topic).id for topic in running} == owners, "a bundle has moved"
    assert finish(brokers, running) < 5
    for topic, load in running.items():
        check(load.acknowledged, consuming[topic].finish(load.acknowledged))
    for broker in brokers.brokers:
        broker.kill()
    for broker in brokers.brokers:
        broker.start()
    for topic in running:
        assert everything(brokers.pulsar_url, topic, "acknowledging", quiet_s=1) == [], "an acknowledgement is forgotten"


def test_partitioned_topics_are_administered_wherever_their_partitions_are(brokers):
    topic = f"{NAMESPACE}/parts"
    brokers.admin("PUT", f"{topic}/partitions", 6)
    load = Load(brokers.pulsar_url, topic)
    time.sleep(1)
    acknowledged = load.finish()
    brokers.admin("PUT", f"{topic}/subscription/s")
    owners = {brokers.owner(f"{topic}-partition-{n}").id for n in range(6)}
    assert len(owners) >= 2
    for broker in brokers.brokers:
        stats = servers.admin(broker.admin_url, "GET", f"{topic}/partitioned-stats")
        assert stats["msgInCounter"] == len(acknowledged) and len(stats["partitions"]) == 6
        assert servers.admin(broker.admin_url, "GET", f"{topic}/subscriptions") == ["all", "s"]
    brokers.admin("POST", f"{topic}/partitions", 8)
    assert "s" in brokers.admin("GET", f"{topic}-partition-7/subscriptions")
    assert sorted(everything(brokers.pulsar_url, topic, "all")) == sorted(acknowledged)
    brokers.admin("DELETE", f"{topic}/partitions?force=true")
    assert brokers.admin("GET", "persistent/public/default/partitioned") == []
    assert brokers.admin("GET", "persistent/public/default") == []
