"""PostgreSQL fails over to a standby. One that has every commit: who owns what stays as it is, and nobody loses anything. One that
lacks some: nobody serves until the doctor has settled it, and then nothing is lost either."""
import concurrent.futures
import contextlib
import time

import pytest
from conftest import run_cluster
from load import Load, check, everything
from test_brokers import NAMESPACE, finish, loads, move
from test_doctor import apply, examine, kinds, restart

from harness import frames, servers
from harness.address import Address
from harness.postgres import Postgres

# Each of these promises that somebody goes on within seconds.
pytestmark = pytest.mark.alone


@contextlib.contextmanager
def metadata(synchronous):
    """A primary, its standby, an address that leads to the primary, and the URL of a database there."""
    with contextlib.ExitStack() as ends:
        primary = ends.enter_context(contextlib.closing(Postgres()))
        url = primary.new_database()
        standby = ends.enter_context(contextlib.closing(Postgres(primary, synchronous)))
        address = ends.enter_context(contextlib.closing(Address(primary.port)))
        yield primary, standby, address, url.replace(str(primary.port), str(address.port))


@pytest.fixture
def failing_over():
    """Three brokers whose metadata are at an address that leads to a primary with a synchronous standby."""
    with metadata(synchronous=True) as (primary, standby, address, url):
        for cluster in run_cluster(url, 3, brokers=3):
            yield cluster, primary, standby, address


PROBES = [f"{NAMESPACE}/probe-{n}" for n in range(8)]


def acknowledging(cluster):
    """Which brokers acknowledge a message on each of `PROBES`, asked without a lookup before."""
    def does(broker, topic):
        host, port = broker.address.split(":")
        try:
            with frames.Connection(host, int(port), timeout_s=6) as client:
                name = client.call(frames.command(frames.PRODUCER, {1: topic, 2: 1, 3: 1}), frames.PRODUCER_SUCCESS)[2]
                client.write(frames.send_frame(1, 0, name, b"probe"))
                client.expect(frames.SEND_RECEIPT)
            return True
        except (OSError, frames.Refused):
            return False

    alive = [broker for broker in cluster.brokers if broker.alive()]
    with concurrent.futures.ThreadPoolExecutor(len(PROBES) * len(alive)) as pool:
        asked = {topic: [(broker.id, pool.submit(does, broker, topic)) for broker in alive] for topic in PROBES}
        return {topic: [broker for broker, answer in answers if answer.result()] for topic, answers in asked.items()}


def looked_up(cluster):
    """The owner of each of them, as a list."""
    return {topic: [cluster.owner(topic).id] for topic in PROBES}


def test_metadata_fail_over_to_a_standby(failing_over):
    """Later than sessions last. At any time one broker serves a topic, and the same one until that dies."""
    cluster, primary, standby, address = failing_over
    running = loads(cluster, 6, deduplication=True)
    time.sleep(1)
    owners = looked_up(cluster)
    assert len({owner for [owner] in owners.values()}) >= 2 and acknowledging(cluster) == owners
    before = {topic: len(load.acknowledged) for topic, load in running.items()}
    primary.stop("immediate")
    time.sleep(8)
    assert all(set(now) <= set(owners[topic]) for topic, now in acknowledging(cluster).items()), "somebody else serves without metadata"
    standby.promote()
    address.lead_to(standby.port)
    # Metadata are written again: a topic comes into being.
    cluster.admin("PUT", "persistent/public/default/after-the-failover")
    assert all(len(load.acknowledged) > before[topic] for topic, load in running.items()), "a producer stood still"
    assert acknowledging(cluster) == looked_up(cluster) == owners, "a bundle has moved"
    # Who owns what can change again, as from a broker that dies.
    victim = cluster.owner(next(iter(running)))
    victim.kill()
    servers.wait_for(lambda: all(cluster.owner(topic) is not victim for topic in [*running, *PROBES]))
    victim.start()
    assert acknowledging(cluster) == looked_up(cluster)
    assert finish(cluster, running, exactly_once=True) < 5


