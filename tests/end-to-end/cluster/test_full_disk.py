"""A storage node whose disk is full: it says so in metadata and refuses entries, serves what it has, and comes back."""
import itertools
import json
import sqlite3
import subprocess

import pytest

from conftest import BINARY
from harness import bookie, servers
from harness.bookie import Bookie
from harness.small_disk import small_disk
from test_directories import make_node

PIECE = b"x" * (1 << 20)


def is_read_only(database):
    with sqlite3.connect(database) as metadata:
        (value,) = metadata.execute("SELECT value FROM records WHERE key LIKE 'storage-nodes/%'").fetchone()
    return json.loads(value)["d"]["read_only"]


@pytest.mark.parametrize("disks", [1, 2])
def test_a_full_node_takes_nothing_until_there_is_room_again(tmp_path, disks):
    database = tmp_path / "metadata.db"
    url = f"sqlite:{database}"
    subprocess.run([BINARY, "metadata", "init", "--metadata-url", url, "--cluster", "test"], check=True, capture_output=True)
    with sqlite3.connect(database) as metadata:
        metadata.execute("INSERT INTO sequences (name, next) VALUES ('ledger-id', 10000)")
    with small_disk(128, "tmpfs") as small, small_disk(128, "tmpfs") as other:
        folders = [f"{small}/data", f"{other}/data"][:disks]
        node = make_node(tmp_path / "node", folders, "--garbage-interval", "1h", url=url)
        address = node.start()["bookie"]
        try:
            with Bookie(address) as client:
                filled = next(ledger for ledger in range(100, 1000) if client.add(ledger, 0, PIECE) != bookie.OK)
                assert disks * 60 < filled - 100 < disks * 128
                # One refusal may only mean that a next file is not ready, or that one of the disks is full: a ledger stays on its disk.
                ledgers = itertools.count(1000)
                servers.wait_for(lambda: client.add(next(ledgers), 0, PIECE) == bookie.READ_ONLY and is_read_only(database))
                code, content = client.read(100, 0)
                assert code == bookie.OK and content.endswith(PIECE)
                assert client.add(6000, 0, b"small", flags=bookie.RECOVERY_ADD) == bookie.OK, "a repair may use the reserve"

            # No metadata know these ledgers: they are garbage for a node that looks for it.
            node.stop()
            node.arguments[node.arguments.index("1h")] = "1s"
            node.start()
            with Bookie(address) as client:
                # Each disk is swept on its own.
                servers.wait_for(lambda: client.add(8000, 0, PIECE) == bookie.OK)
                servers.wait_for(lambda: client.read(100, 0)[0] == bookie.NO_LEDGER)
                servers.wait_for(lambda: not is_read_only(database))
        finally:
            node.stop()
