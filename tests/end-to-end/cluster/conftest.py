"""Clusters for tests. Each keeps the end of its logs with a test that fails."""
import shutil
import tempfile

import pytest

from harness.certificates import make_certificates
from harness.cluster import BINARY, Cluster, Process  # noqa: F401
from harness.postgres import Postgres


MISSED_SOON = ["--lost-node-after", "6s", "--open-ledger-grace", "3s", "--audit-interval", "2s", "--self-check-interval", "5s"]


@pytest.fixture(scope="session")
def postgres():
    server = Postgres()
    yield server
    server.close()


@pytest.fixture
def cluster(request, postgres):
    """Five nodes in three zones, metadata in PostgreSQL."""
    yield from run_cluster(postgres.new_database(), 5)


@pytest.fixture
def cluster_on_sqlite(tmp_path):
    """Four nodes, metadata in a file that the processes share: for one machine."""
    yield from run_cluster(f"sqlite:{tmp_path / 'metadata.db'}", 4)


@pytest.fixture
def brokers(postgres):
    """Three brokers on three nodes in three zones, metadata in PostgreSQL."""
    yield from run_cluster(postgres.new_database(), 3, brokers=3)


@pytest.fixture
def zones(postgres):
    """Three zones, each of a broker and two nodes."""
    yield from run_cluster(postgres.new_database(), 6, brokers=3)


@pytest.fixture
def cluster_that_repairs(postgres):
    """Six nodes in three zones that miss each other soon."""
    yield from run_cluster(postgres.new_database(), 6, node_arguments=MISSED_SOON)


@pytest.fixture
def cluster_with_tls(postgres, tmp_path):
    """Four nodes that serve nobody without TLS and a certificate of their authority, and miss each other soon."""
    make_certificates(tmp_path)
    authority, certificate, key = (str(tmp_path / name) for name in ["ca.pem", "cert.pem", "key.pem"])
    others = ["--storage-tls-ca", authority, "--storage-tls-cert", certificate, "--storage-tls-key", key]
    own = ["--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", authority, "--require-tls", "--control-addr", "127.0.0.1:0"]
    yield from run_cluster(postgres.new_database(), 4, node_arguments=[*MISSED_SOON, *own, *others], broker_arguments=others)


def run_cluster(url, nodes, node_arguments=(), **options):
    folder = tempfile.mkdtemp(prefix="geminga-cluster-")
    made = Cluster(folder, url, nodes, node_arguments=["--garbage-interval", "2s", *node_arguments], **options)
    try:
        made.start()
        yield made
        made.close()
    finally:
        for process in filter(Process.was_started, [*made.brokers, *made.nodes]):
            print(f"the end of the log of {process.folder.name}:\n{process.log_end(3000)}")
        for process in [*made.brokers, *made.nodes]:
            if process.alive():
                process.process.kill()
                process.process.wait()
        shutil.rmtree(folder)
