"""Storage nodes that serve nobody in the clear, and know their peers by certificates: brokers and other nodes come over TLS."""
import pulsar
from conftest import Process
from harness import servers
from test_cluster import NAMESPACE
from test_doctor import examine
from test_recovery import check_everything, keep_everything, produce, registered, wait_for, wait_until_repaired


def test_brokers_and_repair_go_through_tls(cluster_with_tls):
    cluster = cluster_with_tls
    keep_everything(cluster)
    topics = {f"{NAMESPACE}/tls-{n}": produce(cluster, f"{NAMESPACE}/tls-{n}", 1) for n in range(2)}
    code, report = examine(cluster, *cluster.broker.arguments[cluster.broker.arguments.index("--storage-tls-ca"):][:6])
    assert (code, report["findings"], report["notAsked"]) == (0, [], {})
    assert len(examine(cluster)[1]["notAsked"]) == 4, "nodes answer nobody else"
    lost = registered(cluster)[0]["id"]
    cluster.nodes[0].kill()
    wait_until_repaired(cluster, [lost])
    # Only copies that were made over TLS are left of some entries.
    cluster.nodes[1].kill()
    check_everything(cluster, topics, "after")


def start_stranger(cluster, *arguments):
    port = servers.free_port()
    stranger = Process(cluster.folder / f"stranger-{port}", "broker", "--metadata-url", cluster.url, "--cluster", "test", "--pulsar-addr",
                       f"127.0.0.1:{port}", "--http-addr", "127.0.0.1:0", *arguments)
    stranger.url = f"pulsar://127.0.0.1:{port}"
    return stranger


def test_brokers_that_nodes_do_not_know_are_told_so(cluster_with_tls):
    cluster = cluster_with_tls
    authority = cluster.broker.arguments[cluster.broker.arguments.index("--storage-tls-ca") + 1]
    cluster.broker.stop()
    for arguments, why in ([], "Unauthorized"), (["--storage-tls-ca", authority], "CertificateRequired"):
        stranger = start_stranger(cluster, *arguments)
        stranger.start()
        client = pulsar.Client(stranger.url, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
        results = []
        client.create_producer(f"{NAMESPACE}/stranger").send_async(b"in vain", lambda result, _: results.append(result))
        wait_for("the broker says why", lambda: why in stranger.log_end(20_000), 20)
        stranger.kill()
        assert pulsar.Result.Ok not in results
        client.shutdown()  # close() would fail, as nobody is left to take the producer back
    lonely = start_stranger(cluster, "--storage-tls-ca", authority, "--storage-tls-cert", authority)
    lonely.begin()
    assert lonely.process.wait(20) != 0
    assert "--storage-tls-key" in lonely.log_end()
