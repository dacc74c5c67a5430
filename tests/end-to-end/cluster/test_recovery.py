"""Storage nodes that are lost, return or are emptied: the cluster makes the copies that are missing, and no others."""
import re
import shutil
import time
import urllib.request

from conftest import MISSED_SOON, run_cluster
from harness import bookie
from harness.bookie import Bookie
from test_cluster import NAMESPACE, Load, check, everything
from test_damage import entries, ledgers

COPIES = "replication_worker_NUM_ENTRIES_WRITTEN"


def check_everything(cluster, topics, subscription):
    """All that was acknowledged in these topics is delivered."""
    for topic, numbers in topics.items():
        check(numbers, everything(cluster.pulsar_url, topic, subscription, quiet_s=1, expected=numbers))


def wait_for(what, is_so, limit_s=120):
    """What `is_so` answers once that is anything."""
    since = time.monotonic()
    while True:
        answer = is_so()
        if answer:
            return answer
        assert time.monotonic() - since < limit_s, f"waited for {limit_s} s: {what}"
        time.sleep(0.3)


def registered(cluster):
    """What is known of each node, in the order of `cluster.nodes`."""
    by_address = {node["address"]: node for node in cluster.command("storage-nodes", "list")}
    return [by_address[node.ready["bookie"]] for node in cluster.nodes]


def is_repaired(cluster, lost=(), since_ms=None):
    """An audit that began after `since_ms` knows of these lost nodes, and nothing is left to be done."""
    recovery = cluster.command("recovery")
    audit = recovery["last_audit"]
    return (audit and set(lost) <= set(audit["lost"]) and recovery["ledgers_to_repair"] == 0 and audit["started_ms"] > (since_ms or 0)
            and audit["under_replicated"] + audit["misplaced"] + audit["waiting_for_writers"] == 0)


def wait_until_repaired(cluster, lost=()):
    since_ms = time.time() * 1000
    try:
        wait_for("everything has its copies", lambda: is_repaired(cluster, lost, since_ms))
    except AssertionError:
        print(cluster.command("recovery"))
        raise


def metric(node, name):
    with urllib.request.urlopen(f"http://{node.ready['http']}/metrics", timeout=10) as page:
        return int(re.search(rf"^{name} (\d+)$", page.read().decode(), re.M)[1])


def copies(cluster):
    """Entries that nodes have copied, those that run."""
    return sum(metric(node, COPIES) for node in cluster.nodes if node.alive())


def keep_everything(cluster):
    """Also what every subscription has acknowledged."""
    cluster.admin("POST", "namespaces/public/default/retention", {"retentionTimeInMinutes": -1, "retentionSizeInMB": -1})


def produce(cluster, topic, seconds=2, closed=True):
    """Messages in a ledger that is closed then, or else stays open while nobody writes to it."""
    load = Load(cluster.pulsar_url, topic)
    time.sleep(seconds)
    acknowledged = load.finish()
    assert acknowledged and not load.failed
    if closed:
        cluster.admin("PUT", topic.replace("://", "/") + "/unload")
    return acknowledged


def produce_old(cluster):
    """Topics that nobody writes to any more, some with a ledger that is still open."""
    closed = {topic: produce(cluster, topic, 1) for topic in [f"{NAMESPACE}/old-{n}" for n in range(3)]}
    idle = {topic: produce(cluster, topic, 1, closed=False) for topic in [f"{NAMESPACE}/idle-{n}" for n in range(2)]}
    return closed | idle


def test_a_node_is_lost_for_good_under_load_and_then_one_of_another_zone(cluster_that_repairs):
    cluster = cluster_that_repairs
    keep_everything(cluster)
    old = produce_old(cluster)
    ids = [node["id"] for node in registered(cluster)]
    loads = {topic: Load(cluster.pulsar_url, topic) for topic in [f"{NAMESPACE}/busy-{n}" for n in range(2)]}
    time.sleep(1)
    # Every ledger has a copy in the first zone, on one of its two nodes.
    first, third = sorted([0, 3], key=lambda n: metric(cluster.nodes[n], "bookie_ledgers_count"), reverse=True)
    cluster.nodes[first].kill()
    wait_until_repaired(cluster, [ids[first]])
    assert copies(cluster) > 0
    # The first zone has one node left, the second loses one.
    cluster.nodes[1].kill()
    time.sleep(3)
    acknowledged = {topic: load.finish() for topic, load in loads.items()}
    for topic, load in loads.items():
        print(f"{topic}: {len(acknowledged[topic])} messages, the slowest took {load.slowest:.2f} s")
        assert not load.failed and load.slowest < 5
    check_everything(cluster, old | acknowledged, "after-two")
    # When all of that is copied again, the other node of the first zone and one more may go.
    wait_until_repaired(cluster, [ids[first], ids[1]])
    cluster.nodes[third].kill()
    check_everything(cluster, old, "after-three")


