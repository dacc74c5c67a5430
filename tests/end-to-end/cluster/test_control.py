"""The gRPC port of a storage node: asked by the command, and by a gRPC client of another language."""
import json
import subprocess

import grpc

from conftest import BINARY
from harness import bookie, servers
from harness.bookie import Bookie
from test_directories import make_node


def ctl(ready, *command):
    answer = subprocess.run([BINARY, "storage-node-ctl", *command, "--control-addr", ready["control"]], check=True, capture_output=True, text=True)
    return json.loads(answer.stdout)


def test_a_node_is_described_drained_and_scrubbed(tmp_path):
    url = f"sqlite:{tmp_path / 'metadata.db'}"
    subprocess.run([BINARY, "metadata", "init", "--metadata-url", url, "--cluster", "test"], check=True, capture_output=True)
    disks = [tmp_path / "a", tmp_path / "b"]
    node = make_node(tmp_path / "node", disks, "--control-addr", "127.0.0.1:0", "--zone", "z1", url=url)
    ready = node.start()
    try:
        with Bookie(ready["bookie"]) as client:
            assert client.add(1, 0, b"content") == bookie.OK
            servers.wait_for(lambda: ctl(ready, "describe")["registered"])
            described = ctl(ready, "describe")
            assert described["id"] == json.loads((disks[0] / "identity").read_text())["id"]
            assert (described["zone"], described["address"], described["readOnly"]) == ("z1", ready["bookie"], False)

            assert ctl(ready, "drain") == {"draining": True}
            assert client.add(1, 1, b"content") == bookie.READ_ONLY
            assert client.add(1, 1, b"content", flags=bookie.RECOVERY_ADD) == bookie.OK, "a repair is always welcome"
            assert client.read(1, 1)[0] == bookie.OK
            assert ctl(ready, "describe")["readOnly"]
            ctl(ready, "undrain")
            assert client.add(1, 2, b"content") == bookie.OK

        statistics = ctl(ready, "statistics")
        assert [one["path"] for one in statistics["directories"]] == [str(disk) for disk in disks]
        assert (statistics["ledgers"], statistics["failedAdds"]) == (1, 1)
        passes = ctl(ready, "scrub")["passes"]
        ctl(ready, "scrub", "--start")
        servers.wait_for(lambda: ctl(ready, "scrub")["passes"] > passes)
        assert ctl(ready, "scrub")["damagedEntriesFound"] == 0

        with grpc.insecure_channel(ready["control"]) as channel:
            assert described["id"].encode() in channel.unary_unary("/geminga.storage.v1.StorageNode/Describe")(b"")
            assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x01", "SERVING"
    finally:
        node.stop()
