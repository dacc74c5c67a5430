"""PostgreSQL fails over to a standby that has every commit: who owns what stays as it is, and nobody loses anything."""
import time

import pytest
from conftest import run_cluster
from test_brokers import finish, loads

from harness import servers
from harness.address import Address
from harness.postgres import Postgres


@pytest.fixture
def failing_over():
    """Three brokers whose metadata are at an address that leads to a primary with a synchronous standby."""
    primary = Postgres()
    url = primary.new_database()
    standby, address = Postgres(primary), Address(primary.port)
    try:
        for cluster in run_cluster(url.replace(str(primary.port), str(address.port)), 3, brokers=3):
            yield cluster, primary, standby, address
    finally:
        address.close()
        standby.close()
        primary.close()


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
