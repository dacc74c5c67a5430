"""The gRPC port of a storage node: asked by the command, and by a gRPC client of another language."""
import json
import subprocess

import grpc
import pytest

from conftest import BINARY
from harness import bookie, servers
from harness.bookie import Bookie
from harness.certificates import make_certificates
from test_directories import make_node


def ctl(ready, *command):
    done = run_ctl(ready, *command)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run_ctl(ready, *command):
    return subprocess.run([BINARY, "storage-node-ctl", *command, "--control-addr", ready["control"]], capture_output=True, text=True)


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


def test_a_node_with_tls_answers_only_whom_it_knows(tmp_path):
    make_certificates(tmp_path)
    authority, certificate, key = (tmp_path / name for name in ["ca.pem", "cert.pem", "key.pem"])
    node = make_node(tmp_path / "node", [tmp_path / "disk"], "--control-addr", "127.0.0.1:0", "--tls-cert", str(certificate), "--tls-key", str(key),
                     "--tls-client-ca", str(authority), url="none")
    ready = node.start()
    describe = "/geminga.storage.v1.StorageNode/Describe"
    try:
        trusting = ["--storage-tls-ca", str(authority)]
        assert "startedAtMs" in ctl(ready, "describe", *trusting, "--storage-tls-cert", str(certificate), "--storage-tls-key", str(key))
        for strangers in [], trusting:
            refused = run_ctl(ready, "describe", *strangers)
            assert refused.returncode != 0 and len(refused.stderr.splitlines()) == 1, refused.stderr

        known = grpc.ssl_channel_credentials(authority.read_bytes(), key.read_bytes(), certificate.read_bytes())
        unknown = grpc.ssl_channel_credentials(authority.read_bytes())
        with grpc.secure_channel(ready["control"], known) as channel:
            assert channel.unary_unary(describe)(b"", timeout=20)
        for channel in grpc.secure_channel(ready["control"], unknown), grpc.insecure_channel(ready["control"]):
            with channel, pytest.raises(grpc.RpcError):
                channel.unary_unary(describe)(b"", timeout=5)
    finally:
        node.stop()
