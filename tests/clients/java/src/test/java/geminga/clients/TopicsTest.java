package geminga.clients;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.regex.Pattern;
import org.apache.pulsar.client.api.MessageId;
import org.apache.pulsar.client.api.MessageIdAdv;
import org.apache.pulsar.client.api.PulsarClientException;
import org.apache.pulsar.client.api.Reader;
import org.apache.pulsar.client.api.Schema;
import org.apache.pulsar.client.api.SubscriptionInitialPosition;
import org.apache.pulsar.client.api.SubscriptionType;
import org.apache.pulsar.client.impl.MultiTopicsConsumerImpl;
import org.apache.pulsar.common.policies.data.AutoTopicCreationOverride;
import org.junit.jupiter.api.Test;

/** Readers, table views, partitioned topics, several topics at once. */
class TopicsTest extends Server {

    private static List<String> read(Reader<byte[]> reader) throws Exception {
        var got = new ArrayList<String>();
        while (reader.hasMessageAvailable()) {
            got.add(text(reader.readNext(WAIT_S, TimeUnit.SECONDS)));
        }
        return got;
    }

    @Test
    void readers() throws Exception {
        var ids = produce(producer().batchingMaxMessages(4).create(), 0, 20);
        assertEquals(series(0, 20), read(client.newReader().topic(topic).startMessageId(MessageId.earliest).create()));
        assertEquals(List.of(), read(client.newReader().topic(topic).startMessageId(MessageId.latest).create()));
        assertEquals(series(8, 20), read(client.newReader().topic(topic).startMessageId(ids.get(7)).create()));
        assertEquals(series(7, 20), read(client.newReader().topic(topic).startMessageId(ids.get(7)).startMessageIdInclusive().create()));
        assertEquals(series(19, 20), read(client.newReader().topic(topic).startMessageId(MessageId.latest).startMessageIdInclusive().create()));
        assertEquals(series(0, 20), read(client.newReader().topic(topic).startMessageFromRollbackDuration(1, TimeUnit.HOURS).create()));
    }

    @Test
    void readerSeeks() throws Exception {
        var ids = produce(producer().enableBatching(false).create(), 0, 20);
        var reader = client.newReader().topic(topic).startMessageId(MessageId.earliest).create();
        assertEquals(series(0, 20), read(reader));
        reader.seek(ids.get(14));
        assertEquals(series(15, 20), read(reader));
        reader.seek(MessageId.earliest);
        assertTrue(reader.hasMessageAvailable());
        reader.seek(MessageId.latest);
        assertFalse(reader.hasMessageAvailable());
    }

    @Test
    void readersLeaveNothing() throws Exception {
        var reader = client.newReader().topic(topic).startMessageId(MessageId.earliest).readerName("r").create();
        assertEquals(1, admin.topics().getStats(topic).getSubscriptions().size());
        reader.close();
        until("the subscription of the reader is gone", () -> admin.topics().getStats(topic).getSubscriptions().isEmpty());
    }

    @Test
    void tableView() throws Exception {
        var producer = producer().create();
        produce(producer, 0, 20, i -> "k" + i % 5);
        try (var view = client.newTableView(Schema.BYTES).topic(topic).create()) {
            assertEquals(5, view.size());
            assertEquals("m18", new String(view.get("k3")));
            produce(producer, 20, 1, i -> "k3");
            until("the new value", () -> new String(view.get("k3")).equals("m20"));
        }
    }

    @Test
    void partitions() throws Exception {
        admin.topics().createPartitionedTopic(topic, 4);
        assertEquals(4, client.getPartitionsForTopic(topic).get().size());
        var consumer = consumer(SubscriptionType.Shared).subscribe();
        produce(producer().enableBatching(false).create(), 0, 100, i -> "k" + i % 10);
        var partition = new HashMap<String, String>();
        var numbers = new HashMap<String, List<Integer>>();
        for (var m : receiveAndAck(consumer, 100)) {
            partition.putIfAbsent(m.getKey(), m.getTopicName());
            assertEquals(partition.get(m.getKey()), m.getTopicName());
            numbers.computeIfAbsent(m.getKey(), k -> new ArrayList<>()).add(numberOf(m));
        }
        assertRising(numbers);
        assertTrue(new HashSet<>(partition.values()).size() > 1);
    }

    @Test
    void growthIsPickedUp() throws Exception {
        admin.topics().createPartitionedTopic(topic, 2);
        var consumer = consumer(SubscriptionType.Shared).autoUpdatePartitionsInterval(1, TimeUnit.SECONDS).subscribe();
        var producer = producer().enableBatching(false).autoUpdatePartitionsInterval(1, TimeUnit.SECONDS).create();
        produce(producer, 0, 10);
        receiveAndAck(consumer, 10);
        admin.topics().updatePartitionedTopic(topic, 5);
        var seen = new HashSet<String>();
        int[] next = {10};
        until("messages of all five partitions", () -> {
            produce(producer, next[0], 5);
            next[0] += 5;
            receiveAndAck(consumer, 5).forEach(m -> seen.add(m.getTopicName()));
            return seen.size() == 5;
        });
    }

