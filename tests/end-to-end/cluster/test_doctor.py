"""`geminga doctor` on real clusters: what fits has no findings, what is broken is found, and metadata from before are noticed."""
import hashlib
import json
import subprocess
import time

import grpc
import pulsar
import pytest

from conftest import BINARY, run_cluster
from harness import bookie, servers
from harness.bookie import Bookie

OLD, NEW = "persistent://public/default/old", "persistent://public/default/new"


@pytest.fixture
def cluster_with_control(postgres):
    """Three nodes in three zones that can be asked; with the URL of its metadata."""
    url = postgres.new_database()
    for cluster in run_cluster(url, 3, node_arguments=["--control-addr", "127.0.0.1:0"]):
        cluster.url = url
        yield cluster


def examine(cluster, *more):
    """Exit code, and what is printed."""
    command = [BINARY, "doctor", "--metadata-url", cluster.url, "--json", "--look-again-after", "1s", *more]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


def kinds(report):
    return {finding["finding"] for finding in report["findings"]}


def produce(cluster, topic, first, count):
    client = pulsar.Client(cluster.pulsar_url)
    try:
        producer = client.create_producer(topic, batching_enabled=False)
        for number in range(first, first + count):
            producer.send(str(number).encode())
    finally:
        client.close()


def sql(postgres, cluster, statement):
    done = subprocess.run([postgres.programs / "psql", "-qAt", "-v", "ON_ERROR_STOP=1", "-c", statement, cluster.url], check=True,
                          capture_output=True, text=True)
    return done.stdout.strip()


def ledgers(postgres, cluster, topic):
    path = topic.replace("persistent://public/default/", "topics/public/default/persistent/")
    value = sql(postgres, cluster, f"SELECT convert_from(value, 'UTF8') FROM geminga.records WHERE convert_from(key, 'UTF8') = '{path}'")
    return [ledger["ledger_id"] for ledger in json.loads(value)["d"]["ledgers"]]


def keep_garbage(cluster):
    """Nodes sweep what metadata do not know: not any more."""
    for node in cluster.nodes:
        node.stop()
        node.arguments[node.arguments.index("--garbage-interval") + 1] = "1h"
        node.start()


def restart(broker):
    broker.stop()
    broker.start()


def test_what_is_broken_is_found_and_what_was_not_asked_is_not_lost(cluster_with_control, postgres, tmp_path):
    cluster = cluster_with_control
    produce(cluster, OLD, 0, 20)
    restart(cluster.broker)
    produce(cluster, OLD, 20, 20)
    code, report = examine(cluster)
    assert (code, report["findings"], report["nodes"], report["topics"]) == (0, [], 3, 1) and report["ledgers"] == 2

    cluster.nodes[0].kill()
    code, report = examine(cluster)
    assert code == 1 and kinds(report) == {"not_asked"} and len(report["notAsked"]) == 1
    cluster.nodes[0].start()
    assert examine(cluster)[0] == 0

    cluster.broker.stop()
    first = ledgers(postgres, cluster, OLD)[0]
    sql(postgres, cluster, f"DELETE FROM geminga.records WHERE convert_from(key, 'UTF8') = 'ledgers/{first:020}'")
    plan = tmp_path / "plan.json"
    code, report = examine(cluster, "--repair-plan", str(plan))
    assert code == 1 and report["findings"] == [{"finding": "no_record", "ledger": first, "owner": {"topic": OLD}}]
    (step,) = json.loads(plan.read_text())["steps"]
    assert (step["step"], step["ledger"], step["last_entry"]) == ("restore_record", first, 19) and len(step["nodes"]) >= 2

    cluster.url = "sqlite:/nowhere/metadata.db"
    code, complaint = examine(cluster)
    assert code == 2 and "no file" in complaint


