"""Two clusters of processes on loopback with the face of a server (harness/servers.py): storage nodes, one broker and what keeps their
metadata. Entries go to three nodes and count once two have synced them, in both."""
import pathlib
import subprocess
import time

from harness import procfs, servers
from harness.cluster import Cluster
from harness.postgres import Postgres

# How long a storage node may be silent before what it had is copied.
LOST_AFTER_S = 10


class GemingaCluster(servers.Server):
    name = "geminga"

    def __init__(self, binary, folder, nodes=3, broker_arguments=()):
        super().__init__(folder)
        self.binary, self.nodes, self.broker_arguments, self.postgres, self.cluster = binary, nodes, broker_arguments, None, None
        self.log = self.folder / "broker-0/log"

    def start(self):
        self.postgres = Postgres()
        self.cluster = Cluster(self.folder, self.postgres.new_database(), self.nodes, binary=self.binary,
                               node_arguments=["--lost-node-after", f"{LOST_AFTER_S}s"], broker_arguments=self.broker_arguments)
        try:
            self.cluster.start()
        except BaseException:
            self.stop()
            raise
        self.pulsar_url, self.admin_url = self.cluster.pulsar_url, self.cluster.admin_url
        self.process = self.cluster.broker.process

    @property
    def pids(self):
        """PostgreSQL's too."""
        server = int(pathlib.Path(self.postgres.folder, "data/postmaster.pid").read_text().split()[0])
        roles = [*self.cluster.nodes, *self.cluster.brokers]
        return [server, *procfs.children(server), *(role.process.pid for role in roles if role.alive())]

    def lose_node(self):
        self.cluster.nodes[-1].kill()

    def ledgers_to_repair(self):
        return self.cluster.command("recovery")["ledgers_to_repair"]

    def alive(self):
        return self.postgres is not None

    def stop(self):
        for process in [*self.cluster.brokers, *self.cluster.nodes] if self.cluster else []:
            process.stop()
        self.postgres.close()
        self.postgres = None

    kill = stop


class PulsarCluster(servers.Server):
    """ZooKeeper, bookies with their auto-recovery, and a broker, of the published distribution; heaps so that all fit on one machine."""
    name = "pulsar"
    heaps = {"zookeeper": "-Xms128m -Xmx128m", "bookie": "-Xms512m -Xmx512m -XX:MaxDirectMemorySize=1g",
             "broker": "-Xms1g -Xmx1g -XX:MaxDirectMemorySize=2g"}

    def __init__(self, home, folder, nodes=3):
        super().__init__(folder)
        self.home, self.nodes, self.processes = pathlib.Path(home), nodes, {}
        self.log = self.folder / "broker.log"
        self.zookeeper = f"127.0.0.1:{servers.free_port()}"

    def start(self):
        port = self.zookeeper.split(":")[1]
        self.run("zookeeper", "zookeeper", "PULSAR_ZK_CONF", "zookeeper.conf", dataDir=self.folder / "zookeeper", clientPort=port,
                 clientPortAddress="127.0.0.1", **{"admin.enableServer": "false", "metricsProvider.httpHost": "127.0.0.1",
                                                   "metricsProvider.httpPort": servers.free_port()})
        self.wait_port("zookeeper", int(port))
        subprocess.run([self.home / "bin/pulsar", "initialize-cluster-metadata", "--cluster", "bench", "--metadata-store", f"zk:{self.zookeeper}",
                        "--configuration-store", f"zk:{self.zookeeper}", "--web-service-url", self.admin_url, "--broker-service-url", self.pulsar_url],
                       check=True, env=self.environment("initialize", "-Xmx256m"), stdin=subprocess.DEVNULL, capture_output=True)
        ports = [servers.free_port() for _ in range(self.nodes)]
        for n, bookie_port in enumerate(ports):
            data = self.folder / f"bookie-{n}"
            self.run(f"bookie-{n}", "bookie", "PULSAR_BOOKKEEPER_CONF", "bookkeeper.conf", bookiePort=bookie_port, advertisedAddress="127.0.0.1",
                     listeningInterface="lo", allowLoopback="true", journalDirectory=data / "journal", ledgerDirectories=data / "ledgers",
                     indexDirectories=data / "ledgers", metadataServiceUri=f"metadata-store:zk:{self.zookeeper}", journalWriteData="true",
                     journalSyncData="true", prometheusStatsHttpPort=servers.free_port(), diskUsageThreshold="0.99", diskUsageWarnThreshold="0.99",
                     zkTimeout=LOST_AFTER_S * 1000, auditorPeriodicBookieCheckInterval=LOST_AFTER_S)
        for n, bookie_port in enumerate(ports):
            self.wait_port(f"bookie-{n}", bookie_port)
        store = f"zk:{self.zookeeper}"
        self.run("broker", "broker", "PULSAR_BROKER_CONF", "broker.conf", metadataStoreUrl=store, configurationMetadataStoreUrl=store,
                 clusterName="bench", brokerServicePort=self.port, webServicePort=self.http_port, bindAddress="127.0.0.1",
                 advertisedAddress="127.0.0.1", managedLedgerDefaultEnsembleSize=3, managedLedgerDefaultWriteQuorum=3,
                 managedLedgerDefaultAckQuorum=2, bookkeeperClientMinNumRacksPerWriteQuorum=1)
        self.process = self.processes["broker"]
        self.wait_first_publish(time.monotonic(), 180)

    def environment(self, name, heap):
        logs = self.folder / "logs" / name
        logs.mkdir(parents=True, exist_ok=True)
        return {"PATH": "/usr/local/bin:/usr/bin:/bin", "PULSAR_LOG_DIR": str(logs), "PULSAR_MEM": heap, "BOOKIE_MEM": heap}

    def run(self, name, role, variable, template, **changes):
        """Starts a role with a copy of its configuration in which the changes hold."""
        configuration = self.folder / f"{name}.conf"
        kept = [line for line in (self.home / "conf" / template).read_text().splitlines() if line.split("=")[0].strip() not in changes]
        configuration.write_text("\n".join(kept + [f"{key}={value}" for key, value in changes.items()]) + "\n")
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen([self.home / "bin/pulsar", role], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                                    env={**self.environment(name, self.heaps[role]), variable: str(configuration)})

    def wait_port(self, name, port):
        def listens():
            assert self.processes[name].poll() is None, f"{name} ended; see {self.folder / name}.log"
            return servers.listens(port)
        servers.wait_for(listens, 120)

    @property
    def pids(self):
        return [process.pid for process in self.processes.values() if process.poll() is None]

    def lose_node(self):
        lost = self.processes[f"bookie-{self.nodes - 1}"]
        lost.kill()
        lost.wait()

    def ledgers_to_repair(self):
        listed = subprocess.run([self.home / "bin/bookkeeper", "shell", "listunderreplicated"], check=True, capture_output=True, text=True,
                                env={**self.environment("shell", "-Xmx256m"), "BOOKIE_CONF": str(self.folder / "bookie-0.conf"),
                                     "PULSAR_BOOKKEEPER_CONF": str(self.folder / "bookie-0.conf")})
        return sum(line.strip().isdigit() for line in listed.stdout.splitlines())

    def alive(self):
        return bool(self.pids)

    def stop(self):
        """The broker before bookies before ZooKeeper."""
        for process in reversed(self.processes.values()):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    kill = stop
