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
    segments = [path for path in (folder / "data" / "log").glob("segment-*") if any(used(path))]
    assert segments
    for _ in range(count):
        path = random_state.choice(segments)
        begin, end = used(path)
        with open(path, "r+b") as file:
            at = random_state.randrange(begin, end)
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << random_state.randrange(8)]))


def used(path):
    content = path.read_bytes().rstrip(b"\0")
    return (HEAD_BYTES, len(content)) if len(content) > HEAD_BYTES + 4096 else (0, 0)


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
