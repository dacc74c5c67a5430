"""PostgreSQL fails over to a standby. One that has every commit: who owns what stays as it is, and nobody loses anything. One that
lacks some: nobody serves until the doctor has settled it, and then nothing is lost either."""
import contextlib
import time

import pytest
from conftest import run_cluster
from load import Load, check, everything
from test_brokers import NAMESPACE, finish, loads
from test_doctor import apply, examine, kinds, restart

from harness import servers
from harness.address import Address
from harness.postgres import Postgres


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


def test_metadata_fail_over_to_a_standby(failing_over):
    """Later than sessions last."""
    cluster, primary, standby, address = failing_over
    running = loads(cluster, 6, deduplication=True)
    time.sleep(1)
    owners = {topic: cluster.owner(topic).id for topic in running}
    before = {topic: len(load.acknowledged) for topic, load in running.items()}
    primary.stop("immediate")
    time.sleep(12)
    standby.promote()
    address.lead_to(standby.port)
    # Metadata are written again: a topic comes into being.
    cluster.admin("PUT", "persistent/public/default/after-the-failover")
    assert all(len(load.acknowledged) > before[topic] for topic, load in running.items()), "a producer stood still"
    assert {topic: cluster.owner(topic).id for topic in running} == owners, "a bundle has moved"
    # Who owns what can change again, as from a broker that dies.
    victim = cluster.owner(next(iter(running)))
    victim.kill()
    servers.wait_for(lambda: all(cluster.owner(topic) is not victim for topic in running))
    victim.start()
    assert finish(cluster, running, exactly_once=True) < 5


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
