"""Storage nodes in several regions: each entry has copies in as many of them as can be, and a whole region may go."""
import pulsar
from conftest import run_cluster
from test_cluster import NAMESPACE
from test_damage import entries, ledgers
from test_recovery import check_everything, keep_everything, registered

REGIONS = [f"region-{n}" for n in range(3)]


def test_copies_are_in_three_regions_of_which_one_is_lost(tmp_path):
    """Each node has a zone of its own, so that zones alone would leave two copies of most ledgers in one region."""
    database = tmp_path / "metadata.db"
    for cluster in run_cluster(f"sqlite:{database}", 6, zones=6, regions=3):
        assert [node["region"] for node in registered(cluster)] == REGIONS * 2
        keep_everything(cluster)
        topics = {f"{NAMESPACE}/spread-{n}": [n] for n in range(10)}
        client = pulsar.Client(cluster.pulsar_url, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
        for topic, [number] in topics.items():
            client.create_producer(topic).send(str(number).encode())
        client.close()
        placed = {}
        for node, region in zip(cluster.nodes, REGIONS * 2):
            for ledger, bodies in entries(node.ready, ledgers(database)).items():
                if bodies:
                    placed.setdefault(ledger, []).append(region)
        assert len(placed) >= len(topics)
        assert all(sorted(regions) == REGIONS for regions in placed.values()), placed
        for node in cluster.nodes[::3]:
            node.kill()
        check_everything(cluster, topics, "without-a-region")
