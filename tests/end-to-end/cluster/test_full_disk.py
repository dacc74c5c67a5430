"""A storage node whose disk is full, or fails: it says so in metadata and refuses entries, serves what it has, and comes back."""
import itertools
import json
import pathlib
import sqlite3
import struct
import subprocess

import pytest

from conftest import BINARY
from harness import bookie, servers
from harness.bookie import Bookie
from harness.small_disk import small_disk
from test_directories import make_node

PIECE = b"x" * (1 << 20)
SHIM = pathlib.Path(__file__).parents[1] / "faults" / "shim" / "powerloss.c"


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


def test_a_node_whose_disk_fails_to_write_takes_nothing_until_it_writes_again(tmp_path, postgres):
    url, shim, control = postgres.new_database(), tmp_path / "shim.so", tmp_path / "control"
    subprocess.run([BINARY, "metadata", "init", "--metadata-url", url, "--cluster", "test"], check=True, capture_output=True)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", shim, SHIM, "-ldl", "-lpthread"], check=True)
    control.write_bytes(bytes(16))
    node = make_node(tmp_path / "node", [tmp_path / "data"], "--garbage-interval", "1h", url=url)
    node.binary = "env"
    node.arguments[:0] = [f"LD_PRELOAD={shim}", f"FAULTS_JOURNAL={tmp_path / 'journal'}", f"FAULTS_CONTROL={control}", BINARY]

    def let_writes_fail(of_thousand):
        with open(control, "r+b") as numbers:
            numbers.write(struct.pack("<I", of_thousand))

    def says_read_only():
        statement = "SELECT convert_from(value, 'UTF8') FROM geminga.records WHERE convert_from(key, 'UTF8') LIKE 'storage-nodes/%'"
        done = subprocess.run([postgres.programs / "psql", "-qAt", "-c", statement, url], check=True, capture_output=True, text=True)
        return json.loads(done.stdout)["d"]["read_only"]

    address = node.start()["bookie"]
    try:
        with Bookie(address) as client:
            assert client.add(100, 0, b"content") == bookie.OK and not says_read_only()
            let_writes_fail(1000)
            codes = [client.add(ledger, 0, b"content") for ledger in range(200, 220)]
            assert codes[0] == bookie.IO and codes[-1] == bookie.READ_ONLY and set(codes) == {bookie.IO, bookie.READ_ONLY}
            servers.wait_for(says_read_only)
            code, content = client.read(100, 0)
            assert code == bookie.OK and content.endswith(b"content")
            let_writes_fail(0)
            servers.wait_for(lambda: not says_read_only())
            assert client.add(300, 0, b"content") == bookie.OK
    finally:
        node.stop()
