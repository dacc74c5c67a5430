"""The cases of the comparison. Each takes a Bench and returns a flat record; METRICS says which fields the table shows."""
import dataclasses
import time
from typing import Callable

from drivers import PERF_IN_FLIGHT, Meter
from harness import procfs


@dataclasses.dataclass
class Metric:
    name: str
    more_is_better: bool


METRICS = [Metric("msg_per_server_cpu_s", True), Metric("msg_s", True), Metric("mb_s", True), Metric("delivered_msg_s", True),
           Metric("catch_up_s", False), Metric("p50_ms", False), Metric("p99_ms", False), Metric("p999_ms", False),
           Metric("p99_of_fdatasync_p99", False), Metric("p99_of_floor_p99", False), Metric("floor_p99_of_fdatasync_p99", False),
           Metric("end_to_end_p50_ms", False), Metric("end_to_end_p99_ms", False), Metric("end_to_end_p999_ms", False),
           Metric("rss_mib", False), Metric("pss_mib", False), Metric("pss_peak_mib", False), Metric("idle_cpu_cores", False),
           Metric("first_publish_s", False), Metric("serving_again_s", False)]


@dataclasses.dataclass
class Case:
    about: str
    run: Callable
    targets: dict
    own_server: bool = False    # starts (and perhaps kills) it itself
    warm: bool = True
    nodes: int = 1              # storage nodes of a case that only a cluster has
    limits: dict = dataclasses.field(default_factory=dict)  # what of ours has to stay below, whatever Pulsar does


def cpu(size, *arguments):
    """Full speed of pulsar-perf, for messages per second of server CPU."""
    def run(bench):
        topic, seconds = bench.topic("cpu"), bench.options.seconds
        with Meter(bench.server) as meter:
            messages, _ = bench.pulsar_perf(["produce", "-s", str(size), "-r", "1000000", "-time", str(seconds), *arguments, topic], seconds + 60)
        bench.drop(topic)
        return {**meter.of(messages), "msg_s": round(messages / seconds)}
    return run


def publish(size, *arguments):
    """Full speed of `geminga perf`."""
    def run(bench):
        topic, seconds = bench.topic("publish"), bench.options.seconds
        with Meter(bench.server) as meter:
            result = bench.perf("produce", "--topic", topic, "--size", size, "--rate", 0, "--duration", f"{seconds}s", *arguments).result(seconds + 60)
        bench.drop(topic)
        return {**meter.of(result["messages"]), **pick(result, "msg_s", "mb_s", "p50_ms", "p99_ms", "p999_ms", "max_ms")}
    return run


def fixed_rate(*arguments, rate=10_000, seconds=30):
    """Latency of publishing, and of an exclusive consumer at the tail; and of the disk right before and after (disk.py)."""
    def run(bench):
        topic = bench.topic("rate")
        synced, floor = [bench.fdatasync_p99_ms()], [bench.floor_p99_ms(rate)]
        bench.subscribe(topic, "perf")
        consumer = bench.perf("consume", "--topic", topic, "--duration", f"{seconds + 8}s", "--warmup", "5s")
        bench.wait_consumers(topic, 1)
        with Meter(bench.server) as meter:
            result = bench.perf("produce", "--topic", topic, "--size", 1024, "--rate", rate, "--warmup", "5s",
                                "--duration", f"{seconds}s", *arguments).result(seconds + 60)
        tail = consumer.result(60)
        bench.drop(topic)
        floor.append(bench.floor_p99_ms(rate))
        synced.append(bench.fdatasync_p99_ms())
        disk, least = sum(synced) / 2, sum(floor) / 2
        return {**meter.of(result["messages"]), **pick(result, "msg_s", "p50_ms", "p99_ms", "p999_ms", "max_ms"),
                "fdatasync_p99_ms": [round(ms, 3) for ms in synced], "p99_of_fdatasync_p99": round(result["p99_ms"] / disk, 2),
                "floor_p99_ms": [round(ms, 3) for ms in floor], "p99_of_floor_p99": round(result["p99_ms"] / least, 2),
                "floor_p99_of_fdatasync_p99": round(least / disk, 2),
                **{f"end_to_end_{k}": v for k, v in pick(tail, "p50_ms", "p99_ms", "p999_ms", "max_ms").items()}}
    return run


