"""The real client at a proxy's address, before three brokers that die and hand topics to each other."""
import time

import pytest
from conftest import Process

from harness import servers
from test_brokers import finish, loads


@pytest.fixture
def proxied(brokers):
    """The cluster as its clients see it: at the address of a proxy, which is told of one broker only."""
    port, http_port = servers.free_port(), servers.free_port()
    first = brokers.brokers[0]
    proxy = Process(brokers.folder / "proxy", "proxy", "--brokers", f"pulsar://{first.address}", "--broker-http",
                    ",".join(broker.admin_url for broker in brokers.brokers), "--pulsar-addr", f"127.0.0.1:{port}", "--http-addr",
                    f"127.0.0.1:{http_port}")
    proxy.start()
    brokers.pulsar_url, brokers.admin_url = f"pulsar://127.0.0.1:{port}", f"http://127.0.0.1:{http_port}"
    yield brokers
    try:
        proxy.stop()
        assert "panicked" not in (proxy.folder / "log").read_text(errors="replace")
    finally:
        print(f"the end of the log of the proxy:\n{proxy.log_end(3000)}")
        if proxy.alive():
            proxy.kill()


def test_every_topic_is_reached_through_the_proxy(proxied):
    running = loads(proxied, 12)
    owners = {topic: proxied.owner(topic).id for topic in running}
    assert len(set(owners.values())) >= 2, owners
    for topic, owner in owners.items():
        # Each broker in turn is asked; those that do not have the topic redirect, which stays inside.
        for _ in range(3):
            assert servers.admin(proxied.admin_url, "GET", f"{topic}/stats")["ownerBroker"] == owner
    finish(proxied, running)


def test_brokers_behind_a_proxy_are_killed_under_load(proxied):
    """The one that the proxy is told of stays: without it there would be nobody to ask."""
    running = loads(proxied, 6)
    for victim in proxied.brokers[1:]:
        time.sleep(2)
        victim.kill()
        time.sleep(6)
        victim.start()
    assert finish(proxied, running) < 10


def test_topics_move_under_load_behind_a_proxy(proxied):
    running = loads(proxied, 4)
    for _ in range(3):
        time.sleep(1)
        for name in running:
            servers.admin(proxied.admin_url, "PUT", f"{name}/unload")
    time.sleep(1)
    assert finish(proxied, running) < 10
