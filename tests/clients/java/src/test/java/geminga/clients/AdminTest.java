package geminga.clients;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import java.util.UUID;
import org.apache.pulsar.client.admin.PulsarAdminException;
import org.apache.pulsar.client.api.MessageId;
import org.apache.pulsar.client.api.MessageIdAdv;
import org.apache.pulsar.client.api.SubscriptionType;
import org.apache.pulsar.common.policies.data.BacklogQuota;
import org.apache.pulsar.common.policies.data.RetentionPolicies;
import org.apache.pulsar.common.policies.data.TenantInfo;
import org.junit.jupiter.api.Test;

class AdminTest extends Server {

    @Test
    void clusters() throws Exception {
        var names = admin.clusters().getClusters();
        assertEquals(1, names.size());
        assertTrue(admin.clusters().getCluster(names.get(0)).getServiceUrl().startsWith("http"));
        assertThrows(PulsarAdminException.NotFoundException.class, () -> admin.clusters().getCluster("no-such-cluster"));
    }

    @Test
    void tenants() throws Exception {
        var name = "tenant-" + UUID.randomUUID().toString().substring(0, 8);
        var info = TenantInfo.builder().adminRoles(Set.of("r")).allowedClusters(new HashSet<>(admin.clusters().getClusters())).build();
        admin.tenants().createTenant(name, info);
        assertTrue(admin.tenants().getTenants().contains(name));
        assertEquals(info, admin.tenants().getTenantInfo(name));
        assertThrows(PulsarAdminException.ConflictException.class, () -> admin.tenants().createTenant(name, info));
        admin.namespaces().createNamespace(name + "/n");
        assertThrows(PulsarAdminException.class, () -> admin.tenants().deleteTenant(name));
        admin.namespaces().deleteNamespace(name + "/n");
        admin.tenants().deleteTenant(name);
        assertThrows(PulsarAdminException.NotFoundException.class, () -> admin.tenants().getTenantInfo(name));
    }

    @Test
    void namespaces() throws Exception {
        var name = newNamespace();
        assertTrue(admin.namespaces().getNamespaces("public").contains(name));
        assertThrows(PulsarAdminException.ConflictException.class, () -> admin.namespaces().createNamespace(name));
        assertThrows(PulsarAdminException.NotFoundException.class, () -> admin.namespaces().getPolicies("public/no-such-namespace"));
        admin.namespaces().deleteNamespace(name);
        assertThrows(PulsarAdminException.NotFoundException.class, () -> admin.namespaces().getPolicies(name));
    }

    @Test
    void policies() throws Exception {
        var name = newNamespace();
        assertNull(admin.namespaces().getRetention(name));
        admin.namespaces().setRetention(name, new RetentionPolicies(60, 100));
        assertEquals(new RetentionPolicies(60, 100), admin.namespaces().getRetention(name));
        admin.namespaces().setNamespaceMessageTTL(name, 300);
        assertEquals(300, admin.namespaces().getNamespaceMessageTTL(name));
        admin.namespaces().setDeduplicationStatus(name, true);
        assertEquals(true, admin.namespaces().getDeduplicationStatus(name));
        var quota = BacklogQuota.builder().limitSize(1 << 20).retentionPolicy(BacklogQuota.RetentionPolicy.producer_exception).build();
        admin.namespaces().setBacklogQuota(name, quota);
        assertEquals(1 << 20, admin.namespaces().getBacklogQuotaMap(name).get(BacklogQuota.BacklogQuotaType.destination_storage).getLimitSize());
        admin.namespaces().removeBacklogQuota(name);
        admin.namespaces().removeRetention(name);
        assertNull(admin.namespaces().getRetention(name));
    }

    @Test
    void topics() throws Exception {
        admin.topics().createNonPartitionedTopic(topic);
        assertTrue(admin.topics().getList("public/default").contains(topic));
        assertThrows(PulsarAdminException.ConflictException.class, () -> admin.topics().createNonPartitionedTopic(topic));
        var producer = producer().create();
        assertThrows(PulsarAdminException.PreconditionFailedException.class, () -> admin.topics().delete(topic));
        producer.close();
        admin.topics().delete(topic);
        assertThrows(PulsarAdminException.NotFoundException.class, () -> admin.topics().getStats(topic));
        assertThrows(PulsarAdminException.NotFoundException.class, () -> admin.topics().delete(topic));
    }

    @Test
    void partitionedTopics() throws Exception {
        admin.topics().createPartitionedTopic(topic, 3);
        assertTrue(admin.topics().getPartitionedTopicList("public/default").contains(topic));
        assertEquals(3, admin.topics().getPartitionedTopicMetadata(topic).partitions);
        assertThrows(PulsarAdminException.ConflictException.class, () -> admin.topics().createPartitionedTopic(topic, 3));
        assertThrows(PulsarAdminException.class, () -> admin.topics().updatePartitionedTopic(topic, 2));
        produce(producer().enableBatching(false).create(), 0, 9);
        var stats = admin.topics().getPartitionedStats(topic, true);
        assertEquals(9, stats.getMsgInCounter());
        assertEquals(3, stats.getPartitions().size());
    }