def drain(kind):
    """A backlog larger than the servers' caches, read by one consumer."""
    def run(bench):
        topic, count = bench.topic("drain"), int(bench.options.backlog_gib * 2**30 / 1024)
        bench.subscribe(topic, "perf")
        filled = bench.perf("produce", "--topic", topic, "--size", 1024, "--rate", 0, "--num-messages", count).result(600)
        time.sleep(5)
        with Meter(bench.server) as meter:
            result = bench.perf("consume", "--topic", topic, "--subscription-type", kind, "--num-messages", filled["messages"]).result(600)
        bench.drop(topic)
        return {**meter.of(result["messages"]), "fill_msg_s": filled["msg_s"], "delivered_msg_s": result["msg_s"]}
    return run


def flow(consumer_arguments, producer_arguments, consumers, deliveries):
    """Producers at full speed with consumers beside them: deliveries until the backlog is empty."""
    def run(bench):
        topic, seconds = bench.topic("flow"), bench.options.seconds
        begin = time.monotonic()
        consumer = bench.perf("consume", "--topic", topic, "--idle-timeout", "15s", *consumer_arguments)
        while True:
            try:
                bench.wait_consumers(topic, consumers)
                break
            except OSError:
                if time.monotonic() - begin > 30:
                    raise
                time.sleep(0.2)
        with Meter(bench.server) as meter:
            begin = time.monotonic()
            result = bench.perf("produce", "--topic", topic, "--size", 1024, "--rate", 0, "--duration", f"{seconds}s",
                                *producer_arguments).result(seconds + 60)
            ended = time.monotonic()
            while bench.backlog(topic) > 0 and time.monotonic() - ended < 180:
                time.sleep(0.1)
            done = time.monotonic()
        tail = consumer.result(120)
        bench.drop(topic)
        if tail["messages"] < result["messages"] * deliveries:
            raise RuntimeError(f"published {result['messages']}, but {tail['messages']} of {result['messages'] * deliveries} were delivered")
        return {**meter.of(tail["messages"]), "msg_s": result["msg_s"], "delivered_msg_s": round(tail["messages"] / (done - begin)),
                "catch_up_s": round(done - ended, 2), **{f"end_to_end_{k}": v for k, v in pick(tail, "p50_ms", "p99_ms", "p999_ms").items()}}
    return run


def beside(seconds=40):
    """Latency at a fixed rate while a reader catches up again and again, and what a lost storage node had is copied."""
    def run(bench):
        server = bench.server
        server.start()
        bench.warm_up()
        topic, history = bench.topic("rate"), bench.topic("history")
        for name in (topic, history):
            bench.subscribe(name, "perf")
        count = int(bench.options.backlog_gib * 2**30 / 1024)
        bench.perf("produce", "--topic", history, "--size", 1024, "--rate", 0, "--num-messages", count).result(900)
        server.lose_node()
        consumer = bench.perf("consume", "--topic", topic, "--duration", f"{seconds + 8}s", "--warmup", "5s")
        bench.wait_consumers(topic, 1)
        read, passes = 0, 0
        with Meter(server) as meter:
            producer = bench.perf("produce", "--topic", topic, "--size", 1024, "--rate", 10_000, "--warmup", "5s", "--duration", f"{seconds}s")
            while producer.process.poll() is None:
                reader = bench.perf("consume", "--topic", history, "--subscription", f"again-{passes}", "--initial", "earliest", "--num-messages", count)
                while reader.process.poll() is None and producer.process.poll() is None:
                    time.sleep(0.1)
                if reader.process.poll() is None:
                    reader.process.kill()
                    reader.process.communicate()
                else:
                    read += reader.result(10)["messages"]
                passes += 1
            result = producer.result(60)
        tail = consumer.result(60)
        return {**meter.of(result["messages"]), **pick(result, "msg_s", "p50_ms", "p99_ms", "p999_ms", "max_ms"),
                **{f"end_to_end_{k}": v for k, v in pick(tail, "p50_ms", "p99_ms", "p999_ms", "max_ms").items()},
                "read_again": read, "ledgers_still_to_repair": server.ledgers_to_repair()}
    return run


def idle(bench):
    time.sleep(15)
    pids = bench.server.pids
    before = procfs.sum_over(pids, procfs.cpu_s)
    time.sleep(10)
    return {"rss_mib": round(procfs.sum_over(pids, procfs.rss_mib), 1), "pss_mib": round(procfs.sum_over(pids, procfs.pss_mib), 1),
            "idle_cpu_cores": round((procfs.sum_over(pids, procfs.cpu_s) - before) / 10, 4)}


