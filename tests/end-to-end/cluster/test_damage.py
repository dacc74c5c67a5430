"""Bits turn on the disk of a storage node: the scrub finds them, the other nodes repair what they hit, and the node has it again."""
import random
import re
import sqlite3
import time
import urllib.request

import pytest

from conftest import run_cluster
from harness import bookie, servers
from harness.bookie import Bookie
from load import Load, everything

HEAD_BYTES = 8192
NAMESPACE = "persistent://public/default"


@pytest.fixture
def scrubbing(tmp_path):
    """Three nodes that scrub all the time, and the file with their metadata."""
    database = tmp_path / "metadata.db"
    for cluster in run_cluster(f"sqlite:{database}", 3, node_arguments=["--scrub-interval", "500ms", "--scrub-rate", "500MiB"]):
        yield cluster, database


def metric(ready, name):
    with urllib.request.urlopen(f"http://{ready['http']}/metrics", timeout=30) as page:
        text = page.read().decode()
    return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE).group(1))


def ledgers(database):
    with sqlite3.connect(database) as metadata:
        return [int(key.split("/")[1]) for (key,) in metadata.execute("SELECT key FROM records WHERE key LIKE 'ledgers/%'")]


def entries(ready, ids):
    """Everything that a node has of the ledgers, by ledger."""
    found = {}
    with Bookie(ready["bookie"]) as node:
        for ledger in ids:
            of_ledger = []
            while True:
                code, body = node.read(ledger, len(of_ledger))
                if code in (bookie.NO_ENTRY, bookie.NO_LEDGER):
                    break
                assert code == bookie.OK, f"entry {ledger}:{len(of_ledger)}: code {code}"
                of_ledger.append(body)
            found[ledger] = of_ledger
    return found


def turn_bits(folder, random_state, count):
    """In records and indexes; not all in one place."""
    segments = [(path, used(path)) for path in sorted((folder / "data" / "log").glob("segment-*"))]
    segments = [(path, end) for path, end in segments if end > HEAD_BYTES + 4096]
    assert segments
    for _ in range(count):
        path, end = random_state.choice(segments)
        with open(path, "r+b") as file:
            at = random_state.randrange(HEAD_BYTES, end)
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << random_state.randrange(8)]))


