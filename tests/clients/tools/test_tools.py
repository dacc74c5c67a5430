"""Five minutes with the real pulsar-admin, pulsar-client and pulsar-perf."""
import json
import re

from conftest import PULSAR_URL


def test_a_tour(tools, name):
    tenant, namespace = f"tenant-{name}", f"tenant-{name}/ns"
    topic, partitioned = f"persistent://{namespace}/t", f"persistent://{namespace}/parts"
    (clusters, cluster, _, tenants, _, _, namespaces, retention, _, ttl, _, policies, _, topics, _, metadata, _, grown, parts, health,
     version) = tools.shell(
        "admin clusters list", "admin clusters get standalone",
        f"admin tenants create {tenant} --allowed-clusters standalone --admin-roles me", "admin tenants list",
        f"admin namespaces create {namespace}",
        f"admin namespaces set-retention {namespace} --size 100M --time 1h", f"admin namespaces list {tenant}",
        f"admin namespaces get-retention {namespace}",
        f"admin namespaces set-message-ttl {namespace} --messageTTL 3600", f"admin namespaces get-message-ttl {namespace}",
        f"admin namespaces set-deduplication {namespace} --enable", f"admin namespaces policies {namespace}",
        f"admin topics create {topic}", f"admin topics list {namespace}",
        f"admin topics create-partitioned-topic {partitioned} --partitions 2", f"admin topics get-partitioned-topic-metadata {partitioned}",
        f"admin topics update-partitioned-topic {partitioned} --partitions 3", f"admin topics get-partitioned-topic-metadata {partitioned}",
        f"admin topics list-partitioned-topics {namespace}",
        "admin brokers healthcheck", "admin brokers version")
    assert clusters == "standalone"
    assert json.loads(cluster)["serviceUrl"].startswith("http://")
    assert tenant in tenants.splitlines() and "public" in tenants.splitlines()
    assert namespace in namespaces.splitlines()
    assert json.loads(retention) == {"retentionTimeInMinutes": 60, "retentionSizeInMB": 100}
    assert ttl == "3600"
    assert json.loads(policies)["deduplicationEnabled"] is True
    assert topics == topic
    assert json.loads(metadata)["partitions"] == 2 and json.loads(grown)["partitions"] == 3
    assert parts == partitioned
    assert health == "ok"
    assert re.search(r"\d+\.\d+", version)
    removed = tools.shell(f"admin topics delete-partitioned-topic {partitioned}", f"admin topics delete {topic}",
                          f"admin namespaces delete {namespace}", f"admin tenants delete {tenant}", "admin tenants list")
    assert tenant not in removed[-1].splitlines()


def test_messages_and_subscriptions(tools, name):
    topic = f"persistent://public/default/tools-{name}"
    tools.shell(f"admin topics create {topic}", f"admin topics create-subscription {topic} --subscription s",
                f"admin topics create-subscription {topic} --subscription other")
    tools.run("pulsar-client", "--url", PULSAR_URL, "produce", topic, "--messages", "hello", "--num-produce", "10", "--disable-batching")
    (subscriptions, stats, internal, peeked, _, skipped, _, reset, _, emptied, last, _, left) = tools.shell(
        f"admin topics subscriptions {topic}", f"admin topics stats {topic}", f"admin topics stats-internal {topic}",
        f"admin topics peek-messages {topic} --subscription s --count 2",
        f"admin topics skip {topic} --subscription s --count 4", f"admin topics stats {topic}",
        f"admin topics reset-cursor {topic} --subscription s --time 1h", f"admin topics stats {topic}",
        f"admin topics clear-backlog {topic} --subscription other", f"admin topics stats {topic}",
        f"admin topics last-message-id {topic}",
        f"admin topics unsubscribe {topic} --subscription other", f"admin topics subscriptions {topic}")
    assert sorted(subscriptions.splitlines()) == ["other", "s"]
    assert json.loads(stats)["msgInCounter"] == 10
    assert json.loads(internal)["numberOfEntries"] == 10 and set(json.loads(internal)["cursors"]) == {"s", "other"}
    assert peeked.count("Message ID") == 2 and "hello" in peeked
    assert json.loads(skipped)["subscriptions"]["s"]["msgBacklog"] == 6
    assert json.loads(reset)["subscriptions"]["s"]["msgBacklog"] == 10
    assert json.loads(emptied)["subscriptions"]["other"]["msgBacklog"] == 0
    assert json.loads(last)["entryId"] == 9
    assert left == "s"
    consumed = tools.run("pulsar-client", "--url", PULSAR_URL, "consume", topic, "--subscription-name", "s", "--num-messages", "10")
    assert consumed.stdout.count("content:hello") == 10
    ended, refused = tools.shell(f"admin topics terminate {topic}", "admin topics stats persistent://public/default/no-such-topic")
    assert "terminated" in ended
    assert "not found" in refused


def test_pulsar_perf_counts(tools, name):
    topic = f"persistent://public/default/perf-{name}"
    count = 20_000
    tools.shell(f"admin topics create {topic}", f"admin topics create-subscription {topic} --subscription s")
    produced = tools.run("pulsar-perf", "produce", "-u", PULSAR_URL, "-r", 10_000, "-m", count, "-s", 512, topic)
    assert records(produced.stdout) >= count
    consumed = tools.run("pulsar-perf", "consume", "-u", PULSAR_URL, "-ss", "s", "-st", "Shared", "-m", count, "-sp", "Earliest", topic)
    assert records(consumed.stdout) >= count
    read = tools.run("pulsar-perf", "read", "-u", PULSAR_URL, "-n", count, topic)
    assert records(read.stdout) >= count


def records(text):
    found = re.findall(r"Aggregated throughput stats --- ([\d,.]+) records", text)
    assert found, text[-2000:]
    return int(float(found[-1].replace(",", "")))