def first_publish(bench):
    """From exec on an empty folder to the first acknowledged publish."""
    since = time.monotonic()
    bench.server.start()
    return {"first_publish_s": round(bench.server.wait_first_publish(since, 180) if bench.server.name == "geminga" else time.monotonic() - since, 3)}


def kill(bench):
    """SIGKILL under load on a large log, until a publish is acknowledged again."""
    server, topic = bench.server, bench.topic("kill")
    server.start()
    bench.subscribe(topic, "s")
    count = int(bench.options.log_gib * 2**30 / 1024)
    bench.perf("produce", "--topic", topic, "--size", 1024, "--rate", 0, "--num-messages", count).result(900)
    load = bench.perf("produce", "--topic", topic, "--size", 1024, "--rate", 10_000, "--duration", "60s")
    time.sleep(5)
    server.kill()
    load.process.kill()
    load.process.wait()
    since = time.monotonic()
    server.start()
    return {"serving_again_s": round(server.wait_first_publish(since, 300), 3)}


def pick(record, *names):
    return {n: record[n] for n in names if n in record}


UNBATCHED = ["--batching-max-messages", 1]
CASES = {
    "idle": Case("memory and CPU of a server that nobody uses", idle, {"pss_mib": 20}, warm=False),
    "cpu-1k": Case("pulsar-perf, 1 KiB, batched", cpu(1024, *PERF_IN_FLIGHT), {"msg_per_server_cpu_s": 3, "pss_peak_mib": 10}),
    "cpu-100b": Case("pulsar-perf, 100 B, batched", cpu(100, *PERF_IN_FLIGHT), {"msg_per_server_cpu_s": 4, "pss_peak_mib": 10}),
    "cpu-1k-unbatched": Case("pulsar-perf, 1 KiB, unbatched, 1,000 in flight", cpu(1024, "-db", "-o", "1000"), {"msg_per_server_cpu_s": 6}),
    "publish-1k": Case("geminga perf, 1 KiB, batched", publish(1024), {"msg_s": 2, "pss_peak_mib": 10}),
    "publish-100b-50": Case("geminga perf, 100 B, unbatched, 50 producers", publish(100, "--producers", 50, *UNBATCHED), {"msg_s": 4}),
    "rate-10k": Case("geminga perf, 10,000 msg/s of 1 KiB, batched", fixed_rate(),
                     {"p50_ms": 4, "p99_ms": 5, "p999_ms": 5, "end_to_end_p50_ms": 4, "end_to_end_p99_ms": 4}, limits={"p99_of_fdatasync_p99": 3}),
    "rate-10k-unbatched": Case("the same, unbatched", fixed_rate(*UNBATCHED),
                               {"p50_ms": 4, "p99_ms": 5, "p999_ms": 5, "end_to_end_p50_ms": 4, "end_to_end_p99_ms": 4}, limits={"p99_of_fdatasync_p99": 3}),
    "drain-exclusive": Case("a backlog larger than the cache, exclusive", drain("exclusive"), {"delivered_msg_s": 3}),
    "drain-shared": Case("a backlog larger than the cache, shared", drain("shared"), {"delivered_msg_s": 3}),
    "fanout-10": Case("10 subscriptions, producer at full speed", flow(["--subscriptions", 10], [], 10, 10), {"delivered_msg_s": 2}),
    "key-shared-10": Case("Key_Shared, 10 consumers, unbatched, producer at full speed",
                          flow(["--subscription-type", "key_shared", "--consumers", 10], ["--keys", 10_000, *UNBATCHED], 10, 1),
                          {"delivered_msg_s": 5}, limits={"catch_up_s": 1}),
    "start": Case("exec on an empty folder to the first acknowledged publish", first_publish, {"first_publish_s": 50}, own_server=True,
                  limits={"first_publish_s": 0.2}),
    "kill": Case("SIGKILL under load to the next acknowledged publish", kill, {}, own_server=True, limits={"serving_again_s": 1}),
    "beside": Case("10,000 msg/s of 1 KiB, batched, while a backlog is read again and again and a lost node's ledgers are copied", beside(),
                   {"p50_ms": 4, "p99_ms": 5, "p999_ms": 5, "end_to_end_p50_ms": 4, "end_to_end_p99_ms": 4}, own_server=True, nodes=4),
}
CLUSTER_CASES = ["idle", "cpu-1k", "publish-1k", "publish-100b-50", "rate-10k", "rate-10k-unbatched", "drain-exclusive", "beside"]