def test_a_broker_that_stays_with_the_old_primary_is_no_second_owner(failing_over):
    """The primary lives on, and one broker still talks to it while the others are led to the standby, which was promoted beside it."""
    cluster, primary, standby, address = failing_over
    left, others = cluster.brokers[2], cluster.brokers[:2]
    with contextlib.closing(Address(primary.port)) as old:
        left.stop()
        left.arguments = [argument.replace(str(address.port), str(old.port)) for argument in left.arguments]
        left.start()
        running = loads(cluster, 6, deduplication=True)
        move(cluster, PROBES[0], left)
        move(cluster, next(iter(running)), left)
        time.sleep(1)
        owners = looked_up(cluster)
        assert [left.id] in owners.values() and acknowledging(cluster) == owners
        standby.promote()
        address.lead_to(standby.port)
        servers.wait_for(lambda: all(cluster.owner(topic) in others for topic in [*running, *PROBES]))
        # Until a new owner loads a topic, and fences its ledger, the old one may write to it; then no more.
        acknowledging(cluster)
        before = {topic: len(load.acknowledged) for topic, load in running.items()}
        servers.wait_for(lambda: all(len(load.acknowledged) > before[topic] for topic, load in running.items()))
        assert acknowledging(cluster) == looked_up(cluster), "the one that was left behind acknowledges"
        left.kill()
        finish(cluster, running, exactly_once=True)


@pytest.fixture
def lagging():
    """Two brokers whose metadata are at an address that leads to a primary with a standby that nobody waits for, and nodes that can be asked."""
    with metadata(synchronous=False) as (primary, standby, address, url):
        for cluster in run_cluster(url, 3, brokers=2, node_arguments=["--control-addr", "127.0.0.1:0"]):
            yield cluster, primary, standby, address


def test_a_standby_that_lacks_commits_counts_as_a_restored_dump(lagging, tmp_path):
    cluster, primary, standby, address = lagging
    late, plan = f"{NAMESPACE}/late", tmp_path / "plan.json"
    running = loads(cluster, 4, pause_s=0.05)
    owners = {topic: cluster.owner(topic) for topic in running}
    standby.fall_behind()
    # What it lacks: other owners, their ledgers, and a topic.
    for broker in cluster.brokers:
        restart(broker)
    assert any(cluster.owner(topic) is not owners[topic] for topic in running)
    running[late] = Load(cluster.pulsar_url, late, pause_s=0.05)
    time.sleep(3)           # so that nodes have seen it
    primary.stop("immediate")
    standby.promote()
    address.lead_to(standby.port)
    # Nobody serves who owns something by the one and perhaps not by the other.
    for broker in cluster.brokers:
        assert broker.process.wait(30) == 1 and "restored from an older dump under this broker" in broker.log_end()
        broker.begin()
    servers.wait_for(lambda: all("waits until 'geminga doctor' has settled it" in broker.log_end() for broker in cluster.brokers))
    before = {topic: len(load.acknowledged) for topic, load in running.items()}
    time.sleep(3)           # in which the doctor's nodes see the metadata, and nobody gets a receipt
    assert {topic: len(load.acknowledged) for topic, load in running.items()} == before
    code, report = examine(cluster, "--repair-plan", str(plan))
    assert code == 1 and {"restored", "lost"} <= kinds(report), report
    code, lines = apply(cluster, plan)
    print("\n".join(lines))
    assert code == 0, lines
    for broker in cluster.brokers:
        broker.wait_until_ready()
    # The producers, which have waited, go on.
    servers.wait_for(lambda: all(len(load.acknowledged) > before[topic] + 100 for topic, load in running.items()), 60)
    for topic, load in running.items():
        acknowledged = load.finish()
        assert not load.failed
        check(acknowledged, everything(cluster.pulsar_url, topic, "all", expected=acknowledged))
