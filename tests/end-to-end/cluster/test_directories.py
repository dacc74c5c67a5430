"""A storage node on several disks: whichever of them is missing, swapped or empty takes its own ledgers with it, and no others."""
import json
import shutil
import sqlite3
import subprocess
import time

import pytest

from conftest import BINARY, Process, run_cluster
from harness import bookie, servers
from harness.bookie import Bookie
from load import Load, check, everything
from test_recovery import metric


def make_node(folder, disks, *more, url="none"):
    arguments = [argument for disk in disks for argument in ("--data-dir", str(disk))]
    return Process(folder, "storage-node", *arguments, "--addr", f"127.0.0.1:{servers.free_port()}", "--http-addr", "127.0.0.1:0",
                   "--metadata-url", url, *more)


def fill(address, ledgers):
    with Bookie(address) as node:
        for ledger in ledgers:
            for entry in range(3):
                assert node.add(ledger, entry, b"content") == bookie.OK


def codes(address, ledgers):
    with Bookie(address) as node:
        return {ledger: node.read(ledger, 2)[0] for ledger in ledgers}


def restart(node):
    node.kill()
    return node.start()["bookie"]


def test_a_missing_disk_takes_only_its_own_ledgers(tmp_path):
    disks, ledgers = [tmp_path / "a", tmp_path / "b", tmp_path / "c"], range(1, 61)
    node = make_node(tmp_path / "node", disks)
    address = node.start()["bookie"]
    try:
        fill(address, ledgers)
        assert set(codes(restart(node), ledgers).values()) == {bookie.OK}

        # The mount is gone; then there is an empty folder in its place, as there is when a disk is not mounted.
        node.kill()
        disks[1].rename(tmp_path / "away")
        for _ in range(2):
            address = node.start()["bookie"]
            found = codes(address, ledgers)
            lost = [ledger for ledger, code in found.items() if code != bookie.OK]
            assert 5 < len(lost) < 40 and {found[ledger] for ledger in lost} == {bookie.UNKNOWN}
            assert "it is empty while the node's directory" in node.log_end(20_000)
            with Bookie(address) as client:
                kept = next(ledger for ledger in ledgers if ledger not in lost)
                assert client.add(kept, 3, b"more") == bookie.OK
                assert client.add(lost[0], 3, b"more") == bookie.UNKNOWN, "it may be fenced there"
                assert client.fence(lost[0]) == bookie.UNKNOWN
            node.kill()
            assert not disks[1].exists() or not list(disks[1].iterdir()), "nothing is written where a disk is to be mounted"
            disks[1].mkdir(exist_ok=True)

        shutil.rmtree(disks[1])
        (tmp_path / "away").rename(disks[1])
        assert set(codes(node.start()["bookie"], ledgers).values()) == {bookie.OK}, "it was only away"
    finally:
        node.stop()


def test_a_disk_of_another_node_is_not_used(tmp_path):
    mine, theirs = make_node(tmp_path / "mine", [tmp_path / "a", tmp_path / "b", tmp_path / "c"]), make_node(tmp_path / "theirs", [tmp_path / "x"])
    fill(mine.start()["bookie"], range(1, 31))
    fill(theirs.start()["bookie"], range(100, 103))
    mine.kill()
    theirs.kill()
    (tmp_path / "b").rename(tmp_path / "old")
    (tmp_path / "x").rename(tmp_path / "b")
    address = mine.start()["bookie"]
    try:
        found = codes(address, range(1, 31))
        assert set(found.values()) == {bookie.OK, bookie.UNKNOWN}
        assert codes(address, [100])[100] == bookie.UNKNOWN, "it is not ours to serve"
        assert "it belongs to another storage node" in mine.log_end()
    finally:
        mine.stop()


