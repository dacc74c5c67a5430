"""Resident memory stays within what --memory-limit promises, whatever clients do, and nobody waits for the slowest."""
import concurrent.futures
import contextlib
import http.client
import time
import urllib.request

import pytest
import raw
from conftest import finish, size
from harness import frames
from healthy import Healthy

MANY_PERMITS = 1_000_000
TOPIC = "persistent://public/default/t"


def test_idle_topics_below_100_mib(start):
    server, count, threads = start(), size("TOPICS", 10_000), 16

    def create(first):
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
        for i in range(first, count, threads):
            for path in (f"t-{i}", f"t-{i}/subscription/s"):
                connection.request("PUT", f"/admin/v2/persistent/public/default/{path}", headers={"Content-Type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
                assert answer.status == 204, (path, answer.status, content)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(create, range(threads)))
    created = server.rss_mib()
    assert len(server.admin("GET", "persistent/public/default")) == count
    server.kill()
    seconds = server.start()
    restarted = server.rss_mib()
    print(f"{created:.0f} MiB after creation, {restarted:.0f} MiB after a restart in {seconds:.1f} s")
    assert created < 100 and restarted < 100
    assert len(server.admin("GET", "persistent/public/default")) == count
    stats = server.admin("GET", f"persistent/public/default/t-{count - 1}/stats")
    assert "s" in stats["subscriptions"]


def test_overload_beside_consumers_that_never_read(start):
    """Eight connections have to publish more than ten times what the server gets done, with far more in flight than it may hold."""
    server, limit, topics = start(memory_mib=256), 256, 4
    with contextlib.ExitStack() as stack:
        for i in range(topics):
            stuck = stack.enter_context(raw.Client(server.port, receive_buffer=4096))
            stuck.subscribe(f"{TOPIC}-{i}", "stuck", raw.EXCLUSIVE)
            stuck.flow(MANY_PERMITS)
        load = dict(topic=TOPIC, topics=topics, producers=2, connections=8, size=4096, max_outstanding="512MiB")
        # Sixty times, as a busy machine may be slow just when it is measured. All of what is due is published in the end.
        rate = 60 * server.produce(**load, warmup="1s", duration="2s")["msg_s"]
        result = server.produce(**load, rate=rate, duration=f"{size('SECONDS', 8) / 60}s")
        peak = server.peak_mib()
        print(f"{result['msg_s']:.0f} of {rate:.0f} msg/s, which is {rate / result['msg_s']:.0f} times as many; peak {peak:.0f} MiB")
        assert 0 < 10 * result["msg_s"] < rate
        assert peak < limit
        # Still alive to whoever is well-behaved.
        with raw.Client(server.port) as c:
            c.subscribe(f"{TOPIC}-0", "well-behaved")
            c.flow(1000)
            c.ack(c.receive(10))       # batches; a permit is a message in one


def test_large_messages_unbatched_to_many_slow_consumers(start):
    """Forty stuck consumers each could pin a different megabyte."""
    server, limit = start(memory_mib=256), 256
    with contextlib.ExitStack() as stack:
        for i in range(40):
            stuck = stack.enter_context(raw.Client(server.port, receive_buffer=4096))
            stuck.subscribe(f"{TOPIC}-{i % 4}", f"stuck-{i}", raw.EXCLUSIVE)
            stuck.flow(MANY_PERMITS)
        server.produce(topic=TOPIC, topics=4, connections=4, size=1 << 20, num_messages=800, batching_max_messages=0)
        print(f"peak {server.peak_mib():.0f} MiB")
        assert server.peak_mib() < limit


def test_clients_that_ask_and_never_read(start):
    """Thirty, each with 40 MiB of answers to come."""
    server, limit = start(memory_mib=64), 64
    with Healthy(server.port), contextlib.ExitStack() as stack:
        for i in range(30):
            stuck = stack.enter_context(raw.Client(server.port, receive_buffer=4096))
            stuck.call(frames.command(frames.SUBSCRIBE, {1: TOPIC, 2: f"s-{i}", 3: raw.SHARED, 4: 1, 5: 1, 6: "n" * 8192}), frames.SUCCESS)
            stuck.write(b"".join(frames.frame(frames.command(frames.CONSUMER_STATS, {1: n, 4: 1})) for n in range(5000)))
        time.sleep(2)      # in which they could be answered
    print(f"peak {server.peak_mib():.0f} MiB")
    assert server.peak_mib() < limit


def test_more_connections_than_memory_with_unfinished_frames(start):
    """Each has sent the most of a frame that is not large. Who comes when there are too many is told so, until others have gone."""
    server, limit, most = start(memory_mib=64), 64, 2048
    half = frames.send_frame(1, 0, "x", bytes(60 << 10))[:59 << 10]
    with contextlib.ExitStack() as stack:
        some = [stack.enter_context(raw.Client(server.port)) for _ in range(most)]
        with pytest.raises(frames.Refused, match="maximum number of connections"):
            raw.Client(server.port)
        for c in some:
            c.socket.settimeout(0.01)
            with contextlib.suppress(OSError):
                c.write(half)
        print(f"peak {server.peak_mib():.0f} MiB")
        assert server.peak_mib() < limit
        for c in some[:10]:
            c.close()
        until = time.monotonic() + 10
        while True:
            with contextlib.suppress(frames.Refused, OSError), raw.Client(server.port) as c:
                c.ping()
                break
            assert time.monotonic() < until, "nobody is let in again"


def test_read_buffers_that_were_busy_are_given_back_in_the_middle_of_a_frame(start):
    server, limit = start(memory_mib=64), 64
    pongs = frames.frame(frames.command(frames.PONG, {})) * (1 << 18)
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            c = stack.enter_context(raw.Client(server.port))
            c.write(pongs + frames.frame(frames.command(frames.PING, {})) + b"\x00")
            c.expect(frames.PONG)
        print(f"peak {server.peak_mib():.0f} MiB")
        assert server.peak_mib() < limit


def test_watchers_and_properties_without_end(start):
    """Lists of a thousand topics, and subscriptions that say much of themselves."""
    server, limit, topics = start(memory_mib=64), 64, 1000
    server.admin("PUT", f"persistent/public/default/{'t' * 100}/partitions", topics)
    refused = {frames.WATCH_TOPIC_LIST: 0, frames.SUBSCRIBE: 0}
    with contextlib.ExitStack() as stack:
        for i in range(10):
            c = stack.enter_context(raw.Client(server.port))
            for n in range(60):
                watch = {1: n, 2: n, 3: "public/default", 4: "persistent://public/default/t.*"}
                subscribe = {1: f"{TOPIC}-{i}", 2: f"s-{n}", 3: raw.SHARED, 4: n, 5: n, 10: frames.message({1: "k", 2: "v" * 30_000})}
                for kind, body in ((frames.WATCH_TOPIC_LIST, watch), (frames.SUBSCRIBE, subscribe)):
                    c.write(frames.frame(frames.command(kind, body)))
                    while (answer := c.read()[0]) not in (frames.SUCCESS, frames.ERROR, frames.WATCH_TOPIC_LIST_SUCCESS):
                        pass
                    refused[kind] += answer == frames.ERROR
        print(f"refused {refused}, peak {server.peak_mib():.0f} MiB")
        assert 0 < min(refused.values()) and max(refused.values()) < 600
        assert server.peak_mib() < limit


@pytest.mark.parametrize("same_subscription", [False, True])
def test_consumer_that_never_reads_stops_nobody_else(start, same_subscription):
    """It has all permits, and its socket fills; when it has gone, the others get what it held."""
    server, count = start(memory_mib=128), 60_000
    stuck = raw.Client(server.port, receive_buffer=4096)
    stuck.subscribe(TOPIC, "s" if same_subscription else "stuck")
    stuck.flow(MANY_PERMITS if not same_subscription else 20_000)
    consumer = server.perf("consume", topic=TOPIC, subscription="s", subscription_type="shared", initial="earliest",
                           num_messages=count if not same_subscription else count - 20_000, duration="60s")
    server.produce(topic=TOPIC, size=1024, num_messages=count, batching_max_messages=0)
    received = finish(consumer)["messages"]
    stuck.close()
    if same_subscription:
        received += server.consume(topic=TOPIC, subscription="s", subscription_type="shared", num_messages=count - received,
                                   duration="30s")["messages"]
    assert received == count


def test_many_shared_subscriptions_that_do_not_acknowledge(start):
    """Their consumers take all they get and acknowledge nothing: what the server has to remember of that is bounded, whoever
    acknowledges goes on although the others do not, and in the end all have everything."""
    limit, subscriptions, count, first = 64, size("UNACKED_SUBSCRIPTIONS", 80), 8000, 3
    server = start(memory_mib=limit)
    with contextlib.ExitStack() as stack:
        consumers = [stack.enter_context(raw.Client(server.port, timeout_s=60)) for _ in range(subscriptions)]
        for n, consumer in enumerate(consumers):
            consumer.subscribe(TOPIC, f"s-{n}")
        server.produce(topic=TOPIC, size=10, num_messages=count, batching_max_messages=0)
        before = server.rss_mib()

        def take(consumer):
            consumer.flow(2 * count)
            return consumer.receive_until_silence(2)

        def acknowledge(consumer, ids):
            """Until it has everything."""
            got = set(ids)
            while ids:
                consumer.ack(ids)
                ids = consumer.receive_until_silence(2)
                got.update(ids)
            return len(got)

        with concurrent.futures.ThreadPoolExecutor(subscriptions) as pool:
            held = list(pool.map(take, consumers))
            growth, most = server.rss_mib() - before, sum(len(ids) for ids in held)
            with urllib.request.urlopen(f"{server.admin_url}/metrics", timeout=30) as page:
                lines = [line.rpartition(" ") for line in page.read().decode().splitlines()]
            used, bound = (next(float(value) for name, _, value in lines
                                if name == f'geminga_memory_{what}_bytes{{purpose="unacked"}}') for what in ("used", "limit"))
            print(f"{most} messages held, {growth:.1f} MiB more, {used:.0f} of {bound:.0f} bytes charged")
            assert count < most < subscriptions * count
            assert 0.5 * bound < used < 2 * bound
            # Without a bound all 640,000 messages would be held, of some 45 bytes each.
            assert growth < 32
            stopped = [n for n in range(subscriptions) if "memory for unacknowledged messages is used up" in
                       server.admin("GET", f"persistent/public/default/t/subscription/s-{n}/explain")["summary"]]
            assert {n for n, ids in enumerate(held) if len(ids) < count} == set(stopped)
            assert [acknowledge(*one) for one in zip(consumers[:first], held)] == [count] * first
            assert list(pool.map(acknowledge, consumers[first:], held[first:])) == [count] * (subscriptions - first)
        print(f"peak {server.peak_mib():.0f} MiB")
        assert server.peak_mib() < limit


def test_backlog_larger_than_memory_to_ten_subscriptions(start):
    limit, backlog = 64, size("BACKLOG_MIB", 200)
    server, subscriptions, count = start(memory_mib=limit), 10, backlog * 1024
    for i in range(subscriptions):
        server.admin("PUT", f"persistent/public/default/t/subscription/s-{i}")
    server.produce(topic=TOPIC, size=1024, num_messages=count)
    result = server.consume(topic=TOPIC, subscription="s", subscriptions=subscriptions, connections=2,
                            num_messages=count * subscriptions, duration="60s")
    print(f"{result['msg_s']:.0f} msg/s, peak {server.peak_mib():.0f} MiB")
    assert result["messages"] == count * subscriptions
    assert server.peak_mib() < limit


def test_holes_of_a_cursor_survive_sigkill_in_little_memory(start):
    """Every second message is acknowledged; after SIGKILL exactly the others come back, however many holes that makes.

    Exclusive, because a shared subscription stops at 50,000 unacknowledged messages, as Pulsar's does."""
    holes = size("HOLES", 150_000)
    server, count = start(), 2 * holes
    with raw.Client(server.port) as c:
        c.subscribe(TOPIC, "s", raw.EXCLUSIVE)
    server.produce(topic=TOPIC, size=10, num_messages=count, batching_max_messages=0)
    published = time.monotonic()
    with raw.Client(server.port, timeout_s=60) as c:
        c.subscribe(TOPIC, "s", raw.EXCLUSIVE)
        c.flow(count)
        ids = sorted(c.receive(count))
        assert len(set(ids)) == count
        before, received = server.rss_mib(), time.monotonic()
        c.ack(ids[::2])
        print(f"received in {received - published:.1f} s, acknowledged in {time.monotonic() - received:.1f} s")
        growth = server.rss_mib() - before
    server.kill()
    seconds = server.start()
    with raw.Client(server.port, timeout_s=60) as c:
        c.subscribe(TOPIC, "s", raw.EXCLUSIVE)
        c.flow(count)
        back = c.receive(holes)
        again = server.rss_mib()
        back += c.receive_until_silence(1)
    peak = server.peak_mib()
    print(f"{holes} holes: {growth:.1f} MiB more, {again:.0f} MiB after a restart in {seconds:.1f} s, at most {peak:.0f} MiB held")
    assert sorted(back) == ids[1::2]
    assert growth < 40 + holes * 64 / 2**20
    assert peak < 256


def test_a_bundle_of_many_subscriptions_with_holes_loads_at_once(start):
    """A topic of ten thousand subscriptions that have acknowledged every second message: after SIGKILL the first client waits less than
    a second, and has what it had not acknowledged."""
    server, subscriptions = start(), size("SUBSCRIPTIONS", 10_000)
    holes = size("HOLES_PER_SUBSCRIPTION", 100)
    with raw.Client(server.port) as c:
        c.subscribe(TOPIC, "s-0", raw.EXCLUSIVE)
        server.produce(topic=TOPIC, size=10, num_messages=2 * holes, batching_max_messages=0)
        c.flow(2 * holes)
        ids = sorted(c.receive(2 * holes))

    def acknowledge(first, threads=16):
        with raw.Client(server.port, timeout_s=60) as c:
            for n in range(first, subscriptions, threads):
                c.subscribe(TOPIC, f"s-{n}", raw.EXCLUSIVE, consumer_id=n)
                c.ack(ids[::2], consumer_id=n)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(acknowledge, range(16)))
    before = server.rss_mib()
    server.kill()
    started = server.start()
    with raw.Client(server.port) as c:
        since = time.monotonic()
        c.subscribe(TOPIC, f"s-{subscriptions // 2}", raw.EXCLUSIVE)
        loaded = time.monotonic() - since
        c.flow(3 * holes)
        assert sorted(c.receive(holes)) == ids[1::2]
        assert c.receive_until_silence(0.5) == []
    print(f"{subscriptions} subscriptions with {holes} holes each: started in {started:.2f} s, loaded in {loaded:.2f} s; {before:.0f} MiB")
    assert loaded < 1
