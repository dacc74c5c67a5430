package geminga.clients;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.stream.IntStream;
import org.apache.pulsar.client.api.BatcherBuilder;
import org.apache.pulsar.client.api.CompressionType;
import org.apache.pulsar.client.api.Message;
import org.apache.pulsar.client.api.ProducerAccessMode;
import org.apache.pulsar.client.api.PulsarClientException;
import org.apache.pulsar.client.api.Schema;
import org.apache.pulsar.client.api.SizeUnit;
import org.apache.pulsar.client.api.SubscriptionInitialPosition;
import org.apache.pulsar.client.api.SubscriptionType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

class ProducerTest extends Server {

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void orderAndIds(boolean batching) throws Exception {
        var consumer = consumer(SubscriptionType.Exclusive).subscribe();
        var producer = producer().enableBatching(batching).batchingMaxMessages(20).create();
        var ids = produce(producer, 0, 205);
        var messages = receiveAndAck(consumer, 205);
        assertEquals(series(0, 205), texts(messages));
        assertEquals(ids, messages.stream().map(Message::getMessageId).toList());
        assertEquals(ids.stream().sorted().toList(), ids);
        nothingMore(consumer);
    }

    @ParameterizedTest
    @EnumSource(CompressionType.class)
    void compression(CompressionType type) throws Exception {
        var consumer = consumer(SubscriptionType.Exclusive).subscribe();
        var body = "compressible ".repeat(5000).getBytes();
        producer().compressionType(type).create().send(body);
        assertArrayEquals(body, receive(consumer, 1).get(0).getData());
    }

    @Test
    void messageFields() throws Exception {
        var consumer = consumer(SubscriptionType.Exclusive).subscribe();
        producer().producerName("name").create().newMessage().value("x".getBytes()).key("k").orderingKey("o".getBytes()).eventTime(1234567890123L)
            .property("a", "1").property("б", "2").sequenceId(77).send();
        var m = receive(consumer, 1).get(0);
        assertEquals("k", m.getKey());
        assertArrayEquals("o".getBytes(), m.getOrderingKey());
        assertEquals(1234567890123L, m.getEventTime());
        assertEquals(Map.of("a", "1", "б", "2"), m.getProperties());
        assertEquals(77, m.getSequenceId());
        assertEquals("name", m.getProducerName());
        assertEquals(topic, m.getTopicName());
    }

    @Test
    void brokerEntryMetadata() throws Exception {
        var consumer = consumer(SubscriptionType.Exclusive).subscribe();
        produce(producer().batchingMaxMessages(5).create(), 0, 20);
        long expected = 0;
        for (var m : receive(consumer, 20)) {
            assertEquals(expected++, m.getIndex().orElseThrow());
            assertTrue(Math.abs(System.currentTimeMillis() - m.getBrokerPublishTime().orElseThrow()) < 60_000);
        }
    }

    @Test
    void chunks() throws Exception {
        var consumer = consumer(SubscriptionType.Exclusive).subscribe();
        var producer = producer().enableBatching(false).enableChunking(true).create();
        var body = new byte[12_000_000];
        for (int i = 0; i < body.length; i++) {
            body[i] = (byte) (i * 31 % 251);
        }
        producer.send("before".getBytes());
        producer.send(body);
        producer.send("after".getBytes());
        var messages = receiveAndAck(consumer, 3);
        assertEquals("before", text(messages.get(0)));
        assertArrayEquals(body, messages.get(1).getData());
        assertEquals("after", text(messages.get(2)));
        until("all chunks acknowledged", () -> admin.topics().getStats(topic).getSubscriptions().get("s").getMsgBacklog() == 0);
    }

    @Test
    void tooLarge() throws Exception {
        var producer = producer().enableBatching(false).create();
        assertThrows(PulsarClientException.class, () -> producer.send(new byte[5 * 1024 * 1024 + 1]));
        producer.send(new byte[10]);
    }

