"""Rates that policies set. Servers allow one second's worth at once, and some more until they have learned of a policy."""
import time

from helpers import contents, produce, receive_data, until


def set_policy(admin, topic, path, policy):
    admin.post(admin.topic(topic, f"/{path}"), policy)
    until(lambda: admin.get(admin.topic(topic, f"/{path}")) is not None)


def test_publish_rate(client, admin, topic):
    producer = client.create_producer(topic)
    produce(producer, 1)
    set_policy(admin, topic, "publishRate", {"publishThrottlingRateInMsg": 100, "publishThrottlingRateInByte": -1})
    consumer = client.subscribe(topic, "s")
    since = time.monotonic()
    for first in range(1, 401, 20):
        produce(producer, 20, first=first)
    took = time.monotonic() - since
    assert 2 < took < 8, took
    assert receive_data(consumer, 400) == contents(400, first=1)


def test_dispatch_rate(client, admin, topic):
    producer = client.create_producer(topic)
    client.subscribe(topic, "s").close()
    produce(producer, 400)
    set_policy(admin, topic, "dispatchRate", {"dispatchThrottlingRateInMsg": 100, "dispatchThrottlingRateInByte": -1,
                                              "relativeToPublishRate": False, "ratePeriodInSecond": 1})
    consumer = client.subscribe(topic, "s", receiver_queue_size=1000)
    since = time.monotonic()
    assert receive_data(consumer, 400) == contents(400)
    took = time.monotonic() - since
    assert 2 < took < 8, took