def test_a_whole_zone_is_lost_for_good_under_load(cluster_that_repairs):
    cluster = cluster_that_repairs
    keep_everything(cluster)
    old = {topic: produce(cluster, topic, 1) for topic in [f"{NAMESPACE}/old-{n}" for n in range(3)]}
    lost = [registered(cluster)[n]["id"] for n in (1, 4)]
    loads = {topic: Load(cluster.pulsar_url, topic, pause_s=0.1) for topic in [f"{NAMESPACE}/busy-{n}" for n in range(2)]}
    time.sleep(1)
    for n in (1, 4):
        cluster.nodes[n].kill()
    wait_until_repaired(cluster, lost)
    acknowledged = {topic: load.finish() for topic, load in loads.items()}
    for topic, load in loads.items():
        print(f"{topic}: {len(acknowledged[topic])} messages, the slowest took {load.slowest:.2f} s")
        assert not load.failed and load.slowest < 5
    check_everything(cluster, old | acknowledged, "without-a-zone")
    # The nodes that are left, two zones of two, have as many copies as there were: another one may go.
    wait_until_repaired(cluster, lost)
    assert copies(cluster) > sum(len(numbers) for numbers in old.values())
    cluster.nodes[2].kill()
    check_everything(cluster, old | acknowledged, "without-another-node")


def test_a_node_that_returns_is_given_what_it_missed_and_nothing_else(cluster_that_repairs):
    cluster = cluster_that_repairs
    keep_everything(cluster)
    topics = [f"{NAMESPACE}/kept-{n}" for n in range(4)]
    old = {topic: produce(cluster, topic, 2) for topic in topics}
    wait_until_repaired(cluster)
    before = copies(cluster)
    victim = cluster.nodes[2]
    # Within the grace.
    busy = Load(cluster.pulsar_url, f"{NAMESPACE}/meanwhile")
    time.sleep(1)
    victim.kill()
    time.sleep(4)
    victim.start()
    time.sleep(8)
    acknowledged = busy.finish()
    wait_until_repaired(cluster)
    extra, entries = copies(cluster) - before, sum(len(numbers) for numbers in old.values())
    print(f"{extra} copies for what was in flight, of {entries} messages that were there before")
    assert extra < 1000 and not busy.failed
    # After it: what it had is elsewhere by then, and it stays empty-handed.
    node_id = registered(cluster)[2]["id"]
    victim.kill()
    wait_until_repaired(cluster, [node_id])
    before = copies(cluster)
    victim.start()
    time.sleep(8)
    wait_until_repaired(cluster)
    assert copies(cluster) == before
    check_everything(cluster, old | {f"{NAMESPACE}/meanwhile": acknowledged}, "all")


def test_a_decommissioned_node_is_emptied_while_it_is_written_to(cluster_that_repairs):
    cluster = cluster_that_repairs
    keep_everything(cluster)
    old = produce_old(cluster)
    busy = Load(cluster.pulsar_url, f"{NAMESPACE}/busy")
    time.sleep(1)
    node_id = registered(cluster)[4]["id"]
    cluster.command("storage-nodes", "decommission", node_id)
    done = wait_for("nothing depends on the node", lambda: registered(cluster)[4]["decommission"]["done"])
    assert done and cluster.nodes[4].alive()
    time.sleep(1)
    cluster.nodes[4].kill()
    time.sleep(2)
    acknowledged = busy.finish()
    print(f"{len(acknowledged)} messages, the slowest took {busy.slowest:.2f} s")
    assert not busy.failed and busy.slowest < 5
    # Nor does anything depend on it for reading: another one may go.
    cluster.nodes[0].kill()
    check_everything(cluster, old | {f"{NAMESPACE}/busy": acknowledged}, "all")
    wait_for("the node is not alive any more", lambda: not registered(cluster)[4]["alive"])
    cluster.command("storage-nodes", "forget", node_id)
    assert node_id not in [node["id"] for node in cluster.command("storage-nodes", "list")]


def test_a_node_of_which_a_disk_was_given_up_gets_back_what_it_lacks(tmp_path):
    database = tmp_path / "metadata.db"
    for cluster in run_cluster(f"sqlite:{database}", 3, node_arguments=[*MISSED_SOON, "--close-damaged-after", "4s"]):
        keep_everything(cluster)
        victim, other = cluster.nodes[2], cluster.nodes[0]
        disk = victim.folder / "second"
        victim.stop()
        victim.arguments += ["--data-dir", str(disk)]
        victim.start()
        old = produce_old(cluster)
        for n in range(12):
            topic = f"{NAMESPACE}/short-{n}"
            old[topic] = produce(cluster, topic, 0.3)
        wait_until_repaired(cluster)
        expected = {ledger: bodies for ledger, bodies in entries(other.ready, ledgers(database)).items() if bodies}

        victim.kill()
        shutil.rmtree(disk)
        victim.arguments.append("--give-up-missing-directories")
        ready = victim.start()
        assert metric(victim, "geminga_storage_unsettled") == 1
        lost = []
        with Bookie(ready["bookie"]) as node:
            for ledger in expected:
                code = node.read(ledger, 0)[0]
                assert code in (bookie.OK, bookie.UNKNOWN)
                if code == bookie.UNKNOWN:
                    lost.append(ledger)
        assert len(lost) > 3
        wait_for("it is settled what it lacks", lambda: metric(victim, "geminga_storage_unsettled") == 0)
        # Not all at once, nor in one life.
        victim.kill()
        victim.arguments.pop()
        ready = victim.start()
        assert metric(victim, "geminga_storage_unsettled") == 0
        wait_for("it has everything", lambda: metric(victim, "geminga_storage_unfinished_ledgers") == 0)
        wait_until_repaired(cluster)
        assert entries(ready, expected) == expected
        # So that another one may go.
        cluster.nodes[1].kill()
        check_everything(cluster, old, "all")
        cluster.nodes[1].start()