def test_metadata_from_before_are_noticed_and_nothing_is_swept(cluster_with_control, postgres, tmp_path):
    cluster, dump = cluster_with_control, tmp_path / "dump.sql"
    produce(cluster, OLD, 0, 20)
    subprocess.run([postgres.programs / "pg_dump", "--clean", "--if-exists", "-f", dump, cluster.url], check=True)
    restart(cluster.broker)     # which takes new ids
    produce(cluster, OLD, 20, 20)
    produce(cluster, NEW, 0, 20)
    restart(cluster.broker)
    produce(cluster, OLD, 40, 5)
    old, new = ledgers(postgres, cluster, OLD), ledgers(postgres, cluster, NEW)
    assert len(old) == 3 and len(new) == 1 and examine(cluster)[0] == 0
    time.sleep(3)               # so that nodes remember newer metadata

    for process in [cluster.broker, *cluster.nodes]:
        process.stop()
    subprocess.run([postgres.programs / "psql", "-q", "-v", "ON_ERROR_STOP=1", "-f", dump, cluster.url], check=True, stdout=subprocess.DEVNULL)
    assert ledgers(postgres, cluster, OLD) == old[:1]
    for node in cluster.nodes:
        node.start()

    def check():
        code, report = examine(cluster)
        assert code == 1 and "ids_in_use" in kinds(report)
        lost = {(finding["ledger"], finding["owner"]["topic"]) for finding in report["findings"]
                if finding["finding"] == "lost" and "topic" in (finding["owner"] or {})}
        assert lost >= {(old[1], OLD), (old[2], OLD), (new[0], NEW)}
        steps = report["proposal"]
        assert steps[0]["step"] == "raise_ledger_ids" and steps[0]["to"] > max(old + new)
        extended = {step["topic"]: (step["ledgers"], step["seen"] is None) for step in steps if step["step"] == "extend_topic"}
        assert extended == {OLD: (old[1:], False), NEW: (new, True)}
        restored = {step["ledger"]: step for step in steps if step["step"] == "restore_record"}
        assert restored[new[0]]["last_entry"] == 19 and len(restored[new[0]]["nodes"]) >= 2

    check()
    swept = [node.log_end(10**9).count("no ledger is deleted") for node in cluster.nodes]
    servers.wait_for(lambda: all(node.log_end(10**9).count("no ledger is deleted") > before + 2 for node, before in zip(cluster.nodes, swept)))
    check()

    # Somebody starts brokers all the same, which take ids; and the nodes are started again.
    sql(postgres, cluster, "UPDATE geminga.sequences SET next = 100000 WHERE name = 'ledger-id'")
    for node in cluster.nodes:
        restart(node)
    time.sleep(7)               # in which nodes look for garbage three times
    code, report = examine(cluster)
    kept = {finding["ledger"]: finding["finding"] for finding in report["findings"] if "ledger" in finding}
    assert code == 1 and kept.items() >= {old[1]: "lost", old[2]: "lost", new[0]: "doubtful"}.items()
    assert "restored" in kinds(report), "whatever ids were given out since"


def test_looking_changes_nothing(cluster_with_control, postgres):
    cluster = cluster_with_control
    produce(cluster, OLD, 0, 20)
    for process in [cluster.broker, *cluster.nodes]:    # which write, at work
        process.stop()
    dump = [postgres.programs / "pg_dump", "--data-only", "--inserts", cluster.url]
    contents = lambda: [line for line in subprocess.check_output(dump, text=True).splitlines() if line.startswith("INSERT")]
    before = contents()
    assert any("geminga.records" in line for line in before)
    code, report = examine(cluster)
    assert code == 1 and kinds(report) == {"not_asked"} and len(report["notAsked"]) == 3
    assert contents() == before

    cluster.url = postgres.new_database()
    code, complaint = examine(cluster)
    assert code == 2 and "has no schema" in complaint
    assert sql(postgres, cluster, "SELECT count(*) FROM pg_namespace WHERE nspname = 'geminga'") == "0"


def state(postgres, cluster):
    """Metadata but for what nodes write all the time, and what each node has: ledgers with their entries, bytes and fences."""
    records = sql(postgres, cluster, "SELECT * FROM geminga.records WHERE convert_from(key, 'UTF8') !~ "
                  "'^(leases/|witnesses/|load-reports/|repair-workers/|audit$)' ORDER BY key")
    here = []
    for node in cluster.nodes:
        with grpc.insecure_channel(node.ready["control"]) as channel:
            here.append(sorted(channel.unary_stream("/geminga.storage.v1.StorageNode/ListLedgers")(b"")))
    return records, sql(postgres, cluster, "SELECT * FROM geminga.sequences ORDER BY name"), here