    @Test
    void deletingAPartitionedTopic() throws Exception {
        admin.topics().createPartitionedTopic(topic, 3);
        admin.topics().deletePartitionedTopic(topic);
        assertTrue(admin.topics().getList("public/default").stream().noneMatch(t -> t.startsWith(topic)));
    }

    @Test
    void subscriptions() throws Exception {
        var ids = produce(producer().enableBatching(false).create(), 0, 20);
        admin.topics().createSubscription(topic, "s", MessageId.earliest);
        admin.topics().createSubscription(topic, "middle", ids.get(10));
        admin.topics().createSubscription(topic, "end", MessageId.latest);
        assertThrows(PulsarAdminException.ConflictException.class, () -> admin.topics().createSubscription(topic, "s", MessageId.earliest));
        assertEquals(Set.of("s", "middle", "end"), new HashSet<>(admin.topics().getSubscriptions(topic)));
        assertEquals(20, backlog("s"));
        assertEquals(10, backlog("middle")); // the position is the first that is delivered
        assertEquals(0, backlog("end"));
        admin.topics().skipMessages(topic, "s", 5);
        assertEquals(15, backlog("s"));
        admin.topics().skipAllMessages(topic, "s");
        assertEquals(0, backlog("s"));
        admin.topics().resetCursor(topic, "s", ids.get(15));
        var consumer = consumer(SubscriptionType.Exclusive).subscribe();
        assertEquals("m15", text(receive(consumer, 1).get(0)));
        assertThrows(PulsarAdminException.PreconditionFailedException.class, () -> admin.topics().deleteSubscription(topic, "s"));
        consumer.close();
        admin.topics().resetCursor(topic, "s", System.currentTimeMillis() - 3_600_000);
        assertEquals(20, backlog("s"));
        admin.topics().deleteSubscription(topic, "s");
        assertThrows(PulsarAdminException.NotFoundException.class, () -> admin.topics().skipAllMessages(topic, "s"));
    }

    @Test
    void peeking() throws Exception {
        var producer = producer().enableBatching(false).property("p", "1").create();
        producer.newMessage().value("m0".getBytes()).property("a", "b").key("k").send();
        produce(producer, 1, 4);
        admin.topics().createSubscription(topic, "s", MessageId.earliest);
        var messages = admin.topics().peekMessages(topic, "s", 3);
        assertEquals(series(0, 3), texts(messages));
        assertEquals(Map.of("a", "b"), messages.get(0).getProperties().entrySet().stream().filter(e -> e.getKey().equals("a"))
            .collect(java.util.stream.Collectors.toMap(Map.Entry::getKey, Map.Entry::getValue)));
        assertEquals(5, backlog("s"));
    }

    @Test
    void statistics() throws Exception {
        consumer(SubscriptionType.Shared).consumerName("c").subscribe();
        produce(producer().producerName("p").enableBatching(false).create(), 0, 10);
        var stats = admin.topics().getStats(topic);
        assertEquals(10, stats.getMsgInCounter());
        assertTrue(stats.getBytesInCounter() > 0 && stats.getStorageSize() > 0);
        assertEquals("p", stats.getPublishers().get(0).getProducerName());
        assertEquals("Shared", stats.getSubscriptions().get("s").getType());
        var internal = admin.topics().getInternalStats(topic);
        assertEquals(10, internal.entriesAddedCounter);
        assertEquals(10, internal.numberOfEntries);
        assertEquals(1, internal.ledgers.size());
        assertTrue(internal.lastConfirmedEntry.endsWith(":9"));
        assertTrue(internal.cursors.containsKey("s"));
    }

    @Test
    void lastMessageIdAndTermination() throws Exception {
        var ids = produce(producer().enableBatching(false).create(), 0, 3);
        assertEquals(((MessageIdAdv) ids.get(2)).getEntryId(), ((MessageIdAdv) admin.topics().getLastMessageId(topic)).getEntryId());
        var end = (MessageIdAdv) admin.topics().terminateTopicAsync(topic).get();
        assertEquals(((MessageIdAdv) ids.get(2)).getEntryId(), end.getEntryId());
    }

    @Test
    void brokers() throws Exception {
        admin.brokers().healthcheck();
        var cluster = admin.clusters().getClusters().get(0);
        assertEquals(1, admin.brokers().getActiveBrokers(cluster).size());
    }

    @Test
    void lookup() throws Exception {
        admin.topics().createNonPartitionedTopic(topic);
        assertTrue(admin.lookups().lookupTopic(topic).startsWith("pulsar://"));
        assertTrue(admin.lookups().getBundleRange(topic).startsWith("0x"));
    }

    private long backlog(String subscription) throws Exception {
        return admin.topics().getStats(topic).getSubscriptions().get(subscription).getMsgBacklog();
    }
}
