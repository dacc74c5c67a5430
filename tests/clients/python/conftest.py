"""Fixtures of the Python client suite. It needs a running server: PULSAR_URL and ADMIN_URL name it.

Every test works on topics (and, where it sets policies, in a namespace) of its own, so that the suite can run against any
server, several times, in any order."""
import os
import uuid

import pulsar
import pytest

from harness import servers

PULSAR_URL = os.environ.get("PULSAR_URL", "pulsar://127.0.0.1:6650")
ADMIN_URL = os.environ.get("ADMIN_URL", "http://127.0.0.1:8080")


class Admin:
    """The admin REST calls that the tests need. A refusal raises urllib.error.HTTPError with its `code`."""

    def call(self, method, path, body=None):
        return servers.admin(ADMIN_URL, method, path, body)

    def get(self, path): return self.call("GET", path)
    def put(self, path, body=None): return self.call("PUT", path, body)
    def post(self, path, body=None): return self.call("POST", path, body)
    def delete(self, path): return self.call("DELETE", path)

    def topic(self, topic, rest=""):
        """The path of a topic (given with or without its domain), followed by `rest`."""
        return topic.replace("://", "/") + rest

    def stats(self, topic): return self.get(self.topic(topic, "/stats"))


@pytest.fixture(scope="session")
def admin():
    return Admin()


@pytest.fixture
def client():
    client = new_client()
    yield client
    try:
        client.close()
    except pulsar.NotConnected:
        # A consumer that is just reconnecting cannot be closed: the client gives up its connection after an error.
        pass


def new_client(**options):
    return pulsar.Client(PULSAR_URL, operation_timeout_seconds=10, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Warn), **options)


@pytest.fixture
def topic(request):
    return f"persistent://public/default/{request.node.originalname}-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def namespace(admin):
    """A namespace of its own, removed with all that is in it."""
    name = f"public/ns-{uuid.uuid4().hex[:8]}"
    admin.put(f"namespaces/{name}", {})
    yield name
    for topic in admin.get(f"persistent/{name}/partitioned"):
        admin.delete(admin.topic(topic, "/partitions?force=true"))
    for topic in admin.get(f"persistent/{name}"):
        admin.delete(admin.topic(topic, "?force=true"))
    admin.delete(f"namespaces/{name}")