def test_looking_at_nodes_at_work_changes_nothing(cluster_with_control, postgres, tmp_path):
    cluster = cluster_with_control
    keep_garbage(cluster)
    produce(cluster, OLD, 0, 20)
    produce(cluster, NEW, 0, 20)
    cluster.broker.kill()       # so that ledgers stay open
    first, last = ledgers(postgres, cluster, OLD)[-1], ledgers(postgres, cluster, NEW)[-1]
    sql(postgres, cluster, f"DELETE FROM geminga.records WHERE convert_from(key, 'UTF8') = 'ledgers/{first:020}'")
    before = state(postgres, cluster)
    assert len(before[0].splitlines()) > 5 and all(before[2])
    for more in [[], ["--repair-plan", str(tmp_path / "plan.json")]]:
        code, report = examine(cluster, *more)
        assert (code, report["nodes"], report["notAsked"], report["proposal"][0]["step"]) == (1, 3, {}, "restore_record")
        assert state(postgres, cluster) == before
    with Bookie(cluster.nodes[0].ready["bookie"]) as node:
        assert node.fence(last, key=hashlib.sha1(b"ledger").digest()) == bookie.OK
    assert state(postgres, cluster) != before, "it would have been seen"


def apply(cluster, plan):
    """Exit code, and what is said of each step: one line each."""
    done = subprocess.run([BINARY, "doctor", "--metadata-url", cluster.url, "--apply", str(plan)], capture_output=True, text=True)
    return done.returncode, (done.stdout or done.stderr).splitlines()


