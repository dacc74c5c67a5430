"""A storage node that has deleted a ledger refuses for good what comes late, when nothing of the ledger is left on its disk."""
import sqlite3
import subprocess

import pytest

from conftest import BINARY
from harness import bookie, servers
from harness.bookie import Bookie
from test_directories import make_node
from test_recovery import metric

LEDGERS = [*range(10, 20), *range(21, 30)]
ONLY_FENCED = 30
NEVER_THERE = 20


def refuses(address, ledgers):
    with Bookie(address) as client:
        for ledger in ledgers:
            for flags in [0, bookie.RECOVERY_ADD]:
                assert client.add(ledger, 0, b"late", flags=flags) == bookie.FENCED, ledger
            assert client.fence(ledger) == bookie.NO_LEDGER, ledger
            assert client.read(ledger, 0)[0] == bookie.NO_LEDGER, ledger


@pytest.mark.parametrize("directories", [1, 2])
def test_a_deleted_ledger_never_comes_back(tmp_path, directories):
    database = tmp_path / "metadata.db"
    url = f"sqlite:{database}"
    subprocess.run([BINARY, "metadata", "init", "--metadata-url", url, "--cluster", "test"], check=True, capture_output=True)
    folders = [tmp_path / f"disk-{n}" for n in range(directories)]
    node = make_node(tmp_path / "node", folders, "--garbage-interval", "500ms", url=url)
    address = node.start()["bookie"]
    try:
        with Bookie(address) as client:
            assert [client.add(ledger, 0, b"x" * 10_000) for ledger in LEDGERS] == [bookie.OK] * len(LEDGERS)
            assert client.fence(ONLY_FENCED) == bookie.NO_ENTRY
        # No metadata have these ledgers, and by now their ids are given out.
        with sqlite3.connect(database) as metadata:
            metadata.execute("INSERT INTO sequences (name, next) VALUES ('ledger-id', 100)"
                             " ON CONFLICT (name) DO UPDATE SET next = 100")
        servers.wait_for(lambda: metric(node, "bookie_ledgers_count") == 0)
        # A restart seals the segments, which are dropped then.
        for _ in range(2):
            node.stop()
            node.start()
        servers.wait_for(lambda: metric(node, "geminga_log_data_bytes") < 10_000)
        refuses(address, [*LEDGERS, ONLY_FENCED])
        assert any((folder / "log" / "deleted").exists() for folder in folders)
        node.kill()
        node.start()
        refuses(address, [*LEDGERS, ONLY_FENCED])
        if directories == 1:
            # It was given out before others that came and went.
            servers.wait_for(lambda: metric(node, "geminga_log_deleted_ranges") == 1)
            refuses(address, [NEVER_THERE])
        with Bookie(address) as client:
            assert client.add(100, 0, b"new") == bookie.OK
    finally:
        node.stop()