    @Test
    void readerOfPartitions() throws Exception {
        admin.topics().createPartitionedTopic(topic, 3);
        produce(producer().enableBatching(false).create(), 0, 30);
        var reader = client.newReader().topic(topic).startMessageId(MessageId.earliest).create();
        assertEquals(new HashSet<>(series(0, 30)), new HashSet<>(read(reader)));
    }

    @Test
    void severalTopics() throws Exception {
        var topics = List.of(topic + "-0", topic + "-1", topic + "-2");
        var consumer = client.newConsumer().topics(topics).subscriptionName("s").subscribe();
        for (var name : topics) {
            produce(client.newProducer().topic(name).create(), 0, 10);
        }
        var by = new HashMap<String, List<String>>();
        for (var m : receiveAndAck(consumer, 30)) {
            by.computeIfAbsent(m.getTopicName(), t -> new ArrayList<>()).add(text(m));
        }
        topics.forEach(name -> assertEquals(series(0, 10), by.get(name)));
    }

    @Test
    void patternFindsNewTopics() throws Exception {
        produce(client.newProducer().topic(topic + "-a").create(), 0, 5);
        produce(client.newProducer().topic(topic.replace("default/", "default/x") + "-a").create(), 100, 5);
        var consumer = client.newConsumer().topicsPattern(Pattern.compile(topic + "-.*")).subscriptionName("s")
            .subscriptionInitialPosition(SubscriptionInitialPosition.Earliest).patternAutoDiscoveryPeriod(60, TimeUnit.SECONDS).subscribe();
        assertEquals(series(0, 5), texts(receiveAndAck(consumer, 5)));
        produce(client.newProducer().topic(topic + "-b").create(), 5, 5);
        assertEquals(series(5, 10), texts(receiveAndAck(consumer, 5)));
        admin.topics().createPartitionedTopic(topic + "-c", 2);
        produce(client.newProducer().topic(topic + "-c").create(), 10, 5);
        assertEquals(new HashSet<>(series(10, 15)), new HashSet<>(texts(receiveAndAck(consumer, 5))));
    }

    @Test
    void patternLosesDeletedTopics() throws Exception {
        var namespace = newNamespace();
        admin.namespaces().setAutoTopicCreation(namespace, AutoTopicCreationOverride.builder().allowAutoTopicCreation(false).build());
        var topics = List.of("persistent://" + namespace + "/a-1", "persistent://" + namespace + "/a-2");
        for (var topic : topics) {
            admin.topics().createNonPartitionedTopic(topic);
        }
        var consumer = client.newConsumer().topicsPattern(Pattern.compile("persistent://" + namespace + "/a-.*")).subscriptionName("s")
            .patternAutoDiscoveryPeriod(60, TimeUnit.SECONDS).subscribe();
        var pattern = (MultiTopicsConsumerImpl<byte[]>) consumer;
        assertEquals(new HashSet<>(topics), new HashSet<>(pattern.getPartitions()));
        admin.topics().delete(topics.get(0), true);
        until("it is lost", () -> pattern.getPartitions().equals(topics.subList(1, 2)));
    }

    @Test
    void autoCreationOff() throws Exception {
        var namespace = newNamespace();
        admin.namespaces().setAutoTopicCreation(namespace, AutoTopicCreationOverride.builder().allowAutoTopicCreation(false).build());
        topic = "persistent://" + namespace + "/t";
        assertThrows(PulsarClientException.class, () -> producer().create());
        admin.topics().createNonPartitionedTopic(topic);
        produce(producer().create(), 0, 1);
    }

    @Test
    void autoCreationOfPartitions() throws Exception {
        var namespace = newNamespace();
        admin.namespaces().setAutoTopicCreation(namespace, AutoTopicCreationOverride.builder().allowAutoTopicCreation(true)
            .topicType("partitioned").defaultNumPartitions(3).build());
        topic = "persistent://" + namespace + "/t";
        produce(producer().create(), 0, 9);
        assertEquals(3, admin.topics().getPartitionedTopicMetadata(topic).partitions);
        // Not of those that the clients make for dead letters and retries.
        for (var suffix : List.of("-DLQ", "-RETRY")) {
            assertEquals(List.of(topic + suffix), client.getPartitionsForTopic(topic + suffix).get());
        }
    }

    @Test
    void messageIdsOfPartitions() throws Exception {
        admin.topics().createPartitionedTopic(topic, 2);
        var ids = produce(producer().enableBatching(false).create(), 0, 10);
        var partitions = new HashSet<Integer>();
        ids.forEach(id -> partitions.add(((MessageIdAdv) id).getPartitionIndex()));
        assertEquals(new HashSet<>(List.of(0, 1)), partitions);
    }
}