def read_all(cluster, topic, count):
    """The numbers on a topic, in order."""
    client = pulsar.Client(cluster.pulsar_url, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
    try:
        reader = client.create_reader(topic, pulsar.MessageId.earliest)
        return [int(reader.read_next(20_000).data()) for _ in range(count)]
    finally:
        client.close()


def acknowledge(cluster, topic, subscription, count):
    """Takes and acknowledges so many messages; the numbers that came."""
    client = pulsar.Client(cluster.pulsar_url, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
    try:
        consumer = client.subscribe(topic, subscription, initial_position=pulsar.InitialPosition.Earliest)
        numbers = []
        for _ in range(count):
            message = consumer.receive(20_000)
            numbers.append(int(message.data()))
            consumer.acknowledge(message)
        return numbers
    finally:
        client.close()


def test_a_record_that_is_gone_is_an_error_and_no_empty_topic_and_comes_back(cluster_with_control, postgres, tmp_path):
    cluster, plan = cluster_with_control, tmp_path / "plan.json"
    keep_garbage(cluster)
    produce(cluster, OLD, 0, 20)
    produce(cluster, NEW, 0, 20)
    cluster.broker.kill()
    last = ledgers(postgres, cluster, OLD)[-1]
    sql(postgres, cluster, f"DELETE FROM geminga.records WHERE convert_from(key, 'UTF8') = 'ledgers/{last:020}'")
    cluster.broker.start()
    assert read_all(cluster, NEW, 20) == list(range(20)), "other topics go on"
    client = pulsar.Client(cluster.pulsar_url, operation_timeout_seconds=3, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
    with pytest.raises(pulsar.PulsarException):
        client.create_reader(OLD, pulsar.MessageId.earliest)
    client.close()
    assert f"ledger {last} is listed, and metadata have no record of it: run 'geminga doctor'" in cluster.broker.log_end(10**9)
    assert ledgers(postgres, cluster, OLD) == [last]

    assert examine(cluster, "--repair-plan", str(plan))[0] == 1
    code, lines = apply(cluster, plan)
    assert code == 2 and "brokers are at work" in lines[0], lines
    cluster.broker.stop()
    code, lines = apply(cluster, plan)
    assert code == 0 and lines[0].startswith("done:"), lines
    cluster.broker.start()
    assert read_all(cluster, OLD, 20) == list(range(20))


PARTED, GONE = "persistent://public/default/parted", "persistent://public/default/gone"
LATE, LATE_PARTED = "persistent://public/default/late", "persistent://public/default/late-parted"


def restore(postgres, cluster, dump):
    """As the runbook says, in one transaction, while storage nodes are at work."""
    command = [postgres.programs / "psql", "-q", "-v", "ON_ERROR_STOP=1", "--single-transaction", "-f", dump, cluster.url]
    while subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        time.sleep(0.2)         # as two may wait for each other


def sequences(postgres, cluster):
    return sql(postgres, cluster, "SELECT name, next FROM geminga.sequences ORDER BY name")


def test_an_older_dump_is_restored_and_nothing_that_was_acknowledged_is_lost(postgres, tmp_path):
    url, dump, plan = postgres.new_database(), tmp_path / "dump.sql", tmp_path / "plan.json"
    for cluster in run_cluster(url, 3, brokers=2, node_arguments=["--control-addr", "127.0.0.1:0"]):
        cluster.url = url
        cluster.admin("PUT", "persistent/public/default/parted/partitions", 3)
        for topic in [OLD, PARTED, GONE]:
            acknowledge(cluster, topic, "all", 0)
        produce(cluster, OLD, 0, 20)
        produce(cluster, PARTED, 0, 30)
        produce(cluster, GONE, 0, 10)
        assert acknowledge(cluster, OLD, "s", 5) == list(range(5))
        time.sleep(3)           # so that nodes have seen metadata that are older than the dump, and newer ones
        subprocess.run([postgres.programs / "pg_dump", "--clean", "--if-exists", "-f", dump, cluster.url], check=True)

        cluster.admin("PUT", "persistent/public/default/late-parted/partitions", 2)
        for topic in [LATE, LATE_PARTED]:
            acknowledge(cluster, topic, "all", 0)
        for step in range(3):   # each with new ledgers for topics and cursor logs, on other brokers
            for broker in cluster.brokers:
                restart(broker)
            produce(cluster, OLD, 20 + 10 * step, 10)
            produce(cluster, PARTED, 30 + 10 * step, 10)
            produce(cluster, LATE, 10 * step, 10)
            produce(cluster, LATE_PARTED, 10 * step, 10)
            assert acknowledge(cluster, OLD, "s", 10) == list(range(5 + 10 * step, 15 + 10 * step))
        cluster.admin("DELETE", "persistent/public/default/gone?force=true")
        time.sleep(3)
        cluster.brokers[0].kill()
        restore(postgres, cluster, dump)
        before = sequences(postgres, cluster)
        # One that is at work ends.
        assert cluster.brokers[1].process.wait(20) == 1 and "restored from an older dump under this broker" in cluster.brokers[1].log_end()

        # Somebody starts brokers before the doctor was there: they wait.
        for broker in cluster.brokers:
            broker.begin()
        servers.wait_for(lambda: all("waits until 'geminga doctor' has settled it" in broker.log_end() for broker in cluster.brokers))
        time.sleep(6)           # in which nodes look for garbage
        assert sequences(postgres, cluster) == before, "no id is given out"
        assert all(broker.alive() and not (broker.folder / "ready.json").exists() for broker in cluster.brokers)

        code, report = examine(cluster, "--repair-plan", str(plan))
        print(json.dumps(report, indent=1))
        assert code == 1 and {"restored", "lost", "not_partitioned"} <= kinds(report)
        code, lines = apply(cluster, plan)
        print("\n".join(lines))
        assert code == 0, lines
        for broker in cluster.brokers:
            broker.wait_until_ready()
        code, lines = apply(cluster, plan)
        assert code == 2 and "brokers are at work" in lines[0]

        assert read_all(cluster, OLD, 50) == list(range(50))
        assert read_all(cluster, LATE, 30) == list(range(30))
        for topic, count in [(PARTED, 60), (LATE_PARTED, 30)]:
            assert sorted(read_all(cluster, topic, count)) == list(range(count))
        assert acknowledge(cluster, OLD, "s", 15) == list(range(35, 50)), "no acknowledgement is lost, and nothing is left out"
        # What came after goes behind it.
        produce(cluster, OLD, 50, 5)
        assert acknowledge(cluster, OLD, "s", 5) == list(range(50, 55))
        code, report = examine(cluster)
        print(json.dumps(report, indent=1))
        assert not kinds(report) & {"restored", "ids_in_use", "lost", "no_record", "nowhere", "shared_ledger"}
