"""The admin API by hand: status codes and bodies that tools rely on and the tour with pulsar-admin does not see."""
import http.client
import json
import threading
import urllib.error
import urllib.parse
import urllib.request

import pulsar
import pytest

from conftest import ADMIN_URL
from helpers import produce, receive, until


def status(method, path, body=None):
    """The status code below /admin/v2/, redirects as they are."""
    connection = http.client.HTTPConnection(urllib.parse.urlparse(ADMIN_URL).netloc, timeout=60)
    content = None if body is None else json.dumps(body)
    connection.request(method, f"/admin/v2/{path.replace('://', '/')}", content, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


@pytest.mark.parametrize("method, path, expected", [
    ("HEAD", "clusters", 200), ("PATCH", "clusters/standalone", 405), ("POST", "tenants", 405), ("DELETE", "tenants", 405),
    ("GET", "namespaces", 404), ("GET", "nonsense", 404), ("POST", "persistent/public/default/t", 405),
    ("GET", "persistent/public/default/t/nonsense", 404)])
def test_what_there_is_not(method, path, expected):
    assert status(method, path) == expected


def test_the_status_line_has_the_reason(admin):
    with pytest.raises(urllib.error.HTTPError) as refused:
        admin.get("tenants/none")
    assert (refused.value.code, refused.value.reason) == (404, "Tenant does not exist")


def test_force_is_not_enough_to_delete_a_namespace(admin, namespace):
    admin.put(f"persistent/{namespace}/t")
    assert status("DELETE", f"namespaces/{namespace}?force=true") == 405
    assert status("DELETE", f"namespaces/{namespace}") == 409
    assert admin.get(f"persistent/{namespace}") == [f"persistent://{namespace}/t"]


def test_boundaries_say_how_many_bundles_there_are(admin, namespace):
    name, halves = f"{namespace}-halves", ["0x00000000", "0x80000000", "0xffffffff"]
    assert status("PUT", f"namespaces/{name}", {"bundles": {"boundaries": halves[1:], "numBundles": 1}}) == 400
    admin.put(f"namespaces/{name}", {"bundles": {"boundaries": halves, "numBundles": 7}})
    assert admin.get(f"namespaces/{name}/bundles") == {"boundaries": halves, "numBundles": 2}
    admin.delete(f"namespaces/{name}")


def test_expiry_by_an_operator(client, admin, topic):
    subscription = admin.topic(topic, "/subscription/s")
    admin.put(subscription)
    assert status("POST", f"{subscription}/expireMessages/1000") == 409, "nothing waits"
    client.create_producer(topic).send(b"m")
    assert status("POST", f"{subscription}/expireMessages/1000") == 204
    assert admin.stats(topic)["subscriptions"]["s"]["msgBacklog"] == 1
    assert status("POST", f"{subscription}/expireMessages", {"ledgerId": 1 << 40, "entryId": 0, "partitionIndex": -1}) == 409
    admin.put(admin.topic(topic, "/subscription/caught-up"))
    assert status("POST", admin.topic(topic, "/all_subscription/expireMessages/1000")) == 409


def test_replication_of_a_subscription_is_shown(admin, topic):
    path = admin.topic(topic, "/subscription/s")
    admin.put(f"{path}?replicated=true")
    assert admin.get(f"{path}/replicatedSubscriptionStatus") == {topic: True}
    assert admin.stats(topic)["subscriptions"]["s"]["isReplicated"] is True
    admin.post(f"{path}/replicatedSubscriptionStatus", False)
    assert admin.get(f"{path}/replicatedSubscriptionStatus") == {topic: False}


def test_schemas(admin, topic):
    path = "schemas/" + topic.split("://")[1]
    schema = {"type": "STRING", "schema": "", "properties": {}}
    assert admin.get(f"{path}/metadata") is None
    assert status("GET", f"{path}/schema/-1") == 404
    assert status("POST", f"{path}/schema", {**schema, "type": "AUTO_CONSUME"}) == 422
    assert status("POST", f"{path}/schema", schema) == 200
    assert status("POST", f"{path}/compatibility", schema) == 202
    assert status("POST", f"{path}/compatibility", {**schema, "type": "INT32"}) == 500
    assert admin.delete(f"{path}/schema?force=true") == {"version": -1}


def test_names_that_only_seem_special(admin, topic, namespace):
    """Of the names with two underscores Pulsar hides its own; a number behind `-partition-` is a partition's, whatever its form."""
    name = f"persistent://{namespace}/__mine"
    admin.put(admin.topic(name))
    assert name in admin.get(f"persistent/{namespace}")
    for number in ["0", "01", "-1"]:
        assert status("PUT", admin.topic(topic, f"-partition-{number}")) == 412
    assert status("GET", admin.topic(topic, "-partition-0/partitions")) == 404
    assert status("PUT", admin.topic(topic, "-partition-/partitions"), 2) == 412


def test_consumers_do_not_keep_a_subscription_that_stores_nothing(client, admin, topic):
    name = topic.replace("persistent://", "non-persistent://")
    client.subscribe(name, "s")
    assert status("DELETE", admin.topic(name, "/subscription/s")) == 204


def test_groups_of_anti_affinity_are_found_without_a_version(admin, namespace):
    """Where the Java client asks for them."""
    assert status("POST", f"namespaces/{namespace}/antiAffinity", namespace) == 204
    with urllib.request.urlopen(f"{ADMIN_URL}/admin/namespaces/standalone/antiAffinity/none?property=public") as answer:
        assert json.load(answer) == []


def test_groups_are_found_while_namespaces_come_and_go(admin, namespace):
    stopping = threading.Event()

    def come_and_go():
        while not stopping.is_set():
            admin.put(f"namespaces/{namespace}-gone", {})
            admin.delete(f"namespaces/{namespace}-gone")

    coming = threading.Thread(target=come_and_go)
    coming.start()
    try:
        for _ in range(100):
            assert admin.get("namespaces/standalone/antiAffinity/none?tenant=public") == []
    finally:
        stopping.set()
        coming.join()


def test_the_largest_bundle_is_split(admin, namespace):
    assert status("PUT", f"namespaces/{namespace}/LARGEST/split") == 404
    topic = f"persistent://{namespace}/t"
    admin.put(admin.topic(topic))
    admin.stats(topic)
    before = admin.get(f"namespaces/{namespace}/bundles")["numBundles"]
    admin.put(f"namespaces/{namespace}/LARGEST/split")
    assert admin.get(f"namespaces/{namespace}/bundles")["numBundles"] == before + 1


def test_pulsar_has_a_namespace_of_its_own(admin):
    assert "pulsar" in admin.get("tenants") and "pulsar/system" in admin.get("namespaces/pulsar")


def test_expiry_behind_an_excluded_message(client, admin, topic):
    admin.put(admin.topic(topic, "/subscription/s"))
    ids = produce(client.create_producer(topic, batching_enabled=False), 6)
    position = {"ledgerId": ids[2].ledger_id(), "entryId": ids[2].entry_id(), "partitionIndex": -1}

    def backlog():
        return admin.stats(topic)["subscriptions"]["s"]["msgBacklog"]

    admin.post(admin.topic(topic, "/subscription/s/expireMessages"), position)
    until(lambda: backlog() == 3)
    admin.post(admin.topic(topic, "/subscription/s/resetcursor/0"))
    until(lambda: backlog() == 6)
    admin.post(admin.topic(topic, "/subscription/s/expireMessages"), {**position, "excluded": True})
    until(lambda: backlog() == 2)


def test_replication_of_a_namespace_stays(admin, namespace):
    assert status("DELETE", f"namespaces/{namespace}/replication") == 412
    assert admin.get(f"namespaces/{namespace}/replication") == ["standalone"]


def test_a_quota_of_a_topic_stands_for_all_that_apply(admin, topic):
    admin.put(admin.topic(topic))
    path = admin.topic(topic, "/backlogQuotaMap?applied=true")
    assert set(admin.get(path)) == {"destination_storage", "message_age"}
    admin.post(admin.topic(topic, "/backlogQuota"), {"limitSize": 1000, "policy": "producer_exception"})
    until(lambda: set(admin.get(path)) == {"destination_storage"})


def test_positions_in_internal_stats(client, admin, topic):
    consumer = client.subscribe(topic, "s", consumer_type=pulsar.ConsumerType.Shared)
    produce(client.create_producer(topic, batching_enabled=False), 5)
    receive(consumer, 2)

    def cursor():
        return admin.get(admin.topic(topic, "/internalStats"))["cursors"]["s"]

    until(lambda: cursor()["markDeletePosition"].endswith(":1"))
    assert cursor()["numberOfEntriesSinceFirstNotAckedMessage"] == 4, "the one that is read next counts"
    assert cursor()["subscriptionHavePendingRead"] is True
    assert cursor()["messagesConsumedCounter"] == 2 and cursor()["readPosition"].endswith(":5")
    consumer.close()
    admin.put(admin.topic(topic, "/unload"))
    assert cursor()["readPosition"].endswith(":2")


def test_metrics_of_topics_and_subscriptions(client, admin, topic):
    consumer = client.subscribe(topic, "s", consumer_type=pulsar.ConsumerType.Shared)
    produce(client.create_producer(topic, batching_enabled=False), 5)
    receive(consumer, 2)
    receive(consumer, 1, ack=False)
    until(lambda: admin.stats(topic)["subscriptions"]["s"]["msgBacklog"] == 3)

    def shown(name, subscription=None):
        text = urllib.request.urlopen(f"{ADMIN_URL}/metrics/").read().decode()
        lines = [line for line in text.splitlines() if line.startswith(f"{name}{{") and f'topic="{topic}"' in line]
        lines = [line for line in lines if subscription is None or f'subscription="{subscription}"' in line]
        return [float(line.split("}")[1].split()[0]) for line in lines]

    for name in ("pulsar_rate_in", "pulsar_throughput_in", "pulsar_msg_backlog", "pulsar_storage_size", "pulsar_average_msg_size"):
        assert len(shown(name)) == 1, name
    until(lambda: shown("pulsar_in_messages_total") == [5.0])
    expected = {"back_log": 3, "back_log_no_delayed": 3, "delayed": 0, "unacked_messages": 3, "consumers_count": 1,
                "blocked_on_unacked_messages": 0, "in_replay": 0, "total_msg_expired": 0}
    assert {name: shown(f"pulsar_subscription_{name}", "s") for name in expected} == {name: [n] for name, n in expected.items()}
    assert shown("pulsar_out_messages_total", "s") == [5.0] and shown("pulsar_out_messages_total") == [5.0]
    for name in ("msg_rate_out", "msg_throughput_out", "msg_rate_redeliver", "msg_ack_rate", "last_acked_timestamp",
                 "last_consumed_timestamp", "last_consumed_flow_timestamp", "last_expire_timestamp", "last_mark_delete_advanced_timestamp"):
        assert len(shown(f"pulsar_subscription_{name}", "s")) == 1, name


def test_names_of_subscriptions_are_encoded_twice(client, admin, topic):
    name = "s a/b+ü%"
    path = admin.topic(topic, "/subscription/" + urllib.parse.quote(urllib.parse.quote_plus(name), safe="+"))
    admin.put(path)
    assert admin.get(admin.topic(topic, "/subscriptions")) == [name]
    client.create_producer(topic).send(b"m")
    client.subscribe(topic, name).close()
    admin.post(f"{path}/skip_all")
    until(lambda: admin.stats(topic)["subscriptions"][name]["msgBacklog"] == 0)
    assert admin.get(admin.topic(topic, "/internalStats"))["cursors"].keys() == {urllib.parse.quote_plus(name)}
    admin.delete(path)
    assert admin.get(admin.topic(topic, "/subscriptions")) == []


def test_analysis_from_a_position(client, admin, topic):
    consumer = client.subscribe(topic, "s")
    ids = produce(client.create_producer(topic, batching_enabled=False), 5)
    receive(consumer, 2)
    until(lambda: admin.stats(topic)["subscriptions"]["s"]["msgBacklog"] == 3)
    path = admin.topic(topic, "/subscription/s/analyzeBacklog")
    start = {"ledgerId": ids[1].ledger_id(), "entryId": ids[1].entry_id(), "partitionIndex": -1}
    assert [admin.post(path)["entries"], admin.post(path, start)["entries"]] == [3, 4]