    @Test
    void batchesOverTheTopicsLimit() throws Exception {
        admin.topics().createNonPartitionedTopic(topic);
        admin.topicPolicies().setMaxMessageSize(topic, 100);
        var producer = producer().batchingMaxMessages(4).batchingMaxPublishDelay(1, TimeUnit.SECONDS).create();
        until("the limit holds", () -> {
            var batch = IntStream.range(0, 4).mapToObj(i -> producer.sendAsync(new byte[50])).toList();
            try {
                CompletableFuture.allOf(batch.toArray(CompletableFuture[]::new)).get(WAIT_S, TimeUnit.SECONDS);
                return false;
            } catch (ExecutionException e) {
                return e.getCause() instanceof PulsarClientException.NotAllowedException;
            }
        });
        producer.send(new byte[10]);
    }

    @Test
    void nameInUse() throws Exception {
        var first = producer().producerName("mine").create();
        assertThrows(PulsarClientException.ProducerBusyException.class, () -> producer().producerName("mine").create());
        first.close();
        producer().producerName("mine").create().close();
    }

    @Test
    void exclusiveAccess() throws Exception {
        var first = producer().accessMode(ProducerAccessMode.Exclusive).create();
        produce(first, 0, 5);
        assertThrows(PulsarClientException.ProducerFencedException.class, () -> producer().accessMode(ProducerAccessMode.Exclusive).create());
        assertThrows(PulsarClientException.ProducerBusyException.class, () -> producer().create());
        first.close();
        producer().accessMode(ProducerAccessMode.Exclusive).create().close();
    }

    @Test
    void exclusiveIsRefusedBesideOthers() throws Exception {
        var shared = producer().create();
        assertThrows(PulsarClientException.ProducerFencedException.class, () -> producer().accessMode(ProducerAccessMode.Exclusive).create());
        produce(shared, 0, 1);
    }

    @Test
    void waitForExclusive() throws Exception {
        var first = producer().accessMode(ProducerAccessMode.Exclusive).create();
        var second = producer().accessMode(ProducerAccessMode.WaitForExclusive).createAsync();
        var third = producer().accessMode(ProducerAccessMode.WaitForExclusive).createAsync();
        Thread.sleep(500);
        assertFalse(second.isDone() || third.isDone());
        first.close();
        var one = (CompletableFuture<?>) CompletableFuture.anyOf(second, third);
        one.get(WAIT_S, TimeUnit.SECONDS);
        Thread.sleep(500);
        assertTrue(second.isDone() ^ third.isDone(), "exactly one of the waiting producers becomes exclusive");
        produce(second.isDone() ? second.get() : third.get(), 0, 5);
        (second.isDone() ? second.get() : third.get()).close();
        (second.isDone() ? third : second).get(WAIT_S, TimeUnit.SECONDS).close();
    }

    @Test
    void exclusiveWithFencing() throws Exception {
        var first = producer().accessMode(ProducerAccessMode.Exclusive).create();
        produce(first, 0, 5);
        var second = producer().accessMode(ProducerAccessMode.ExclusiveWithFencing).create();
        assertThrows(PulsarClientException.class, () -> first.send("fenced".getBytes()));
        produce(second, 5, 5);
        assertEquals(1, admin.topics().getStats(topic).getPublishers().size());
    }

    @Test
    void deduplication() throws Exception {
        var namespace = newNamespace();
        admin.namespaces().setDeduplicationStatus(namespace, true);
        topic = "persistent://" + namespace + "/t";
        var consumer = consumer(SubscriptionType.Exclusive).subscribe();
        for (int round = 0; round < 2; round++) {
            var producer = producer().producerName("p").initialSequenceId(-1).create();
            for (int i = 0; i < 20; i++) {
                producer.newMessage().sequenceId(i).value(("m" + i).getBytes()).sendAsync();
            }
            producer.flush();
            producer.close();
        }
        var last = producer().producerName("p").create();
        assertEquals(19, last.getLastSequenceId());
        assertEquals(series(0, 20), texts(receive(consumer, 20)));
        nothingMore(consumer);
    }