def lose_a_stretch(folder, random_state, size=64 * 1024):
    """In the middle of what the first segment has: longer than what one write of the log brings, so that the head of a write is in it."""
    path = min((folder / "data" / "log").glob("segment-*"))
    middle = (HEAD_BYTES + used(path)) // 2
    assert middle - size > HEAD_BYTES, "enough before and behind it"
    with open(path, "r+b") as file:
        file.seek(middle - size // 2)
        file.write(random_state.randbytes(size))


def used(path):
    """Where the zeros begin that a segment ends with."""
    return len(path.read_bytes().rstrip(b"\0"))


@pytest.mark.parametrize("seed", [1, 2])
def test_turned_bits_are_found_reported_and_repaired(scrubbing, seed):
    cluster, database = scrubbing
    topic, random_state = f"{NAMESPACE}/damage", random.Random(seed)
    load = Load(cluster.pulsar_url, topic)
    time.sleep(3)
    acknowledged = load.finish()
    cluster.broker.stop()
    victim, other = cluster.nodes[0], cluster.nodes[1]
    other_ready = servers.read_json(other.folder / "ready.json")
    ids = ledgers(database)
    expected = entries(other_ready, ids)
    assert sum(len(bodies) for bodies in expected.values()) > 100

    victim.stop()
    turn_bits(victim.folder, random_state, 30)
    ready = victim.start()
    servers.wait_for(lambda: metric(ready, "geminga_scrub_passes") >= 1)
    servers.wait_for(lambda: metric(ready, "geminga_storage_damaged_entries") == 0)
    found, repaired = metric(ready, "geminga_storage_damaged_entries_found"), metric(ready, "geminga_storage_repaired_entries")
    print(f"{found} damaged entries, {repaired} repaired")
    assert 5 <= repaired <= found
    assert "a stored entry is damaged" in victim.log_end(1_000_000)

    # From this node alone, and after its next start as well.
    assert entries(ready, ids) == expected
    victim.kill()
    ready = victim.start()
    assert entries(ready, ids) == expected
    passes = metric(ready, "geminga_scrub_passes")
    servers.wait_for(lambda: metric(ready, "geminga_scrub_passes") >= passes + 2)
    assert metric(ready, "geminga_storage_damaged_entries_found") == 0, "what is repaired is not damaged"
    cluster.broker.start()
    assert everything(cluster.pulsar_url, topic, "all") == acknowledged


def test_damage_that_a_client_meets_is_repaired_without_a_scrub(tmp_path):
    database = tmp_path / "metadata.db"
    for cluster in run_cluster(f"sqlite:{database}", 3, node_arguments=["--scrub-rate", "0"]):
        load = Load(cluster.pulsar_url, f"{NAMESPACE}/met")
        time.sleep(2)
        load.finish()
        cluster.broker.stop()
        victim, other = cluster.nodes[0], cluster.nodes[1]
        ids = ledgers(database)
        expected = entries(servers.read_json(other.folder / "ready.json"), ids)
        victim.stop()
        turn_bits(victim.folder, random.Random(3), 20)
        ready = victim.start()
        with Bookie(ready["bookie"]) as node:
            codes = {node.read(ledger, entry)[0] for ledger, bodies in expected.items() for entry in range(len(bodies))}
        assert codes == {bookie.OK, bookie.UNKNOWN}, "damage is never absence"
        servers.wait_for(lambda: metric(ready, "geminga_storage_damaged_entries") == 0)
        assert entries(ready, ids) == expected
        assert metric(ready, "geminga_storage_repaired_entries") > 0


def test_a_node_with_holes_in_its_log_settles_what_they_hide_and_takes_entries_again(tmp_path):
    database, random_state = tmp_path / "metadata.db", random.Random(4)
    options = ["--scrub-interval", "500ms", "--scrub-rate", "500MiB", "--close-damaged-after", "1s"]
    for cluster in run_cluster(f"sqlite:{database}", 3, node_arguments=options):
        topic = f"{NAMESPACE}/holes"
        load = Load(cluster.pulsar_url, topic)
        time.sleep(3)
        acknowledged = load.finish()
        # Its ledgers stay open, and the last segment has no index, so that a start reads its records.
        cluster.broker.kill()
        victim, other = cluster.nodes[0], cluster.nodes[1]
        other_ready = servers.read_json(other.folder / "ready.json")
        ids = ledgers(database)
        expected = entries(other_ready, ids)
        victim.kill()
        turn_bits(victim.folder, random_state, 200)
        lose_a_stretch(victim.folder, random_state)
        # As long as nobody can tell it what it should have, it says of nothing that it is not there.
        for node in cluster.nodes[1:]:
            node.kill()
        ready = victim.start()
        assert "the log is damaged" in victim.log_end(1_000_000)
        with Bookie(ready["bookie"]) as node:
            codes = {node.read(ledger, entry)[0] for ledger, bodies in expected.items() for entry in range(len(bodies))}
            assert codes == {bookie.OK, bookie.UNKNOWN}
            assert {node.read(ledger, 10**6)[0] for ledger in ids} == {bookie.UNKNOWN}, "it may have been in a hole"
        for node in cluster.nodes[1:]:
            node.start()
        servers.wait_for(lambda: "what was damaged is settled" in victim.log_end(1_000_000))
        assert metric(ready, "geminga_log_holes") == 0
        # It tried in vain when it was alone, and tries again after half a minute.
        servers.wait_for(lambda: metric(ready, "geminga_scrub_passes") >= 1 and metric(ready, "geminga_storage_damaged_entries") == 0, limit_s=90)
        assert entries(ready, ids) == expected

        cluster.broker.start()
        load = Load(cluster.pulsar_url, topic)
        time.sleep(1)
        more = load.finish()
        cluster.broker.stop()
        new = sorted(set(ledgers(database)) - set(ids))
        of_victim = entries(ready, new)
        assert sum(len(bodies) for bodies in of_victim.values()) > 10, "it takes entries again"
        assert of_victim == entries(other_ready, new)
        # The damaged segment was moved away, so the next start finds nothing.
        servers.wait_for(lambda: "damage: [] }" in restarted(victim))
        assert entries(servers.read_json(victim.folder / "ready.json"), [*ids, *new]) == {**expected, **of_victim}
        cluster.broker.start()
        assert everything(cluster.pulsar_url, topic, "all") == acknowledged + more


def restarted(node):
    """What its log says after a restart."""
    before = len(node.log_end(100_000_000))
    node.kill()
    node.start()
    return node.log_end(100_000_000)[before:]
