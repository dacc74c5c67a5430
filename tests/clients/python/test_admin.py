"""The admin API by hand: status codes and bodies that tools rely on and the tour with pulsar-admin does not see."""
import http.client
import json
import urllib.error
import urllib.parse

import pytest

from conftest import ADMIN_URL


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


def test_pulsar_has_a_namespace_of_its_own(admin):
    assert "pulsar" in admin.get("tenants") and "pulsar/system" in admin.get("namespaces/pulsar")
