"""`geminga doctor` on real clusters: what fits has no findings, what is broken is found, and metadata from before are noticed."""
import json
import subprocess
import time

import pulsar
import pytest

from conftest import BINARY, run_cluster
from harness import servers

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

    for process in [cluster.broker, *cluster.nodes]:
        process.stop()
    subprocess.run([postgres.programs / "psql", "-q", "-v", "ON_ERROR_STOP=1", "-f", dump, cluster.url], check=True, stdout=subprocess.DEVNULL)
    assert ledgers(postgres, cluster, OLD) == old[:1]
    for node in cluster.nodes:
        node.start()

    def check():
        code, report = examine(cluster)
        assert code == 1 and "ids_in_use" in kinds(report)
        lost = {(finding["ledger"], finding.get("topic")) for finding in report["findings"] if finding["finding"] == "lost"}
        assert lost >= {(old[1], OLD), (old[2], OLD), (new[0], NEW)}
        steps = report["proposal"]
        assert steps[0]["step"] == "raise_ledger_ids" and steps[0]["to"] > max(old + new)
        extended = {step["topic"]: (step["ledgers"], step["is_new"]) for step in steps if step["step"] == "extend_topic"}
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
    kept = {finding["ledger"]: finding["finding"] for finding in report["findings"]}
    assert code == 1 and kept.items() >= {old[1]: "lost", old[2]: "lost", new[0]: "doubtful"}.items()