def test_a_disk_that_is_given_up_is_replaced_and_not_trusted_with_the_old_ones_ledgers(tmp_path):
    url = f"sqlite:{tmp_path / 'metadata.db'}"
    subprocess.run([BINARY, "metadata", "init", "--metadata-url", url, "--cluster", "test"], check=True, capture_output=True)
    with sqlite3.connect(tmp_path / "metadata.db") as metadata:
        metadata.execute("INSERT INTO sequences (name, next) VALUES ('ledger-id', 31)")
    node = make_node(tmp_path / "node", [tmp_path / "a", tmp_path / "b"], "--garbage-interval", "1h", url=url)
    fill(node.start()["bookie"], range(1, 31))
    identity = (tmp_path / "a" / "identity").read_text()
    node.kill()
    shutil.rmtree(tmp_path / "b")
    node.arguments.append("--give-up-missing-directories")
    try:
        found = codes(node.start()["bookie"], range(1, 31))
        assert set(found.values()) == {bookie.OK, bookie.UNKNOWN}
        assert (tmp_path / "b" / "identity").exists(), "the new disk is one of the node's"
        with sqlite3.connect(tmp_path / "metadata.db") as metadata:
            horizon = metadata.execute("SELECT next FROM sequences WHERE name = 'ledger-id'").fetchone()[0]
        node.arguments.pop()
        address = restart(node)
        settled = lambda: [json.loads((tmp_path / disk / "identity").read_text())["settled_below"] for disk in "ab"]
        servers.wait_for(lambda: settled() == [horizon - 1] * 2)
        assert codes(address, range(1, 31)) == found, "what is lost stays unknown"
        lost = [ledger for ledger, code in found.items() if code != bookie.OK]
        with Bookie(address) as client:
            assert client.add(lost[0], 3, b"more") == bookie.UNKNOWN and client.fence(lost[0]) == bookie.UNKNOWN, "it may have been fenced"
            assert client.add(lost[0], 3, b"copy", flags=bookie.RECOVERY_ADD) == bookie.OK
            assert client.add(lost[0], 4, b"more") == bookie.FENCED
        fill(address, range(horizon, horizon + 20))
        assert set(codes(restart(node), range(horizon, horizon + 20)).values()) == {bookie.OK}
        assert len(list((tmp_path / "b" / "log").glob("segment-*"))) > 0
        assert identity.split('"')[3] in (tmp_path / "a" / "identity").read_text(), "the node is still the same"
    finally:
        node.stop()


def test_a_node_starts_and_serves_while_metadata_are_away(tmp_path, postgres):
    url = postgres.new_database()
    subprocess.run([BINARY, "metadata", "init", "--metadata-url", url, "--cluster", "test"], check=True, capture_output=True)
    node = make_node(tmp_path / "node", [tmp_path / "a"], url=url)
    address = node.start()["bookie"]
    fill(address, [1])
    node.kill()
    postgres.stop("immediate")
    try:
        address = node.start()["bookie"]
        assert codes(address, [1]) == {1: bookie.OK}
        fill(address, [2])
        assert node.log_end(100_000).count("serving without metadata") == 1
    finally:
        postgres.start()
    try:
        servers.wait_for(lambda: "joined the cluster" in node.log_end(100_000).split("serving without metadata")[1])
    finally:
        node.stop()


@pytest.fixture
def cluster_of_three(postgres):
    """Three nodes in three zones: each of them is in every ensemble."""
    yield from run_cluster(postgres.new_database(), 3)


def test_a_disk_that_comes_back_at_another_address_is_the_node_that_it_was(cluster_of_three):
    cluster, topic = cluster_of_three, "persistent://public/default/moved"
    addresses = lambda: {node["id"]: node["address"] for node in cluster.command("storage-nodes", "list")}
    load, moved, before = Load(cluster.pulsar_url, topic), cluster.nodes[0], addresses()
    time.sleep(1)
    old, new = moved.ready["bookie"], f"127.0.0.1:{servers.free_port()}"
    moved.kill()
    moved.arguments[moved.arguments.index("--addr") + 1] = new
    moved.start()
    assert addresses() == {node: new if address == old else address for node, address in before.items()}
    assert moved.log_end(10**9).count(f"this storage node has moved from {old} to {new}") == 1
    # The next ledger needs all three.
    cluster.admin("PUT", topic.replace("://", "/") + "/unload")
    servers.wait_for(lambda: metric(moved, "bookie_WRITE_BYTES") > 0)
    acknowledged = load.finish()
    assert len(acknowledged) > 1000 and not load.failed
    check(acknowledged, everything(cluster.pulsar_url, topic, "all", expected=acknowledged))


def test_an_empty_disk_at_an_old_address_is_another_node_and_says_whose_place_it_has(cluster_of_three):
    cluster, topic = cluster_of_three, "persistent://public/default/emptied"
    addresses = lambda: {node["id"]: node["address"] for node in cluster.command("storage-nodes", "list")}
    load, emptied, before = Load(cluster.pulsar_url, topic), cluster.nodes[0], addresses()
    time.sleep(1)
    acknowledged = load.finish()
    old = json.loads((emptied.folder / "data" / "identity").read_text())["id"]
    emptied.kill()
    shutil.rmtree(emptied.folder / "data")
    for _ in range(2):
        address = emptied.start()["bookie"]
        assert emptied.log_end(10**9).count(f"storage node {old} was at {address} before") == 1
        new = json.loads((emptied.folder / "data" / "identity").read_text())["id"]
        assert addresses() == {**before, new: address} and new not in before
        emptied.kill()
    emptied.start()
    assert all("was at" not in node.log_end(10**9) for node in cluster.nodes[1:])
    check(acknowledged, everything(cluster.pulsar_url, topic, "all", expected=acknowledged))