    @Test
    void initialSubscription() throws Exception {
        // The builder has no such option: a dead letter producer uses it.
        var policy = org.apache.pulsar.client.api.DeadLetterPolicy.builder().maxRedeliverCount(1).deadLetterTopic(topic + "-dead")
            .initialSubscriptionName("kept").build();
        var consumer = consumer(SubscriptionType.Shared).deadLetterPolicy(policy).negativeAckRedeliveryDelay(50, TimeUnit.MILLISECONDS).subscribe();
        produce(producer().create(), 0, 1);
        consumer.negativeAcknowledge(receive(consumer, 1).get(0));
        consumer.negativeAcknowledge(receive(consumer, 1).get(0));
        until("the initial subscription", () -> {
            try {
                return admin.topics().getSubscriptions(topic + "-dead").contains("kept");
            } catch (org.apache.pulsar.client.admin.PulsarAdminException.NotFoundException e) {
                return false;
            }
        });
        var letters = client.newConsumer().topic(topic + "-dead").subscriptionName("kept").subscribe();
        assertEquals("m0", text(receive(letters, 1).get(0)));
    }

    @Test
    void keyBasedBatches() throws Exception {
        var consumer = consumer(SubscriptionType.Key_Shared).subscribe();
        var producer = producer().batcherBuilder(BatcherBuilder.KEY_BASED).batchingMaxPublishDelay(50, TimeUnit.MILLISECONDS).create();
        produce(producer, 0, 100, i -> "k" + i % 7);
        var numbers = new java.util.HashMap<String, java.util.List<Integer>>();
        for (var m : receive(consumer, 100)) {
            numbers.computeIfAbsent(m.getKey(), k -> new java.util.ArrayList<>()).add(numberOf(m));
        }
        assertRising(numbers);
    }

    @Test
    void memoryLimit() throws Exception {
        try (var small = clientBuilder().memoryLimit(200, SizeUnit.KILO_BYTES).build()) {
            var producer = small.newProducer().topic(topic).blockIfQueueFull(true).create();
            var consumer = consumer(SubscriptionType.Exclusive).subscribe();
            CompletableFuture<?> last = null;
            for (int i = 0; i < 500; i++) {
                last = producer.sendAsync(new byte[10_000]);
            }
            last.get(WAIT_S, TimeUnit.SECONDS);
            assertEquals(500, receive(consumer, 500).size());
        }
    }

    @Test
    void transactionsAreRefused() {
        var refused = assertThrows(PulsarClientException.class, () -> clientBuilder().enableTransaction(true).build());
        assertTrue(refused.getMessage().contains("doesn't enable the transaction coordinator"), refused.getMessage());
    }

    @Test
    void schemas() throws Exception {
        var consumer = client.newConsumer(Schema.AVRO(Person.class)).topic(topic).subscriptionName("s")
            .subscriptionInitialPosition(SubscriptionInitialPosition.Earliest).subscribe();
        client.newProducer(Schema.AVRO(Person.class)).topic(topic).create().send(new Person("a", 7));
        var person = consumer.receive(WAIT_S, TimeUnit.SECONDS).getValue();
        assertEquals("a", person.name);
        assertEquals(7, person.age);
        assertThrows(PulsarClientException.IncompatibleSchemaException.class, () -> client.newProducer(Schema.STRING).topic(topic).create());
        var info = admin.schemas().getSchemaInfoWithVersion(topic);
        assertEquals(0, info.getVersion());
        assertEquals("AVRO", info.getSchemaInfo().getType().name());
        var any = client.newConsumer(Schema.AUTO_CONSUME()).topic(topic).subscriptionName("any")
            .subscriptionInitialPosition(SubscriptionInitialPosition.Earliest).subscribe();
        assertEquals("a", any.receive(WAIT_S, TimeUnit.SECONDS).getValue().getField("name").toString());
        client.newProducer(Schema.AUTO_PRODUCE_BYTES()).topic(topic).create().close();
    }

    static class Person {
        public String name;
        public int age;

        Person() {}

        Person(String name, int age) {
            this.name = name;
            this.age = age;
        }
    }
}
